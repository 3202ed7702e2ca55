"""Noise schedules: how much signal and noise the latents hold at each timestep.

Everything else in this package sees a schedule through `SchedulePoint`s, that is
through `alpha` and `sigma` of z_t = alpha z_0 + sigma noise, so training, samplers and
tests share one set of formulas. Tables are computed in float64 NumPy and reach the
device as float32.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np


class SchedulePoint(NamedTuple):
    """One noise level, or an array of them.

    Attributes:
      timestep: What the network is told, int32; 0 is the least noise.
      alpha: Share of signal in z_t = alpha z_0 + sigma noise.
      sigma: Share of noise.
    """

    timestep: Any
    alpha: Any
    sigma: Any


@dataclasses.dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """The discrete variance-preserving schedule of DDPM (Ho et al. 2020, Sec. 2).

    Attributes:
      betas: Variance that each forward step adds, float64 [T], in (0, 1).
    """

    betas: np.ndarray

    @property
    def num_train_timesteps(self):
        """Number of noise levels T."""
        return len(self.betas)

    @functools.cached_property
    def alphas_cumprod(self):
        """Signal variance alpha_t^2 of each level, float64 [T]."""
        return np.cumprod(1.0 - self.betas)

    @functools.cached_property
    def table(self):
        """All levels as one SchedulePoint of float64 [T], least noise first."""
        return SchedulePoint(
            np.arange(self.num_train_timesteps, dtype=np.int32),
            np.sqrt(self.alphas_cumprod),
            np.sqrt(1.0 - self.alphas_cumprod),
        )

    def at(self, timesteps):
        """Looks up the levels of `timesteps`.

        Args:
          timesteps: int32, any shape, in [0, T).

        Returns:
          SchedulePoint on the device, alpha and sigma float32 of the same shape.
        """
        alpha = jnp.asarray(self.table.alpha, jnp.float32)
        sigma = jnp.asarray(self.table.sigma, jnp.float32)
        return SchedulePoint(timesteps, alpha[timesteps], sigma[timesteps])


def make_schedule(
    kind="scaled_linear",
    num_train_timesteps=1000,
    beta_start=0.0015,
    beta_end=0.0195,
    cosine_s=0.008,
):
    """Makes a noise schedule from the config section `schedule`.

    Args:
      kind: Row of SCHEDULES. The paper's models use "scaled_linear", which the
        original implementation calls "linear".
      num_train_timesteps: Number of noise levels T, at least 2.
      beta_start: First beta of the linear kinds (of "sqrt": its square).
      beta_end: Last beta, likewise.
      cosine_s: Offset of the cosine schedule (Nichol & Dhariwal 2021, Eq. 17).

    Returns:
      A NoiseSchedule.

    Raises:
      ValueError: If the kind is unknown or a beta leaves (0, 1).
    """
    if kind not in SCHEDULES:
        raise ValueError(
            f"unknown schedule kind {kind!r}: choose one of {', '.join(SCHEDULES)}"
        )
    if num_train_timesteps < 2:
        raise ValueError(
            f"num_train_timesteps must be at least 2, got {num_train_timesteps}"
        )
    betas = SCHEDULES[kind](num_train_timesteps, beta_start, beta_end, cosine_s)
    if not (np.all(betas > 0) and np.all(betas < 1)):
        raise ValueError(
            f"schedule {kind!r} needs every beta in (0, 1), got "
            f"{np.min(betas):g} to {np.max(betas):g}: change beta_start "
            f"({beta_start:g}) or beta_end ({beta_end:g})"
        )
    return NoiseSchedule(betas)


def add_noise(latents, noise, point):
    """Draws z_t given z_0: alpha z_0 + sigma noise (Ho et al. 2020, Eq. 4).

    Args:
      latents: Clean latents z_0, [B, ...].
      noise: Standard normal, same shape.
      point: SchedulePoint, scalar or [B].

    Returns:
      Noisy latents, same shape.
    """
    alpha, sigma = _expand(point.alpha, latents), _expand(point.sigma, latents)
    return alpha * latents + sigma * noise


def target_for(prediction_type, latents, noise, point):
    """What the network should output for z_t = alpha z_0 + sigma noise.

    Args:
      prediction_type: Row of PREDICTION_TYPES.
      latents: Clean latents z_0, [B, ...].
      noise: The noise that was added, same shape.
      point: SchedulePoint, scalar or [B].

    Returns:
      The training target, same shape.

    Raises:
      ValueError: If `prediction_type` is unknown.
    """
    row = _prediction_row(prediction_type)
    alpha, sigma = _expand(point.alpha, latents), _expand(point.sigma, latents)
    return row.target(latents, noise, alpha, sigma)


def predict_x0(output, latents, point, prediction_type):
    """Recovers the clean latents that a network output implies.

    Inverts z_t = alpha z_0 + sigma noise for z_0 (Ho et al. 2020, Eq. 4; for "v":
    Salimans & Ho 2022, Sec. 4).

    Args:
      output: Network output at (latents, point), [B, h, w, c].
      latents: Noisy latents z_t, same shape, in units of unit-variance latents.
      point: SchedulePoint of the latents, scalar or [B].
      prediction_type: What `output` estimates, a row of PREDICTION_TYPES.

    Returns:
      Estimate of z_0, same shape, in the units of `latents`; not clipped. Infinite
      where alpha is 0 and the network predicts noise.

    Raises:
      ValueError: If `prediction_type` is unknown.
    """
    row = _prediction_row(prediction_type)
    alpha, sigma = _expand(point.alpha, latents), _expand(point.sigma, latents)
    return row.x0(output, latents, alpha, sigma)


def predict_noise(output, latents, point, prediction_type):
    """Recovers the noise that a network output implies; the twin of `predict_x0`.

    Args:
      output: Network output at (latents, point), [B, h, w, c].
      latents: Noisy latents z_t, same shape.
      point: SchedulePoint of the latents, scalar or [B].
      prediction_type: What `output` estimates, a row of PREDICTION_TYPES.

    Returns:
      Estimate of the noise, same shape; infinite where sigma is 0 and the network
      predicts x0.

    Raises:
      ValueError: If `prediction_type` is unknown.
    """
    row = _prediction_row(prediction_type)
    alpha, sigma = _expand(point.alpha, latents), _expand(point.sigma, latents)
    return row.noise(output, latents, alpha, sigma)


class Posterior(NamedTuple):
    """Coefficients of q(z_next | z_now, z_0), see `posterior`."""

    x0_weight: Any
    latents_weight: Any
    variance: Any
    beta: Any


def posterior(now, next):
    """The forward process' posterior between two noise levels.

    Ho et al. 2020, Eq. 6-7, for any pair of levels: the mean is
    x0_weight z_0 + latents_weight z_now. `beta` is the variance that the forward
    process adds from `next` to `now`.

    Args:
      now: SchedulePoint, the noisier level.
      next: SchedulePoint, the cleaner level, alpha > 0.

    Returns:
      Posterior of arrays shaped and typed like the points' alpha.
    """
    ratio = now.alpha / next.alpha
    beta = now.sigma**2 - (ratio * next.sigma) ** 2
    shrink = (next.sigma / now.sigma) ** 2
    return Posterior(
        x0_weight=next.alpha * beta / now.sigma**2,
        latents_weight=ratio * shrink,
        variance=beta * shrink,
        beta=beta,
    )


def posterior_variance(coefficients, v_posterior=0.0):
    """Blends the two variances a reverse step may use (Ho et al. 2020, Sec. 3.2).

    Args:
      coefficients: Posterior.
      v_posterior: 0 for the posterior's variance, 1 for beta.

    Returns:
      The variance, shaped like the coefficients.
    """
    return (1 - v_posterior) * coefficients.variance + v_posterior * coefficients.beta


def previous_levels(schedule):
    """The level one training step cleaner than each, clean data before level 0.

    Args:
      schedule: NoiseSchedule.

    Returns:
      SchedulePoint of float64 [T].
    """
    table = schedule.table
    return SchedulePoint(
        np.maximum(table.timestep - 1, 0),
        np.append(1.0, table.alpha[:-1]),
        np.append(0.0, table.sigma[:-1]),
    )


def _expand(values, like):
    """Reshapes scalars or [B] so that they broadcast over trailing axes of `like`."""
    values = jnp.asarray(values)
    return values.reshape(values.shape + (1,) * (like.ndim - values.ndim))


def _prediction_row(prediction_type):
    if prediction_type not in PREDICTION_TYPES:
        raise ValueError(
            f"unknown prediction_type {prediction_type!r}: choose one of "
            f"{', '.join(PREDICTION_TYPES)}"
        )
    return PREDICTION_TYPES[prediction_type]


def _scaled_linear(num, start, end, cosine_s):
    return np.linspace(start**0.5, end**0.5, num) ** 2


def _linear(num, start, end, cosine_s):
    return np.linspace(start, end, num)


def _cosine(num, start, end, cosine_s):
    # Nichol & Dhariwal 2021, Eq. 17; the clip keeps the last step from being singular.
    time = np.arange(num + 1) / num
    signal = np.cos((time + cosine_s) / (1 + cosine_s) * np.pi / 2) ** 2
    return np.clip(1 - signal[1:] / signal[:-1], 0, 0.999)


def _sqrt(num, start, end, cosine_s):
    return np.linspace(start, end, num) ** 0.5


# Betas of each kind: (num_train_timesteps, beta_start, beta_end, cosine_s) -> [T].
SCHEDULES = {
    "scaled_linear": _scaled_linear,
    "linear": _linear,
    "cosine": _cosine,
    "sqrt": _sqrt,
}


class PredictionType(NamedTuple):
    """One parametrisation of the network's output.

    Attributes:
      target: (x0, noise, alpha, sigma) -> what the network should say.
      x0: (output, latents, alpha, sigma) -> the clean latents that it implies.
      noise: (output, latents, alpha, sigma) -> the noise that it implies.
    """

    target: Callable
    x0: Callable
    noise: Callable


# In "velocity" = noise - x0 the two inverses divide by alpha + sigma, so it is well
# defined on every schedule; it is dz/dt only on the straight path of rectified flow.
PREDICTION_TYPES = {
    "noise": PredictionType(
        target=lambda x0, noise, alpha, sigma: noise,
        x0=lambda out, z, alpha, sigma: (z - sigma * out) / alpha,
        noise=lambda out, z, alpha, sigma: out,
    ),
    "x0": PredictionType(
        target=lambda x0, noise, alpha, sigma: x0,
        x0=lambda out, z, alpha, sigma: out,
        noise=lambda out, z, alpha, sigma: (z - alpha * out) / sigma,
    ),
    "v": PredictionType(
        target=lambda x0, noise, alpha, sigma: alpha * noise - sigma * x0,
        x0=lambda out, z, alpha, sigma: alpha * z - sigma * out,
        noise=lambda out, z, alpha, sigma: sigma * z + alpha * out,
    ),
    "velocity": PredictionType(
        target=lambda x0, noise, alpha, sigma: noise - x0,
        x0=lambda out, z, alpha, sigma: (z - sigma * out) / (alpha + sigma),
        noise=lambda out, z, alpha, sigma: (z + alpha * out) / (alpha + sigma),
    ),
}
