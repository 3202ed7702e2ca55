"""The codebook between steps: moving averages and the restart of dead codes.

Both are a function of what a step's global batch gave each code (`Totals`), applied
once the optimisers have moved. Use is counted in shares of even use, so that a
threshold means the same for every batch and codebook: 1 is what each code would get if
all were used alike.
"""

import jax
import jax.numpy as jnp
from flax import struct

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

    counts: jax.Array
    sums: jax.Array
    drawn: jax.Array


def empty_totals(num_codes, features):
    """Returns the Totals of no latents."""
    zeros = jnp.zeros((num_codes, features))
    return Totals(jnp.zeros(num_codes), zeros, zeros)


def add_totals(totals, quantized, rng, index, parts):
    """Adds a micro-batch.

    Args:
      totals: Totals so far.
      quantized: `Quantized` of the micro-batch.
      rng: Key of the draw.
      index: Index of the micro-batch.
      parts: Number of micro-batches; each fills its share of what is drawn.

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


def draw_latents(rng, latents, count):
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


def init_codebook_stats(num_codes, features, ema_decay=None, restart_threshold=0.0):
    """Returns the state that `update_codebook` keeps: arrays, or an empty dict."""
    stats = {}
    if ema_decay or restart_threshold:
        stats["usage"] = jnp.ones(num_codes)
    if ema_decay:
        stats["sums"] = jnp.zeros((num_codes, features))
    return stats


def update_codebook(
    codes, optimized, stats, totals, step, *, ema_decay=None, restart_threshold=0.0
):
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
      restart_threshold: Share of even use below which a code is dead; 0 for never.

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
