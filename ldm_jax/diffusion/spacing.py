"""Which timesteps a sampler visits, given how many steps it may take."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Spacing(NamedTuple):
    """One way to choose timesteps.

    Attributes:
      timesteps: (schedule, num_steps) -> [num_steps], least noise first; integers, or
        floats that may lie between training's.
      final_level: One of FINAL_LEVELS, the usual end of a grid of this kind.
    """

    timesteps: Callable
    final_level: str = "first"


def _uniform(schedule, num_steps):
    # The original's grid wherever that one has num_steps steps, for num_steps = total
    # every level (the original's +1 would leave the table).
    total = schedule.num_train_timesteps
    return np.arange(num_steps) * total // num_steps + (num_steps < total)


def _quadratic(schedule, num_steps):
    total = schedule.num_train_timesteps
    roots = np.linspace(0, np.sqrt(total * 0.8), num_steps)
    return np.minimum((roots**2).astype(int) + 1, total - 1)


def _original(schedule, num_steps):
    total = schedule.num_train_timesteps
    timesteps = np.arange(0, total, total // num_steps) + 1
    if timesteps[-1] >= total:
        raise ValueError(
            f"spacing 'original' breaks at num_steps={num_steps} (timestep "
            f"{timesteps[-1]} of {total}), as the original does: use 'uniform'"
        )
    return timesteps


def _leading(schedule, num_steps):
    total = schedule.num_train_timesteps
    return np.arange(num_steps) * (total // num_steps) + (num_steps < total)


def _trailing(schedule, num_steps):
    total = schedule.num_train_timesteps
    return np.round(np.arange(1, num_steps + 1) * (total / num_steps)).astype(int) - 1


def _linspace(schedule, num_steps):
    # From the end, where a single step belongs.
    return np.linspace(schedule.num_train_timesteps - 1, 0, num_steps)[::-1]


def _linspace_open(schedule, num_steps):
    total = schedule.num_train_timesteps
    if num_steps == total:
        return np.arange(total)
    return np.round(np.linspace(0, total - 1, num_steps + 1)).astype(int)[1:]


def _karras(schedule, num_steps):
    # Karras et al. 2022, Eq. 5, with their rho of 7 and all of training's levels.
    if schedule.reaches_pure_noise:
        raise ValueError(
            "spacing 'karras' needs a schedule whose noisiest level holds some signal: "
            "use 'trailing' with zero_terminal_snr and rectified_flow"
        )
    first, last = (schedule.sigma[k] / schedule.alpha[k] for k in (0, -1))
    roots = np.linspace(last ** (1 / 7), first ** (1 / 7), num_steps)[::-1]
    return schedule.in_proportion(1.0, roots**7).timestep


# "clean" is data without noise, "first" the least noisy level of training.
FINAL_LEVELS = ("clean", "first")

# "original" is the original's "uniform" to the bit, so it may give more steps than
# asked for (31 for 30); all others give num_steps. "leading", "linspace" and "trailing"
# are those of Lin et al. 2023, Table 2. Where the last level is pure noise, sampling
# has to start there: with "trailing", "linspace", or "linspace_open", which is
# diffusers' linspace for DPM-Solver and UniPC and does not visit the first level.
SPACINGS = {
    "uniform": Spacing(_uniform),
    "quad": Spacing(_quadratic),
    "original": Spacing(_original),
    "leading": Spacing(_leading),
    "trailing": Spacing(_trailing, final_level="clean"),
    "linspace": Spacing(_linspace, final_level="clean"),
    "linspace_open": Spacing(_linspace_open, final_level="clean"),
    "karras": Spacing(_karras, final_level="clean"),
}
