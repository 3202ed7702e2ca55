"""The training step of all stages.

A stage defines how its networks are initialised and how their gradients are computed;
`make_step` turns these into the two pure functions that the loop compiles. The settings
that they need are read from a config into `StepOptions` before: traced code never reads
a config.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from ldm_jax.annotations import Array, Float, Int, Key, Num
from ldm_jax.checkpoint import TrainState
from ldm_jax.config import to_dict
from ldm_jax.seeds import make_key
from ldm_jax.training.freeze import stop_frozen_gradients
from ldm_jax.training.optimizer import make_optimizer, make_rate


class Stage(NamedTuple):
    """A trainable stage as pure functions: the interface between stage and loop.

    Every stage is made by a function (config, mesh, data, meta, workdir) -> (Stage,
    record), a row of STAGES: `meta` is that of the checkpoint to resume from, an empty
    dict in a new run, and `record` is stored in each checkpoint besides the config.

    Attributes:
      init: rng -> TrainState.
      train_step: (state, frozen, batch) -> (state, metrics of name -> scalar).
      eval_step: (state, frozen, batch, rng) -> metrics of name -> scalar or array,
        means over the rows selected by batch["mask"].
      preview: (state, frozen, batch, rng) -> dict of name -> images [B, H, W, 3] in
        [-1, 1]; None for a stage that makes no images.
      make_images: Makes the images for metrics of sets such as FID, see
        `held_out.made_images`; None for a stage that makes no images.
      frozen: Pytree of weights that are used but not trained, or an empty dict.
      summarize: Converts means of `eval_step` over all held-out rows to scalars.
      initial: Pretrained weights that replace initialised ones in a new run: nested
        dict of NumPy arrays, a part of `params`; None for none.
    """

    init: Callable
    train_step: Callable
    eval_step: Callable
    preview: Callable | None
    frozen: Any
    make_images: Callable | None = None
    summarize: Callable = dict
    initial: Any = None


@dataclasses.dataclass(frozen=True)
class StepOptions:
    """The settings of a config that a step needs.

    Attributes:
      seed: All randomness of a step derives from it and the step's number.
      rate: Learning rate, a function of the number of updates done.
      accumulate_steps: Micro-batches per step.
      ema_decay: Decay of the moving average of the weights; None for no average.
    """

    seed: int
    rate: Callable
    accumulate_steps: int = 1
    ema_decay: float | None = None


def step_options(config: ConfigDict) -> StepOptions:
    """Reads the StepOptions of a config.

    Args:
      config: ConfigDict with `seed` and `train`.

    Returns:
      StepOptions.

    Raises:
      ConfigError: If the learning rate is invalid.
    """
    train = config.train
    return StepOptions(
        seed=config.seed,
        rate=make_rate(train),
        accumulate_steps=train.accumulate_steps,
        ema_decay=train.ema_decay,
    )


def log_norm(
    before: TrainState, after: TrainState, grads: Any, metrics: Mapping, carry: Any
) -> tuple[TrainState, dict]:
    """Finishes a step: adds the norm of all gradients to the metrics.

    Args:
      before: State before the update.
      after: State after it.
      grads: Gradients, averaged over micro-batches.
      metrics: Metrics so far.
      carry: Carry of the last micro-batch.

    Returns:
      (state, metrics).
    """
    del before, carry
    return after, {**metrics, "grad_norm": optax.tree.norm(grads)}


def make_step(
    options: StepOptions,
    optimizer: optax.GradientTransformation,
    draw: Callable,
    gradients: Callable,
    *,
    rng_names: Sequence[str] = ("loss",),
    averaged: Sequence[str] | None = None,
    begin: Callable = lambda state: (),
    finish: Callable = log_norm,
) -> tuple[Callable, Callable]:
    """Makes `init` and `train_step` of a Stage, with one or several networks.

    Args:
      options: StepOptions.
      optimizer: Optimiser of all networks; see `optimizer.by_network` for one each.
      draw: rng -> (params, stats): a dict with one entry per network, and statistics
        without gradient, or an empty dict.
      gradients: (state, frozen, micro-batch, rngs, index of the micro-batch, carry) ->
        ((gradients like `params`, metrics), carry).
      rng_names: Names of the keys in `rngs`, which differ between micro-batches.
      averaged: Networks with a moving average; None for all.
      begin: State -> carry of the first micro-batch.
      finish: (state before, state after, gradients, metrics, last carry) -> (state,
        metrics): applied after the optimisers' updates.

    Returns:
      (init, train_step), see `Stage`.
    """

    def init(rng):
        """Initialises the TrainState of step 0."""
        params, stats = draw(rng)
        average = {name: params[name] for name in averaged or params}
        return TrainState(
            step=jnp.int32(0),
            params=params,
            # A copy: donated buffers must not be shared.
            ema_params=jax.tree.map(jnp.copy, average) if options.ema_decay else {},
            opt_state=optimizer.init(params),
            stats=stats,
        )

    def train_step(state, frozen, batch):
        """Trains for one step; returns the new TrainState and the step's metrics."""
        rngs = step_rngs(options.seed, state.step, rng_names)

        def micro_batch(rows, index, carry):
            keys = {name: jax.random.fold_in(rng, index) for name, rng in rngs.items()}
            return gradients(state, frozen, rows, keys, index, carry)

        (grads, metrics), carry = accumulate(
            micro_batch, batch, begin(state), options.accumulate_steps
        )
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        average = state.ema_params
        if options.ema_decay:
            moved = {name: params[name] for name in average}
            average = update_ema(average, moved, state.step, options.ema_decay)
        after = state.replace(
            step=state.step + 1, params=params, ema_params=average, opt_state=opt_state
        )
        metrics["learning_rate"] = options.rate(state.step)
        return finish(state, after, grads, metrics, carry)

    return init, train_step


