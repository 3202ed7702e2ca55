"""Grids of noise levels for samplers: spacings of timesteps, and their points."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ldm_jax.diffusion.schedule import NoiseSchedule, SchedulePoint


class Spacing(NamedTuple):
    """A spacing of timesteps.

    Attributes:
      timesteps: (schedule, num_steps) -> [num_steps], least noise first; integers, or
        floats, which may be between those of training.
      final_level: One of FINAL_LEVELS, the default for this spacing.
    """

    timesteps: Callable
    final_level: str = "first"


def _uniform(schedule, num_steps):
    # Equals CompVis's grid if that has num_steps steps; for num_steps = total it is
    # every level (CompVis's +1 would exceed the table).
    total = schedule.num_train_timesteps
    return np.arange(num_steps) * total // num_steps + (num_steps < total)


def _quadratic(schedule, num_steps):
    total = schedule.num_train_timesteps
    roots = np.linspace(0, np.sqrt(total * 0.8), num_steps)
    return np.minimum((roots**2).astype(int) + 1, total - 1)


def _compvis(schedule, num_steps):
    total = schedule.num_train_timesteps
    timesteps = np.arange(0, total, total // num_steps) + 1
    if timesteps[-1] >= total:
        raise ValueError(
            f"spacing 'compvis' breaks at num_steps={num_steps} (timestep "
            f"{timesteps[-1]} of {total}), as in CompVis: use 'uniform'"
        )
    return timesteps


def _leading(schedule, num_steps):
    total = schedule.num_train_timesteps
    return np.arange(num_steps) * (total // num_steps) + (num_steps < total)


def _trailing(schedule, num_steps):
    total = schedule.num_train_timesteps
    return np.round(np.arange(1, num_steps + 1) * (total / num_steps)).astype(int) - 1


def _linspace(schedule, num_steps):
    # Starts from the end, so that a single step is at the noisiest level.
    return np.linspace(schedule.num_train_timesteps - 1, 0, num_steps)[::-1]


def _linspace_open(schedule, num_steps):
    total = schedule.num_train_timesteps
    if num_steps == total:
        return np.arange(total)
    return np.round(np.linspace(0, total - 1, num_steps + 1)).astype(int)[1:]


def _karras(schedule, num_steps):
    # Karras et al. 2022, Eq. 5, with their rho of 7, over the range of training.
    if schedule.reaches_pure_noise:
        raise ValueError(
            "spacing 'karras' needs a schedule whose noisiest level holds some signal: "
            "use 'trailing' with zero_terminal_snr and rectified_flow"
        )
    first, last = (schedule.sigma[k] / schedule.alpha[k] for k in (0, -1))
    roots = np.linspace(last ** (1 / 7), first ** (1 / 7), num_steps)[::-1]
    return schedule.in_proportion(1.0, roots**7).timestep


def check_choices(spacing: str, final_level: str | None, shift: float) -> None:
    """Checks the options of a grid that do not depend on the schedule.

    Args:
      spacing: Row of SPACINGS.
      final_level: One of FINAL_LEVELS, or None.
      shift: See `make_points`.

    Raises:
      ValueError: If a choice is unknown or the shift is not positive.
    """
    if _RENAMED.get(spacing, spacing) not in SPACINGS:
        raise ValueError(
            f"unknown spacing {spacing!r}: choose one of {', '.join(SPACINGS)}"
        )
    if final_level not in (None, *FINAL_LEVELS):
        raise ValueError(
            f"unknown final_level {final_level!r}: choose one of "
            f"{', '.join(FINAL_LEVELS)}"
        )
    if not shift > 0:
        raise ValueError(f"shift must be more than 0 (1 is off), got {shift}")


def make_points(
    schedule: NoiseSchedule,
    num_steps: int,
    spacing: str = "uniform",
    final_level: str | None = None,
    shift: float = 1.0,
) -> SchedulePoint:
    """Chooses the noise levels that a sampler visits.

    Args:
      schedule: NoiseSchedule.
      num_steps: Number of steps, in [1, T].
      spacing: Row of SPACINGS.
      final_level: End of the last step, one of FINAL_LEVELS: "clean" data or the
        "first" training level, as in CompVis; None for the spacing's default. A grid
        whose own last level is the first training level always ends at clean data.
      shift: Factor on sigma / alpha; more than 1 spends more steps at high noise (Esser
        et al. 2024, Eq. 23), for larger sizes than those of training.

    Returns:
      SchedulePoint of NumPy arrays [num_steps + 1], most noise first: alpha and sigma
      float32, timesteps int32, or float32 if there are levels between those of
      training. The last timestep repeats the one before it. ("compvis" has more steps
      than requested if CompVis does.)

    Raises:
      ValueError: If an option is unknown or the spacing cannot give `num_steps`.
    """
    check_choices(spacing, final_level, shift)
    row = SPACINGS[_RENAMED.get(spacing, spacing)]
    final_level = row.final_level if final_level is None else final_level
    total = schedule.num_train_timesteps
    if not 1 <= num_steps <= total:
        raise ValueError(
            f"num_steps must be from 1 to the schedule's {total} timesteps, got "
            f"{num_steps}"
        )
    points = schedule.between(row.timesteps(schedule, num_steps)[::-1])
    if shift != 1:
        points = schedule.in_proportion(points.alpha, shift * points.sigma)
    # A grid that is shifted to less noise may even end below the first level.
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


def starts_too_low(schedule: NoiseSchedule, points: SchedulePoint) -> bool:
    """Returns whether a grid misses the pure noise that its schedule reaches.

    Samples would start from pure noise, but with the network conditioned on a level
    with some signal: images keep a medium brightness (Lin et al. 2023, Sec. 3.3).

    Args:
      schedule: NoiseSchedule.
      points: Grid on it, see `make_points`.

    Returns:
      True if the schedule reaches pure noise and the first point has some signal.
    """
    return schedule.reaches_pure_noise and bool(points.alpha[0] > 0)


def deviation(point: SchedulePoint) -> Any:
    """Returns the standard deviation of noisy latents, if clean ones have variance 1.

    Args:
      point: SchedulePoint of scalars or of arrays.

    Returns:
      sqrt(alpha^2 + sigma^2), shaped like alpha: 1 if the variance is preserved.
    """
    return np.hypot(point.alpha, point.sigma)


# "clean" is data without noise, "first" the least noisy level of training.
FINAL_LEVELS = ("clean", "first")


# "compvis" is exactly CompVis's "uniform", so it may have more steps than requested (31
# for 30); all others have num_steps. "leading", "linspace" and "trailing" are those of
# Lin et al. 2023, Table 2. If the last level is pure noise, sampling has to start
# there: with "trailing", "linspace", or "linspace_open", which is diffusers' linspace
# for DPM-Solver and UniPC and does not visit the first level.
SPACINGS = {
    "uniform": Spacing(_uniform),
    "quad": Spacing(_quadratic),
    "compvis": Spacing(_compvis),
    "leading": Spacing(_leading),
    "trailing": Spacing(_trailing, final_level="clean"),
    "linspace": Spacing(_linspace, final_level="clean"),
    "linspace_open": Spacing(_linspace_open, final_level="clean"),
    "karras": Spacing(_karras, final_level="clean"),
}
# Names in old configs and scripts, which are still accepted.
_RENAMED = {"original": "compvis"}
