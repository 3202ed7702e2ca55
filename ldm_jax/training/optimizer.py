"""Optimisers and learning-rate schedules from a config section.

Learning rates are absolute: they are not multiplied by the batch size or the number of
devices (CompVis does both, a common pitfall for its users).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from ldm_jax.annotations import Array, Num
from ldm_jax.config import build_row, choose, to_dict
from ldm_jax.errors import ConfigError
from ldm_jax.training.freeze import freeze_updates

# Number of updates done: an integer or an array.
Step = int | Num[Array, "..."]


def cosine_factor(
    step: Step,
    warmup_steps: int,
    decay_steps: int,
    start: float,
    end: float,
) -> Num[Array, "..."]:
    """Linear warm-up, then half a cosine (CompVis' LambdaWarmUpCosineScheduler).

    Args:
      step: Number of updates done, a scalar or an array of any shape.
      warmup_steps: Steps over which the factor rises from `start` to 1.
      decay_steps: Step at which the factor reaches `end`; then it is constant.
      start: Factor at step 0.
      end: Factor from `decay_steps` on.

    Returns:
      float32 factor of the peak learning rate, shaped like `step`.
    """
    progress = (step - warmup_steps) / jnp.maximum(decay_steps - warmup_steps, 1)
    decayed = end + 0.5 * (1 - end) * (1 + jnp.cos(jnp.pi * jnp.clip(progress, 0, 1)))
    return jnp.where(step < warmup_steps, _warmup(step, warmup_steps, start), decayed)


def linear_factor(
    step: Step,
    warmup_steps: int,
    decay_steps: int,
    start: float,
    end: float,
) -> Num[Array, "..."]:
    """Linear warm-up, then linear decay to `end` (CompVis' LambdaLinearScheduler).

    As in CompVis the decay is a line from 1 at step 0, not at the end of the warm-up.

    Args:
      step: Number of updates done, a scalar or an array of any shape.
      warmup_steps: Steps over which the factor rises from `start` to 1.
      decay_steps: Step at which the factor reaches `end`; then it is constant.
      start: Factor at step 0.
      end: Factor from `decay_steps` on.

    Returns:
      float32 factor of the peak learning rate, shaped like `step`.
    """
    decayed = end + (1 - end) * jnp.maximum(decay_steps - step, 0) / decay_steps
    return jnp.where(step < warmup_steps, _warmup(step, warmup_steps, start), decayed)


def constant_factor(
    step: Step,
    warmup_steps: int,
    decay_steps: int,
    start: float,
    end: float,
) -> Num[Array, "..."]:
    """Linear warm-up, then 1.

    Args:
      step: Number of updates done, a scalar or an array of any shape.
      warmup_steps: Steps over which the factor rises from `start` to 1.
      decay_steps: Unused.
      start: Factor at step 0.
      end: Unused.

    Returns:
      float32 factor of the peak learning rate, shaped like `step`.
    """
    del decay_steps, end
    return jnp.where(step < warmup_steps, _warmup(step, warmup_steps, start), 1.0)


def _warmup(step, warmup_steps, start):
    return start + (1 - start) * step / jnp.maximum(warmup_steps, 1)


def make_learning_rate(
    num_steps: int,
    learning_rate: float,
    decay: str = "constant",
    warmup_steps: int = 0,
    decay_steps: int | None = None,
    start_factor: float = 0.0,
    end_factor: float = 0.0,
) -> Callable:
    """Builds the learning-rate schedule.

    Args:
      num_steps: Length of the run.
      learning_rate: Peak learning rate, absolute.
      decay: A row of DECAYS.
      warmup_steps: Steps of linear warm-up.
      decay_steps: Step at which the decay ends; `num_steps` by default.
      start_factor: Factor of the peak at step 0, if there is a warm-up.
      end_factor: Factor of the peak at the end of the decay.

    Returns:
      Function of the number of updates done -> float32 learning rate.

    Raises:
      ConfigError: On an unknown decay or a rate that is not positive.
    """
    if not learning_rate > 0:
        raise ConfigError(f"train.learning_rate={learning_rate} must be positive")
    factor = choose(DECAYS, decay, "train.decay")
    end_step = num_steps if decay_steps is None else decay_steps

    def schedule(step):
        step = jnp.asarray(step, jnp.float32)
        return learning_rate * factor(
            step, warmup_steps, end_step, start_factor, end_factor
        )

    return schedule


def make_rate(train: ConfigDict) -> Callable:
    """Reads the learning-rate schedule from the `train` section.

    Args:
      train: The section.

    Returns:
      See `make_learning_rate`.

    Raises:
      ConfigError: On an unknown decay or a rate that is not positive.
    """
    return make_learning_rate(
        train.num_steps,
        train.learning_rate,
        train.decay,
        train.warmup_steps,
        train.decay_steps,
        train.start_factor,
        train.end_factor,
    )


def make_optimizer(
    section: Mapping[str, Any],
    learning_rate: Callable,
    grad_clip: float | None = None,
    freeze: Sequence[str] = (),
) -> optax.GradientTransformation:
    """Builds an optimiser, with clipping by global norm.

    Args:
      section: Config section {"kind": a row of OPTIMIZERS, its options}.
      learning_rate: Schedule from `make_learning_rate`.
      grad_clip: Maximum global norm of the gradients; 0 or None for no clipping.
      freeze: Paths of frozen parameters.

    Returns:
      An `optax.GradientTransformation`.

    Raises:
      ConfigError: On an unknown kind or option.
    """
    options = dict(section)
    kind = options.pop("kind", "adamw")
    row = choose(OPTIMIZERS, kind, "train.optimizer.kind")
    given = {"learning_rate": learning_rate}
    optimizer = build_row(row, kind, options, "train.optimizer", **given)
    if grad_clip:
        optimizer = optax.chain(optax.clip_by_global_norm(grad_clip), optimizer)
    return freeze_updates(optimizer, freeze)


def check_optimizer(train: ConfigDict) -> None:
    """Checks the optimiser and the learning rate in the section `train`.

    Args:
      train: The section.

    Raises:
      ConfigError: On an unknown choice or a value out of its range.
    """
    make_optimizer(to_dict(train.optimizer), make_rate(train), train.grad_clip)


def by_network(
    optimizers: Mapping[str, optax.GradientTransformation],
) -> optax.GradientTransformation:
    """Combines one optimiser per network into a single one.

    Args:
      optimizers: Name of a network -> its optimiser.

    Returns:
      optax.GradientTransformation of dicts with an entry per network, like its state.
    """

    def init(params):
        return {name: optimizers[name].init(tree) for name, tree in params.items()}

    def update(grads, state, params=None):
        updates, after = {}, {}
        for name, tree in grads.items():
            given = tree, state[name], params and params[name]
            updates[name], after[name] = optimizers[name].update(*given)
        return updates, after

    return optax.GradientTransformation(init, update)


def _adamw(learning_rate, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.01):
    """AdamW with PyTorch's defaults: weight decay 0.01 on every parameter."""
    return optax.adamw(learning_rate, b1, b2, eps, weight_decay=weight_decay)


def _adam(learning_rate, b1=0.9, b2=0.999, eps=1e-8):
    return optax.adam(learning_rate, b1, b2, eps)


DECAYS = {
    "constant": constant_factor,
    "cosine": cosine_factor,
    "linear": linear_factor,
}

OPTIMIZERS = {"adamw": _adamw, "adam": _adam}
