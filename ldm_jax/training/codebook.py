"""The codebook between steps: moving averages and the restart of dead codes.

Both are a function of what a step's global batch gave each code (`Totals`), applied
once the optimisers have moved. Use is counted in multiples of even use, so that a
threshold means the same for every batch and codebook: 1 is what each code would get if
all were used alike.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from ldm_jax.annotations import Array, Bool, Float, Int, Key
from ldm_jax.checkpoint import TrainState
from ldm_jax.models.quantizer import Quantized, codebook_metrics

# Decay of the average use where the codebook itself is no moving average.
USAGE_DECAY = 0.99


@struct.dataclass
class Totals:
    """What a step's global batch gave to each code, summed over micro-batches.

    Attributes:
      counts: Number of latents, [num_codes].
      sums: Sum of latents, [num_codes, c].
      drawn: A latent drawn for each code, [num_codes, c]: what it restarts from.
    """

    counts: Any
    sums: Any
    drawn: Any


@dataclasses.dataclass(frozen=True)
class CodebookOptions:
    """How a codebook moves beside what its gradient does.

    Attributes:
      shape: (number of codes, channels of a code).
      path: Names under which the codes lie in the autoencoder's parameters.
      ema_decay: See `update_codebook`.
      restart_threshold: See `update_codebook`.
    """

    shape: tuple[int, int]
    path: tuple[str, ...]
    ema_decay: float | None = None
    restart_threshold: float = 0.0

    def init(self) -> dict[str, Float[Array, "..."]]:
        """Draws what `update_codebook` keeps between steps.

        Returns:
          Dict of arrays [num_codes, ...], empty where nothing is kept.
        """
        return init_codebook_stats(*self.shape, self.ema_decay, self.restart_threshold)


def empty_totals(num_codes: int, features: int) -> Totals:
    """Makes the Totals of no latents.

    Args:
      num_codes: Size of the codebook.
      features: Channels of a code.

    Returns:
      Totals.
    """
    zeros = jnp.zeros((num_codes, features))
    return Totals(jnp.zeros(num_codes), zeros, zeros)


def add_totals(
    totals: Totals,
    quantized: Quantized,
    rng: Key[Array, ""],
    index: int | Int[Array, ""],
    parts: int,
) -> Totals:
    """Adds a micro-batch.

    Args:
      totals: Totals so far.
      quantized: `Quantized` of the micro-batch.
      rng: Key of the draw, a scalar.
      index: Index of the micro-batch.
      parts: Number of micro-batches; each fills an equal part of what is drawn.

    Returns:
      Totals.
    """
    num_codes = len(totals.counts)
    ours = (jnp.arange(num_codes) % parts == index)[:, None]
    drawn = draw_latents(rng, quantized.encoded, num_codes)
    return Totals(
        counts=totals.counts + quantized.counts,
        sums=totals.sums + quantized.sums,
        drawn=jnp.where(ours, drawn, totals.drawn),
    )


def draw_latents(
    rng: Key[Array, ""], latents: Float[Array, "batch h w c"], count: int
) -> Float[Array, "count c"]:
    """Draws latents without drawing one twice, where there are enough.

    Args:
      rng: Key.
      latents: [B, h, w, c].
      count: How many.

    Returns:
      [count, c], one from each of `count` equal stretches of the batch.
    """
    flat = latents.reshape(-1, latents.shape[-1])
    size = len(flat)
    stretch = max(size // count, 1)
    start, within = jax.random.split(rng)
    places = stretch * jnp.arange(count) + jax.random.randint(start, (), 0, size)
    places += jax.random.randint(within, (count,), 0, stretch)
    return flat[places % size]


def init_codebook_stats(
    num_codes: int,
    features: int,
    ema_decay: float | None = None,
    restart_threshold: float = 0.0,
) -> dict[str, Float[Array, "..."]]:
    """Makes the state that `update_codebook` keeps.

    Args:
      num_codes: Size of the codebook.
      features: Channels of a code.
      ema_decay: See `update_codebook`.
      restart_threshold: Likewise.

    Returns:
      Dict of "usage" [num_codes] and, of a moving average, "sums" [num_codes, c]; empty
      where neither is asked for.
    """
    stats = {}
    if ema_decay or restart_threshold:
        stats["usage"] = jnp.ones(num_codes)
    if ema_decay:
        stats["sums"] = jnp.zeros((num_codes, features))
    return stats


def update_codebook(
    codes: Float[Array, "num_codes c"],
    optimized: Float[Array, "num_codes c"],
    stats: Mapping[str, Float[Array, "..."]],
    totals: Totals,
    step: int | Int[Array, ""],
    *,
    ema_decay: float | None = None,
    restart_threshold: float = 0.0,
) -> tuple[Float[Array, "num_codes c"], Bool[Array, " num_codes"], dict]:
    """Moves codes to averages of their latents, and dead codes to latents.

    A moving average (van den Oord et al. 2017, App. A.1): with n and s a code's count
    and sum, N <- d N + (1 - d) n, m <- d m + (1 - d) s, e = m / N. N and m start as if
    each code had got even use of itself; a code that gets nothing stays where it is.

    A code is dead when the moving average of its use falls below the threshold
    (Dhariwal et al. 2020, Jukebox, Sec. 3). It becomes a latent of the batch, as if it
    had had even use.

    Args:
      codes: Codebook before the step, [num_codes, c].
      optimized: Codebook after the optimiser's update; taken where there is no average.
      stats: From `init_codebook_stats` or the step before.
      totals: Totals of the step.
      step: Number of steps done before.
      ema_decay: Decay of the average; None leaves the codebook to the optimiser.
      restart_threshold: Fraction of even use below which a code is dead; 0 for never.

    Returns:
      (codes, restarted, stats): the codebook after the step, which codes were restarted
      (bool [num_codes]), and the state.
    """
    rate = 1 - (ema_decay or USAGE_DECAY)
    even = jnp.sum(totals.counts) / len(codes)
    usage = stats["usage"] + rate * (totals.counts / even - stats["usage"])
    if ema_decay:
        # At the first step the codes may be another run's: only now are they known.
        sums = jnp.where(step == 0, codes, stats["sums"])
        sums = sums + rate * (totals.sums / even - sums)
        # In the long run a code that gets nothing has no use left to divide by.
        means = sums / jnp.maximum(usage, 1e-20)[:, None]
        codes = jnp.where((usage > 1e-20)[:, None], means, codes)
    else:
        codes = optimized
    restarted = usage < restart_threshold
    codes = jnp.where(restarted[:, None], totals.drawn, codes)
    stats = {"usage": jnp.where(restarted, 1.0, usage)}
    if ema_decay:
        stats["sums"] = jnp.where(restarted[:, None], totals.drawn, sums)
    return codes, restarted, stats


def move_codes(
    options: CodebookOptions, before: TrainState, after: TrainState, totals: Totals
) -> tuple[TrainState, dict[str, Any]]:
    """Averages and restarts the codes of a state.

    Args:
      options: CodebookOptions.
      before: State before the step.
      after: State once the optimisers have moved.
      totals: Totals of the step.

    Returns:
      (state, metrics): name -> scalar, see `quantizer.codebook_metrics`; with restarts
      "codebook_restarts", how many there were.
    """
    metrics = codebook_metrics(totals.counts)
    if "codebook" not in before.stats:
        return after, metrics
    codes, restarted, stats = update_codebook(
        _get(before.params, options.path),
        _get(after.params, options.path),
        before.stats["codebook"],
        totals,
        before.step,
        ema_decay=options.ema_decay,
        restart_threshold=options.restart_threshold,
    )
    average = after.ema_params
    if average:
        # What a restarted code was says nothing of what it is.
        kept = jnp.where(restarted[:, None], codes, _get(average, options.path))
        average = _put(average, options.path, kept)
    if options.restart_threshold:
        metrics["codebook_restarts"] = jnp.sum(restarted)
    after = after.replace(
        params=_put(after.params, options.path, codes),
        ema_params=average,
        stats=after.stats | {"codebook": stats},
    )
    return after, metrics


def _get(params, path):
    """The part of the autoencoder's parameters at a path."""
    return functools.reduce(lambda tree, name: tree[name], path, params["autoencoder"])


def _put(params, path, codes):
    """Returns parameters with other codes."""
    tree = codes
    for depth in reversed(range(len(path))):
        tree = _get(params, path[:depth]) | {path[depth]: tree}
    return params | {"autoencoder": tree}
