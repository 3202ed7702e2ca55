"""Codebook updates without gradients: moving averages and restarts of dead codes.

Both depend on the latents of a step's global batch that each code was assigned
(`Totals`), and are applied after the optimisers' updates. Usage is counted relative to
uniform usage, so that a threshold means the same for every batch and codebook: 1 is the
usage of each code if all are used equally.
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

# Decay of the average usage if the codebook itself is not a moving average.
USAGE_DECAY = 0.99


@struct.dataclass
class Totals:
    """The latents of a step's global batch by code, summed over micro-batches.

    Attributes:
      counts: Number of latents assigned to each code, [num_codes].
      sums: Sum of these latents, [num_codes, c].
      drawn: A random latent for each code to restart from, [num_codes, c].
    """

    counts: Any
    sums: Any
    drawn: Any


@dataclasses.dataclass(frozen=True)
class CodebookOptions:
    """Options of codebook updates besides those by gradients.

    Attributes:
      shape: (number of codes, channels of a code).
      path: Path of the codes in the autoencoder's parameters.
      ema_decay: See `update_codebook`.
      restart_threshold: See `update_codebook`.
    """

    shape: tuple[int, int]
    path: tuple[str, ...]
    ema_decay: float | None = None
    restart_threshold: float = 0.0

    def init(self) -> dict[str, Float[Array, "..."]]:
        """Makes the initial state of `update_codebook`.

        Returns:
          Dict of arrays [num_codes, ...], empty if no state is needed.
        """
        return init_codebook_stats(*self.shape, self.ema_decay, self.restart_threshold)


def empty_totals(num_codes: int, features: int) -> Totals:
    """Makes empty Totals.

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
    """Adds a micro-batch to the totals.

    Args:
      totals: Totals so far.
      quantized: `Quantized` of the micro-batch.
      rng: Key to draw latents, a scalar.
      index: Index of the micro-batch.
      parts: Number of micro-batches; each provides an equal part of the drawn latents.

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
    """Draws random latents, none of them twice if there are enough.

    Args:
      rng: Key.
      latents: [B, h, w, c].
      count: Number of latents to draw.

    Returns:
      [count, c], one from each of `count` equal segments of the batch.
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
    """Makes the initial state of `update_codebook`.

    Args:
      num_codes: Size of the codebook.
      features: Channels of a code.
      ema_decay: See `update_codebook`.
      restart_threshold: Likewise.

    Returns:
      Dict of "usage" [num_codes] and, for a moving average, "sums" [num_codes, c];
      empty with neither option.
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
    """Sets codes to averages of their latents, and dead codes to latents.

    Moving average (van den Oord et al. 2017, App. A.1): with n and s a code's count and
    sum, N <- d N + (1 - d) n, m <- d m + (1 - d) s, e = m / N. N and m start as if each
    code had uniform usage with latents equal to itself; a code without latents does not
    move.

    A code is dead if the moving average of its usage falls below the threshold
    (Dhariwal et al. 2020, Jukebox, Sec. 3). It is set to a latent of the batch, with
    its usage reset to uniform.

    Args:
      codes: Codebook before the step, [num_codes, c].
      optimized: Codebook after the optimiser's update; used without `ema_decay`.
      stats: From `init_codebook_stats` or the step before.
      totals: Totals of the step.
      step: Number of steps done before.
      ema_decay: Decay of the average; None leaves the codebook to the optimiser.
      restart_threshold: Fraction of uniform usage below which a code is dead; 0 for
        no restarts.

    Returns:
      (codes, restarted, stats): the codebook after the step, which codes were restarted
      (bool [num_codes]), and the state.
    """
    rate = 1 - (ema_decay or USAGE_DECAY)
    even = jnp.sum(totals.counts) / len(codes)
    usage = stats["usage"] + rate * (totals.counts / even - stats["usage"])
    if ema_decay:
        # The codes may come from another run, so they are only known at the first step.
        sums = jnp.where(step == 0, codes, stats["sums"])
        sums = sums + rate * (totals.sums / even - sums)
        # The usage of a code that is never used decays to zero.
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
    """Applies `update_codebook` to a state.

    Args:
      options: CodebookOptions.
      before: State before the step.
      after: State after the optimisers' updates.
      totals: Totals of the step.

    Returns:
      (state, metrics): metrics of name -> scalar, see `quantizer.codebook_metrics`;
      with restarts also "codebook_restarts", their number.
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
        # The average of a restarted code's old values is meaningless.
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
    """Returns parameters with the codes at a path replaced."""
    tree = codes
    for depth in reversed(range(len(path))):
        tree = _get(params, path[:depth]) | {path[depth]: tree}
    return params | {"autoencoder": tree}
