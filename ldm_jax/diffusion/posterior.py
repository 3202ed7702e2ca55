"""The posterior of the forward process, used in the reverse steps of DDPM."""

from typing import Any, NamedTuple

import numpy as np

from ldm_jax.annotations import Array, Float
from ldm_jax.diffusion.schedule import NoiseSchedule, SchedulePoint


class Posterior(NamedTuple):
    """Coefficients of q(z_next | z_now, z_0), see `posterior`.

    Attributes:
      x0_weight: Weight of z_0 in the mean.
      latents_weight: Weight of z_now in the mean.
      variance: Variance of the posterior.
      beta: Variance that the forward process adds from `next` to `now`.
    """

    x0_weight: Any
    latents_weight: Any
    variance: Any
    beta: Any


def posterior(now: SchedulePoint, next: SchedulePoint) -> Posterior:
    """Computes the forward process' posterior between two noise levels.

    Ho et al. 2020, Eq. 6-7, for any pair of levels: the mean is
    x0_weight z_0 + latents_weight z_now.

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


def posterior_variance(
    coefficients: Posterior, v_posterior: float = 0.0
) -> Float[Array, "*shape"] | np.floating:
    """Interpolates the two variances of a reverse step (Ho et al. 2020, Sec. 3.2).

    Args:
      coefficients: Posterior.
      v_posterior: 0 for the posterior's variance, 1 for beta.

    Returns:
      The variance, shaped like the coefficients.
    """
    return (1 - v_posterior) * coefficients.variance + v_posterior * coefficients.beta


def previous_levels(schedule: NoiseSchedule) -> SchedulePoint:
    """Returns the next cleaner training level of each; clean data for level 0.

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
