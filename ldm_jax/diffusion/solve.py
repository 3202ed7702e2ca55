"""Runs a sampler along a grid of noise levels: sampling, and inversion to noise.

`sample` owns the loop, randomness, the start index, temperature and the hook that holds
known pixels.
"""

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax.diffusion.schedule import add_noise


def normal(rngs, shape):
    """Draws standard normal noise, one sample per key.

    Sample k depends on key k alone, so neither the batch size nor the number of
    devices changes it.

    Args:
      rngs: Typed keys [B].
      shape: Shape of one sample, without the batch axis.

    Returns:
      float32 [B, *shape].
    """
    return jax.vmap(lambda rng: jax.random.normal(rng, shape))(rngs)


def hold_known(known, mask, noise=None):
    """Makes the hook for `sample` that holds the known part of the latents.

    Before every step the known part is replaced by the known latents, noised to that
    step's level. The last result is not replaced.

    Args:
      known: Clean latents [B, h, w, c].
      mask: 1 where `known` is to be kept, 0 where latents are sampled; anything that
        broadcasts to `known`.
      noise: Noise to use at every step instead of fresh one, [B, h, w, c].

    Returns:
      (latents, point, noise) -> latents.
    """

    def hold(latents, point, fresh_noise):
        noised = add_noise(known, fresh_noise if noise is None else noise, point)
        return noised * mask + (1.0 - mask) * latents

    return hold


def sample(
    sampler,
    predict,
    latents,
    points,
    rngs,
    *,
    start=0,
    hold=None,
    temperature=1.0,
    noise_dropout=0.0,
    noises=None,
    return_trajectory=False,
):
    """Runs a sampler from noise to clean latents in one `lax.scan`.

    Step i of sample k uses randomness from fold_in(rngs[k], i) alone. Wrap it in
    `jax.jit` together with the network.

    Args:
      sampler: Sampler.
      predict: The denoiser, (latents, point) -> (x0, noise); point is scalar.
      latents: Latents at the level points[start], [B, h, w, c].
      points: SchedulePoint of arrays [S + 1], most noise first (`make_points`).
      rngs: Typed keys [B].
      start: Index of the first step to run; the S - start last steps run.
      hold: Hook (latents, point, noise) -> latents applied before every step, with
        noise fresh at every step; see `hold_known`.
      temperature: Factor on the noise of stochastic samplers.
      noise_dropout: Share of noise elements set to 0 (the others are scaled up).
      noises: Noise to use instead of random, [S, B, h, w, c]; step i takes noises[i].
      return_trajectory: Whether to return the latents after every step, too.

    Returns:
      Latents at the level points[S], dtype as given; with `return_trajectory` also
      [S - start, B, h, w, c].

    Raises:
      ValueError: If no step is left to run.
    """
    num_steps = len(points.alpha) - 1
    _check_start(start, num_steps)
    # A repeated step sees the same transition and the same noise again.
    counts = sampler.evaluations(num_steps - start)
    indices = np.repeat(np.arange(start, num_steps, dtype=np.int32), counts)
    fresh = np.diff(indices, prepend=-1) > 0
    points, noises = jax.tree.map(jnp.asarray, (points, noises))

    shape, dtype = latents.shape[1:], latents.dtype

    def body(carry, inputs):
        latents, state = carry
        index, fresh = inputs
        now = jax.tree.map(lambda values: values[index], points)
        next = jax.tree.map(lambda values: values[index + 1], points)
        # What a sampler does not use, the compiler drops, with the drawing of it.
        noise_rngs, dropout_rngs, hold_rngs = _step_rngs(rngs, index)
        noise = normal(noise_rngs, shape) if noises is None else noises[index]
        noise = temperature * _dropout(dropout_rngs, noise, noise_dropout)
        if hold is not None:
            held = hold(latents, now, normal(hold_rngs, shape)).astype(dtype)
            latents = jnp.where(fresh, held, latents)
        latents, state = sampler.step(predict, latents, state, now, next, noise)
        latents = latents.astype(dtype)
        return (latents, state), latents if return_trajectory else None

    carry = (latents, sampler.init(latents))
    (latents, _), trajectory = jax.lax.scan(body, carry, (indices, fresh))
    ends = np.cumsum(counts) - 1
    return (latents, trajectory[ends]) if return_trajectory else latents


def invert(predict, latents, points, *, start=0, iterations=1, return_trajectory=False):
    """Runs DDIM backwards: from clean latents to the noise that it draws them from.

    The probability flow ODE (Song et al. 2021, Sec. 4.3), with the network evaluated at
    the level that a step leads to, as DDIM does on its way back. With more iterations
    each step is solved for what DDIM takes back exactly (Pan et al. 2023).

    Args:
      predict: The denoiser, (latents, point) -> (x0, noise); without guidance, or the
        noise is far from normal.
      latents: Latents at the level points[S], [B, h, w, c].
      points: SchedulePoint of arrays [S + 1], most noise first (`make_points`).
      start: Index of the level to reach; 0 is the most noise.
      iterations: Evaluations of the network in each step.
      return_trajectory: Whether to return the latents at every level, too.

    Returns:
      Latents at the level points[start], dtype as given; with `return_trajectory` also
      [S - start, B, h, w, c], least noise first.

    Raises:
      ValueError: If no step is left to run, or without iterations.
    """
    num_steps = len(points.alpha) - 1
    _check_start(start, num_steps)
    if iterations < 1:
        raise ValueError(f"iterations must be at least 1, got {iterations}")
    points, dtype = jax.tree.map(jnp.asarray, points), latents.dtype

    def body(latents, index):
        now = jax.tree.map(lambda values: values[index], points)
        next = jax.tree.map(lambda values: values[index + 1], points)
        ratio = now.alpha / next.alpha

        def solve(_, guess):
            x0, noise = predict(guess, now)
            noisier = ratio * latents + (now.sigma - ratio * next.sigma) * noise
            # Pure noise is what it holds beyond x0: there the noise is z itself.
            pure = (now.alpha == 0) & (next.sigma > 0)
            scale = now.sigma / jnp.where(pure, next.sigma, 1.0)
            noisier = jnp.where(pure, scale * (latents - next.alpha * x0), noisier)
            return noisier.astype(dtype)

        latents = jax.lax.fori_loop(0, iterations, solve, latents)
        return latents, latents if return_trajectory else None

    indices = np.arange(start, num_steps, dtype=np.int32)[::-1]
    latents, trajectory = jax.lax.scan(body, latents, indices)
    return (latents, trajectory) if return_trajectory else latents


def _check_start(start, num_steps):
    if not 0 <= start < num_steps:
        raise ValueError(f"start must be in [0, {num_steps}), got {start}")


def _step_rngs(rngs, index):
    """Three keys for each sample, typed keys [3, B]."""
    return jax.vmap(
        lambda rng: jax.random.split(jax.random.fold_in(rng, index), 3), out_axes=1
    )(rngs)


def _dropout(rngs, noise, rate):
    if not rate:
        return noise
    shape, keep = noise.shape[1:], 1.0 - rate
    kept = jax.vmap(lambda rng: jax.random.bernoulli(rng, keep, shape))(rngs)
    return jnp.where(kept, noise / keep, 0.0)
