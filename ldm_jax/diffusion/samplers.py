"""Samplers: from noise to clean latents along a grid of noise levels.

A sampler is a pair of pure functions, `init(latents) -> state` and
`step(predict, latents, state, now, next, noise) -> (latents, state)`, that takes the
latents from one SchedulePoint to the next. `predict(latents, point) -> (x0, noise)` is
the denoiser, guidance included. `sample` owns everything else: the loop, randomness,
the start index, temperature and the hook that holds known pixels.

A step must give finite latents from pure noise (alpha 0) and to clean data (sigma 0),
where log-SNR and half of the usual divisions are infinite.
"""

import inspect

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax.diffusion.multistep import dpmpp_2m, dpmpp_2m_sde, plms, unipc
from ldm_jax.diffusion.schedule import SchedulePoint, add_noise
from ldm_jax.diffusion.single_step import ddim, ddpm, euler, euler_ancestral, heun
from ldm_jax.diffusion.spacing import FINAL_LEVELS, SPACINGS


def make_sampler(name, **options):
    """Makes the sampler called `name`.

    Args:
      name: Row of SAMPLERS.
      **options: What that sampler takes, such as `eta`; None means its default.

    Returns:
      A Sampler.

    Raises:
      ValueError: If the name is unknown, the sampler does not take an option or it is
        not in [0, 1].
    """
    if name not in SAMPLERS:
        raise ValueError(
            f"unknown sampler {name!r}: choose one of {', '.join(SAMPLERS)}"
        )
    given = {key: value for key, value in options.items() if value is not None}
    known = inspect.signature(SAMPLERS[name]).parameters
    for key in given:
        if key not in known:
            raise ValueError(
                f"sampler {name!r} has no option {key!r}: it takes "
                f"{', '.join(known) or 'none'}"
            )
    for key, value in given.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{key} must be in [0, 1], got {value}")
    return SAMPLERS[name](**given)


def make_points(schedule, num_steps, spacing="uniform", final_level=None, shift=1.0):
    """Chooses the noise levels that a sampler visits.

    Args:
      schedule: NoiseSchedule.
      num_steps: Number of steps, in [1, T].
      spacing: Row of SPACINGS.
      final_level: Where the last step leads, one of FINAL_LEVELS: "clean" data or the
        "first" training level, as in the original; None for what the spacing is known
        with. A grid that itself ends at the first level leads to clean data always.
      shift: Factor on sigma / alpha; more than 1 spends more steps at high noise (Esser
        et al. 2024, Eq. 23), for larger sizes than those of training.

    Returns:
      SchedulePoint of NumPy arrays [num_steps + 1], most noise first: alpha and sigma
      float32, timesteps int32, or float32 if there are levels between training's. The
      last timestep repeats the one before it. ("original" gives more steps than asked
      for where the original does.)

    Raises:
      ValueError: If an option is unknown or the spacing cannot give `num_steps`.
    """
    if spacing not in SPACINGS:
        raise ValueError(
            f"unknown spacing {spacing!r}: choose one of {', '.join(SPACINGS)}"
        )
    row = SPACINGS[spacing]
    final_level = row.final_level if final_level is None else final_level
    if final_level not in FINAL_LEVELS:
        raise ValueError(
            f"unknown final_level {final_level!r}: choose one of "
            f"{', '.join(FINAL_LEVELS)}"
        )
    total = schedule.num_train_timesteps
    if not 1 <= num_steps <= total:
        raise ValueError(
            f"num_steps must be from 1 to the schedule's {total} timesteps, got "
            f"{num_steps}"
        )
    if not shift > 0:
        raise ValueError(f"shift must be more than 0 (1 is off), got {shift}")
    points = schedule.between(row.timesteps(schedule, num_steps)[::-1])
    if shift != 1:
        points = schedule.in_proportion(points.alpha, shift * points.sigma)
    # Shifted to less noise, a grid may end below the first level, too.
    below = points.sigma[-1] <= schedule.sigma[0] * (1 + 1e-6)
    clean = final_level == "clean" or below
    last = (1.0, 0.0) if clean else (schedule.alpha[0], schedule.sigma[0])
    timesteps = np.append(points.timestep, points.timestep[-1])
    alpha, sigma = (
        np.append(values, end) for values, end in zip(points[1:], last, strict=True)
    )
    whole = np.issubdtype(timesteps.dtype, np.integer)
    return SchedulePoint(
        timesteps.astype(np.int32 if whole else np.float32),
        alpha.astype(np.float32),
        sigma.astype(np.float32),
    )


def deviation(point):
    """Standard deviation of noisy latents of unit variance at a scalar point."""
    return np.hypot(point.alpha, point.sigma)


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


# Constructors: (**options) -> Sampler. Euler's names are those that users look for.
SAMPLERS = {
    "ddpm": ddpm,
    "ddim": ddim,
    "plms": plms,
    "dpmpp_2m": dpmpp_2m,
    "dpmpp_2m_sde": dpmpp_2m_sde,
    "unipc": unipc,
    "euler": euler,
    "euler_ancestral": euler_ancestral,
    "heun": heun,
    "flow_euler": euler,
}
