"""What training carries from step to step, and the moving average of its weights."""

from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp


@flax.struct.dataclass
class TrainState:
    """Arrays only; modules and optimisers are closed over by the steps.

    Attributes:
      step: int32 scalar, the number of optimiser updates done.
      params: Parameters, a dict with one entry per network.
      ema_params: Moving average of `params` or of the part of it that is used after
        training; an empty dict where a config wants none.
      opt_state: Optimiser states, a dict with one entry per optimiser.
      stats: Statistics that no gradient trains: of norms, codebooks, logits; an empty
        dict where there are none.
    """

    step: jax.Array
    params: Any
    ema_params: Any
    opt_state: Any
    stats: Any


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