def make_loss_steps(
    config: ConfigDict, freeze: Sequence[str], draw: Callable, loss: Callable
) -> tuple[Callable, Callable, Callable]:
    """Makes the steps of a stage with one loss and one optimiser.

    Args:
      config: ConfigDict with `seed` and `train`.
      freeze: Paths of frozen parameters, see `training.freeze`.
      draw: rng -> params, a dict with one entry per network.
      loss: (params, frozen, batch, rng, train=True, weights=None) -> (scalar, metrics);
        `weights` [B] are those of the examples.

    Returns:
      (init, train_step, eval_step), see `Stage`.

    Raises:
      ConfigError: If the section `train` is invalid.
    """
    train, options = config.train, step_options(config)
    section = to_dict(train.optimizer)
    optimizer = make_optimizer(section, options.rate, train.grad_clip, freeze)

    def gradients(state, frozen, rows, rngs, index, carry):
        del index

        def loss_of(params):
            params = stop_frozen_gradients(params, freeze)
            return loss(params, frozen, rows, rngs["loss"])

        (_, metrics), grads = jax.value_and_grad(loss_of, has_aux=True)(state.params)
        return (grads, metrics), carry

    def eval_step(state, frozen, batch, rng):
        params = state.ema_params or state.params
        weights = batch["mask"].astype(jnp.float32)
        return loss(params, frozen, batch, rng, train=False, weights=weights)[1]

    init, train_step = make_step(
        options, optimizer, lambda rng: (draw(rng), {}), gradients
    )
    return init, train_step, eval_step


def ema_decay_at(step: int | Int[Array, ""], decay: float) -> Float[Array, ""]:
    """Returns CompVis' warmed-up decay, min(decay, (1 + n) / (10 + n)).

    Args:
      step: Number of updates before this one; n = step + 1 counts this one (CompVis'
        `LitEma` increments first).
      decay: The final decay.

    Returns:
      float32 scalar.
    """
    n = jnp.asarray(step, jnp.float32) + 1
    return jnp.minimum(decay, (1 + n) / (10 + n))


def update_ema(
    ema_params: Any, params: Any, step: int | Int[Array, ""], decay: float
) -> Any:
    """Updates the moving average with `params`: ema - (1 - d) (ema - params).

    Args:
      ema_params: Average before the update.
      params: Parameters after the optimiser's update.
      step: Number of updates before this one, a scalar.
      decay: See `ema_decay_at`.

    Returns:
      The average after the update.
    """
    rate = 1 - ema_decay_at(step, decay)
    return jax.tree.map(lambda e, p: e - rate * (e - p), ema_params, params)


def step_rngs(
    seed: int, step: int | Int[Array, ""], names: Sequence[str]
) -> dict[str, Key[Array, ""]]:
    """Derives one key per name from (seed, step), so that no key must be stored.

    Args:
      seed: The config's seed.
      step: Number of updates done, a scalar.
      names: Names of the keys.

    Returns:
      Dict of name -> typed PRNG key.
    """
    rng = jax.random.fold_in(make_key(seed), step)
    return dict(zip(names, jax.random.split(rng, len(names)), strict=True))


def accumulate(
    gradients: Callable,
    batch: Mapping[str, Num[Array, "batch ..."]],
    carry: Any,
    parts: int,
) -> tuple[Any, Any]:
    """Averages gradients and metrics over micro-batches.

    Micro-batch j has every `parts`-th row, so that each device keeps its own rows.

    Args:
      gradients: (micro-batch, index of the micro-batch, carry) -> (tree of gradients
        and metrics to average, carry).
      batch: Dict of arrays [B, ...].
      carry: Carry of the first micro-batch, for example batch statistics.
      parts: Number of micro-batches, a divisor of B.

    Returns:
      (averaged tree, last carry).
    """
    if parts == 1:
        return gradients(batch, 0, carry)
    micro = {
        key: jnp.swapaxes(value.reshape(-1, parts, *value.shape[1:]), 0, 1)
        for key, value in batch.items()
    }

    def body(loop, index):
        total, carry = loop
        rows = {key: value[index] for key, value in micro.items()}
        result, carry = gradients(rows, index, carry)
        return (jax.tree.map(jnp.add, total, result), carry), None

    shapes = jax.eval_shape(
        lambda: gradients({key: value[0] for key, value in micro.items()}, 0, carry)[0]
    )
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    (total, carry), _ = jax.lax.scan(body, (zeros, carry), jnp.arange(parts))
    return jax.tree.map(lambda leaf: leaf / parts, total), carry
