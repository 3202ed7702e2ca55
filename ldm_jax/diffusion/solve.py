"""Runs a sampler along a grid of noise levels: sampling, and inversion to noise.

`sample` implements the loop, randomness, the start index, temperature and the
replacement of known latents, with which an unconditional model can inpaint.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax import draws
from ldm_jax.annotations import Array, Float, Key
from ldm_jax.diffusion.invariants import hoist_invariants
from ldm_jax.diffusion.sampling_method import Denoiser, SamplingMethod
from ldm_jax.diffusion.schedule import SchedulePoint, add_noise

# (latents, point, noise) -> latents, all [B, h, w, c].
Replacement = Callable[[Array, SchedulePoint, Array], Array]


def normal(
    rngs: Key[Array, " batch"], shape: Sequence[int]
) -> Float[Array, " batch *shape"]:
    """Draws standard normal noise, one sample per key.

    Sample k depends only on key k, not on the batch size or the number of devices.

    Args:
      rngs: Typed keys [B].
      shape: Shape of one sample, without the batch axis.

    Returns:
      float32 [B, *shape].
    """
    return jax.vmap(lambda rng: draws.normal(rng, shape))(rngs)


def replace_known(
    known: Float[Array, " batch *shape"], mask: Any, noise: Any = None
) -> Replacement:
    """Makes the hook for `sample` that replaces the known part of the latents.

    The replacement method of inpainting (Song et al. 2021, Score-based, App. I.2, call
    it imputation): before every step the known part is replaced by the known latents,
    noised to that step's level. In the final result it is not replaced.

    Args:
      known: Clean latents [B, h, w, c].
      mask: 1 where `known` is kept, 0 where latents are sampled; anything that
        broadcasts to `known`.
      noise: Noise to use at every step instead of fresh noise, [B, h, w, c].

    Returns:
      (latents, point, noise) -> latents.
    """

    def replacement(latents, point, fresh_noise):
        noised = add_noise(known, fresh_noise if noise is None else noise, point)
        return noised * mask + (1.0 - mask) * latents

    return replacement


def sample(
    sampler: SamplingMethod,
    predict: Denoiser,
    latents: Float[Array, " batch *shape"],
    points: SchedulePoint,
    rngs: Key[Array, " batch"],
    *,
    start: int = 0,
    replacement: Replacement | None = None,
    temperature: Any = 1.0,
) -> Float[Array, " batch *shape"]:
    """Runs a sampler from noise to clean latents in one `lax.scan`.

    Step i of sample k uses only randomness from fold_in(rngs[k], i). Wrap this in
    `jax.jit` together with the network.

    Args:
      sampler: SamplingMethod.
      predict: The denoiser, (latents, point) -> (x0, noise); point is scalar.
      latents: Latents at the level points[start], [B, h, w, c].
      points: SchedulePoint of arrays [S + 1], most noise first (`make_points`).
      rngs: Typed keys [B].
      start: Index of the first step; the last S - start steps are run.
      replacement: Hook (latents, point, noise) -> latents applied before every step,
        with fresh noise at every step; see `replace_known`.
      temperature: Factor on the noise of stochastic samplers.

    Returns:
      Latents at the level points[S], [B, h, w, c], in the type of `latents`.

    Raises:
      ValueError: If there is no step to run, or a step changes the structure or a shape
        of the latents or the state.
    """
    num_steps = len(points.alpha) - 1
    _check_start(start, num_steps)
    # A repeated step gets the same transition and the same noise again.
    counts = sampler.evaluations(num_steps - start)
    indices = np.repeat(np.arange(start, num_steps, dtype=np.int32), counts)
    fresh = np.diff(indices, prepend=-1) > 0
    points = jax.tree.map(jnp.asarray, points)

    shape, dtype = latents.shape[1:], latents.dtype

    def body(carry, inputs):
        latents, state = carry
        index, fresh = inputs
        now = jax.tree.map(lambda values: values[index], points)
        next = jax.tree.map(lambda values: values[index + 1], points)
        # If a sampler uses no noise, the compiler removes its computation.
        noise_rngs, hook_rngs = _step_rngs(rngs, index)
        noise = temperature * normal(noise_rngs, shape)
        if replacement is not None:
            replaced = replacement(latents, now, normal(hook_rngs, shape))
            latents = jnp.where(fresh, replaced.astype(dtype), latents)
        after = sampler.step(predict, latents, state, now, next, noise)
        return _in_the_types_of((latents, state), after), None

    carry = (latents, jax.tree.map(jnp.asarray, sampler.init(latents)))
    inputs = jnp.asarray(indices), jnp.asarray(fresh)
    (latents, _), _ = _scan(body, carry, inputs)
    return latents


def _scan(body, carry, inputs):
    """`jax.lax.scan` with loop-invariant computations hoisted."""
    first = jax.tree.map(lambda values: values[0], inputs)
    return jax.lax.scan(hoist_invariants(body, carry, first), carry, inputs)


def invert(
    predict: Denoiser,
    latents: Float[Array, " batch *shape"],
    points: SchedulePoint,
    *,
    start: int = 0,
    iterations: int = 1,
) -> Float[Array, " batch *shape"]:
    """Inverts DDIM: from clean latents to the noise from which it generates them.

    The probability flow ODE (Song et al. 2021, DDIM, Sec. 4.3), with the network
    evaluated at the noisier level of each step, like in DDIM. More iterations solve
    each step as a fixed point, until DDIM reverses it exactly (Pan et al. 2023).

    Args:
      predict: The denoiser, (latents, point) -> (x0, noise); without guidance, as the
        noise would otherwise be far from normal.
      latents: Latents at the level points[S], [B, h, w, c].
      points: SchedulePoint of arrays [S + 1], most noise first (`make_points`).
      start: Index of the level to reach; 0 is the most noise.
      iterations: Evaluations of the network in each step.

    Returns:
      Latents at the level points[start], [B, h, w, c], in the type of `latents`.

    Raises:
      ValueError: If there is no step to run, or `iterations` is less than 1.
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
            # At pure noise (alpha 0) the predicted noise is z itself, so the noise is
            # taken from the latents: what they contain besides x0.
            pure = (now.alpha == 0) & (next.sigma > 0)
            scale = now.sigma / jnp.where(pure, next.sigma, 1.0)
            noisier = jnp.where(pure, scale * (latents - next.alpha * x0), noisier)
            return noisier.astype(dtype)

        hoisted = hoist_invariants(solve, 0, latents)
        return jax.lax.fori_loop(0, iterations, hoisted, latents), None

    indices = np.arange(start, num_steps, dtype=np.int32)[::-1]
    latents, _ = _scan(body, latents, jnp.asarray(indices))
    return latents


def _check_start(start, num_steps):
    if not 0 <= start < num_steps:
        raise ValueError(f"start must be in [0, {num_steps}), got {start}")


def _in_the_types_of(before, after):
    """Casts (latents, state) to their types before the step."""
    shapes = [jax.tree.map(jnp.shape, carry) for carry in (before, after)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"a sampler's step must return (latents, state) shaped {shapes[0]}, as it "
            f"took them, but returned {shapes[1]}"
        )
    return jax.tree.map(_in_the_type_of, before, after)


def _in_the_type_of(old, new):
    # Keys have a type that nothing can be cast to.
    same = getattr(new, "dtype", None) == old.dtype
    return new if same else jnp.asarray(new, old.dtype)


def _step_rngs(rngs, index):
    """Two keys for each sample, for the step's noise and the hook's."""
    # Three keys are split off, one unused, so that seeds give the same samples as in
    # earlier versions.
    noise, _, hook = jax.vmap(
        lambda rng: jax.random.split(jax.random.fold_in(rng, index), 3), out_axes=1
    )(rngs)
    return noise, hook
