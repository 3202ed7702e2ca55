"""Which timesteps a sampler visits, given how many steps it may take."""

import numpy as np


def _uniform(total, num_steps):
    # The original's grid wherever that one has num_steps steps, for num_steps = total
    # every level (the original's +1 would leave the table).
    return np.arange(num_steps) * total // num_steps + (num_steps < total)


def _quadratic(total, num_steps):
    roots = np.linspace(0, np.sqrt(total * 0.8), num_steps)
    return np.minimum((roots**2).astype(int) + 1, total - 1)


def _original(total, num_steps):
    timesteps = np.arange(0, total, total // num_steps) + 1
    if timesteps[-1] >= total:
        raise ValueError(
            f"spacing 'original' breaks at num_steps={num_steps} (timestep "
            f"{timesteps[-1]} of {total}), as the original does: use 'uniform'"
        )
    return timesteps


# Timesteps of each spacing: (T, num_steps) -> int [num_steps], least noise first.
# "original" is the original's "uniform" to the bit, so it may give more steps than
# asked for (31 for 30); the two others always give num_steps.
SPACINGS = {"uniform": _uniform, "quad": _quadratic, "original": _original}
