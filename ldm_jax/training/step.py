"""The training step of a stage with one loss and one optimiser."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ldm_jax.checkpoint import TrainState
from ldm_jax.config import to_dict
from ldm_jax.training.freeze import hold
from ldm_jax.training.optimizer import make_optimizer, make_rate


def make_update(config, freeze, draw, loss):
    """Makes `init` and `train_step` of a Stage.

    Args:
      config: ConfigDict with `seed` and `train`.
      freeze: Paths of parameters that stay as they are, see `training.freeze`.
      draw: rng -> params, a dict with one entry per network.
      loss: (params, frozen, batch, rng) -> (scalar, metrics).

    Returns:
      (init, train_step), see `Stage`.

    Raises:
      ConfigError: If the section `train` cannot work.
    """
    train = config.train
    rate = make_rate(train)
    optimizer = make_optimizer(to_dict(train.optimizer), rate, train.grad_clip, freeze)

    def init(rng):
        params = draw(rng)
        return TrainState(
            step=jnp.int32(0),
            params=params,
            # A copy: donated buffers must not be shared.
            ema_params=jax.tree.map(jnp.copy, params) if train.ema_decay else {},
            opt_state=optimizer.init(params),
            stats={},
        )

    def train_step(state, frozen, batch):
        rng = step_rngs(config.seed, state.step, ("loss",))["loss"]

        def gradients(rows, index, carry):
            def loss_of(params):
                key = jax.random.fold_in(rng, index)
                return loss(hold(params, freeze), frozen, rows, key)

            (_, metrics), grads = jax.value_and_grad(loss_of, has_aux=True)(
                state.params
            )
            return (grads, metrics), carry

        (grads, metrics), _ = accumulate(gradients, batch, (), train.accumulate_steps)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema_params = state.ema_params
        if train.ema_decay:
            ema_params = update_ema(ema_params, params, state.step, train.ema_decay)
        metrics["grad_norm"] = optax.tree.norm(grads)
        metrics["learning_rate"] = rate(state.step)
        state = state.replace(
            step=state.step + 1,
            params=params,
            ema_params=ema_params,
            opt_state=opt_state,
        )
        return state, metrics

    return init, train_step


class Stage(NamedTuple):
    """One trainable stage as pure functions; `training/loop.py` runs either.

    Attributes:
      init: rng -> TrainState.
      train_step: (state, frozen, batch) -> (state, metrics of name -> scalar).
      eval_step: (state, frozen, batch, rng) -> metrics of name -> scalar or array,
        means over the rows that batch["mask"] marks.
      preview: (state, frozen, batch, rng) -> dict of name -> images [B, H, W, 3] in
        [-1, 1].
      frozen: Pytree of weights that are used but not trained, or an empty dict.
      summarize: Makes scalars of the means of `eval_step` over all held-out rows.
      initial: Weights that a new run has in place of drawn ones: nested dict of NumPy
        arrays, a part of `params`; None for none.
    """

    init: Any
    train_step: Any
    eval_step: Any
    preview: Any
    frozen: Any
    summarize: Any = dict
    initial: Any = None


def ema_decay_at(step, decay):
    """Returns the original's warmed-up decay, min(decay, (1 + n) / (10 + n)).

    Args:
      step: Number of updates before this one; n = step + 1 counts this one (the
        original's `LitEma` increments first).
      decay: The decay it rises to.

    Returns:
      float32 scalar.
    """
    n = jnp.asarray(step, jnp.float32) + 1
    return jnp.minimum(decay, (1 + n) / (10 + n))


def update_ema(ema_params, params, step, decay):
    """Moves the average towards `params`: ema - (1 - d) (ema - params).

    Args:
      ema_params: Average before the update.
      params: Parameters after the optimiser's update.
      step: Number of updates before this one.
      decay: See `ema_decay_at`.

    Returns:
      The average after the update.
    """
    rate = 1 - ema_decay_at(step, decay)
    return jax.tree.map(lambda e, p: e - rate * (e - p), ema_params, params)


def step_rngs(seed, step, names):
    """Derives one key per name from (seed, step): nothing is stored or threaded.

    Args:
      seed: Python int, the config's seed.
      step: int32 scalar.
      names: Names of the keys.

    Returns:
      Dict of name -> typed PRNG key.
    """
    rng = jax.random.fold_in(jax.random.key(seed), step)
    return dict(zip(names, jax.random.split(rng, len(names)), strict=True))


def accumulate(gradients, batch, carry, parts):
    """Averages gradients and metrics over micro-batches.

    Micro-batch j takes every `parts`-th row, so that each device keeps its own rows.

    Args:
      gradients: (micro-batch, index of the micro-batch, carry) -> (tree of gradients
        and metrics to average, carry).
      batch: Dict of arrays [B, ...].
      carry: What the first micro-batch receives, batch statistics for example.
      parts: Number of micro-batches; divides B.

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
