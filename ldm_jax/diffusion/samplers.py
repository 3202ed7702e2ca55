"""Samplers: from noise to clean latents along a grid of noise levels.

A sampler is a pair of pure functions, `init(latents) -> state` and
`step(predict, latents, state, now, next, noise) -> (latents, state)`, that takes the
latents from one SchedulePoint to the next. `predict(latents, point) -> (x0, noise)` is
the denoiser, guidance included. `sample` owns everything else: the loop, randomness,
the start index, temperature and the hook that holds known pixels.
"""

import functools
import inspect
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax.diffusion.schedule import (
    SchedulePoint,
    add_noise,
    posterior,
    posterior_variance,
    predict_x0,
)
from ldm_jax.diffusion.spacing import SPACINGS


class Sampler(NamedTuple):
    """One way to take latents from a noise level to the next.

    Attributes:
      init: latents -> state, any pytree.
      step: (predict, latents, state, now, next, noise) -> (latents, state); `noise` is
        standard normal times temperature.
      order: Order of convergence on a grid uniform in log-SNR.
      first_repeats: How many more times the first transition is stepped, for samplers
        that need several network evaluations to get going.
    """

    init: Callable
    step: Callable
    order: int
    first_repeats: int = 0


def make_sampler(name, **options):
    """Makes the sampler called `name`.

    Args:
      name: Row of SAMPLERS.
      **options: What that sampler takes, such as `eta`; None means its default.

    Returns:
      A Sampler.

    Raises:
      ValueError: If the name is unknown or the sampler does not take an option.
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
                f"sampler {name!r} has no option {key!r}: it takes {', '.join(known)}"
            )
    return SAMPLERS[name](**given)


def make_points(schedule, num_steps, spacing="uniform"):
    """Chooses the noise levels that a sampler visits.

    The last level is training level 0, as in the original, or clean data if the
    grid itself already ends at level 0. Its timestep repeats the one before it.

    Args:
      schedule: NoiseSchedule.
      num_steps: Number of steps, in [1, T].
      spacing: Row of SPACINGS.

    Returns:
      SchedulePoint of NumPy arrays [num_steps + 1], most noise first: int32, float32,
      float32. ("original" gives more steps than asked for where the original does.)

    Raises:
      ValueError: If the spacing is unknown, or cannot give `num_steps`.
    """
    if spacing not in SPACINGS:
        raise ValueError(
            f"unknown spacing {spacing!r}: choose one of {', '.join(SPACINGS)}"
        )
    total = schedule.num_train_timesteps
    if not 1 <= num_steps <= total:
        raise ValueError(
            f"num_steps must be from 1 to the schedule's {total} timesteps, got "
            f"{num_steps}"
        )
    timesteps = SPACINGS[spacing](total, num_steps)[::-1]
    alpha, sigma = schedule.table.alpha[timesteps], schedule.table.sigma[timesteps]
    clean = timesteps[-1] == 0
    alpha = np.append(alpha, 1.0 if clean else schedule.table.alpha[0])
    sigma = np.append(sigma, 0.0 if clean else schedule.table.sigma[0])
    return SchedulePoint(
        np.append(timesteps, timesteps[-1]).astype(np.int32),
        alpha.astype(np.float32),
        sigma.astype(np.float32),
    )


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
    if not 0 <= start < num_steps:
        raise ValueError(f"start must be in [0, {num_steps}), got {start}")
    # A repeated first step sees the same transition and the same noise again.
    repeats = sampler.first_repeats
    position = np.arange(num_steps - start + repeats, dtype=np.int32)
    indices = start + np.maximum(position - repeats, 0)
    fresh = (position == 0) | (position > repeats)
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
    return (latents, trajectory[repeats:]) if return_trajectory else latents


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


def ddpm(v_posterior=0.0):
    """Ancestral sampling (Ho et al. 2020, Algorithm 2), for any grid.

    Args:
      v_posterior: Variance of a step, from 0 (the posterior's) to 1 (beta).
    """

    def step(predict, latents, state, now, next, noise):
        x0, _ = predict(latents, now)
        coefficients = posterior(now, next)
        variance = posterior_variance(coefficients, v_posterior)
        # No noise on the way to clean data, whatever the variance there.
        std = jnp.where(next.sigma > 0, _safe_sqrt(variance), 0.0)
        mean = coefficients.x0_weight * x0 + coefficients.latents_weight * latents
        return mean + std * noise, state

    return Sampler(init=_no_state, step=step, order=1)


def ddim(eta=0.0):
    """Denoising diffusion implicit models (Song et al. 2021, Eq. 12).

    Args:
      eta: Share of the ancestral noise: 0 is deterministic, 1 is ancestral.
    """

    def step(predict, latents, state, now, next, noise):
        x0, noise_pred = predict(latents, now)
        if not eta:
            return next.alpha * x0 + next.sigma * noise_pred, state
        std = eta * _safe_sqrt(posterior(now, next).variance)
        direction = _safe_sqrt(next.sigma**2 - std**2)
        return next.alpha * x0 + direction * noise_pred + std * noise, state

    return Sampler(init=_no_state, step=step, order=1)


# Weights of the noise predictions, newest first, by how many evaluations came before
# (Liu et al. 2022, Eq. 9-12): Euler's predictor, Heun's corrector of the same first
# step, then Adams-Bashforth of order 2, 3 and, from there on, 4.
_PLMS_WEIGHTS = np.array(
    [
        [1, 0, 0, 0],
        [1 / 2, 1 / 2, 0, 0],
        [3 / 2, -1 / 2, 0, 0],
        [23 / 12, -16 / 12, 5 / 12, 0],
        [55 / 24, -59 / 24, 37 / 24, -9 / 24],
    ],
    np.float32,
)


def plms():
    """Pseudo linear multi-step sampling (Liu et al. 2022, PNDM), deterministic.

    Its first step takes two evaluations. It therefore sees its first transition twice:
    once to predict, once to correct. All steps share one evaluation in the program.
    """

    def init(latents):
        return {
            "count": jnp.int32(0),
            "first": latents,
            "history": (jnp.zeros_like(latents),) * 3,
        }

    def step(predict, latents, state, now, next, noise):
        count, history = state["count"], state["history"]
        correcting = count == 1
        where = functools.partial(jnp.where, correcting)
        point = jax.tree.map(where, next, now)
        _, noise_pred = predict(latents, point)
        noise_pred = noise_pred.astype(latents.dtype)
        weights = jnp.asarray(_PLMS_WEIGHTS, latents.dtype)[jnp.minimum(count, 4)]
        combined = weights[0] * noise_pred
        for weight, past in zip(weights[1:], history, strict=True):
            combined += weight * past
        origin = where(state["first"], latents)
        x0 = predict_x0(combined, origin, now, "noise")
        # The corrector's own evaluation is made again, from better latents.
        pushed = (noise_pred, *history[:2])
        state = {
            "count": count + 1,
            "first": jnp.where(count == 0, latents, state["first"]),
            "history": jax.tree.map(where, history, pushed),
        }
        return next.alpha * x0 + next.sigma * combined, state

    return Sampler(init=init, step=step, order=2, first_repeats=1)


def _no_state(latents):
    return ()


def _safe_sqrt(value):
    # Rounding may leave a difference of equal numbers a hair below zero.
    return jnp.sqrt(jnp.maximum(value, 0.0))


# Constructors: (**options) -> Sampler.
SAMPLERS = {"ddpm": ddpm, "ddim": ddim, "plms": plms}
