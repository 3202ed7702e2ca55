"""Time and money of a run, at a given fraction of the chips' peak."""

import dataclasses

from ldm_jax.chips import Chip


@dataclasses.dataclass(frozen=True)
class Cost:
    """Cost of a whole run.

    Attributes:
      images_per_s: Images per second over all chips.
      step_s: Seconds per step.
      hours: Hours from the first to the last step, without evaluations and checkpoints.
      chip_hours: Hours times the number of chips.
      price: Chip-hours times their price; None if no price is given.
      exaflop: All floating-point operations, in units of 10^18.
    """

    images_per_s: float
    step_s: float
    hours: float
    chip_hours: float
    price: float | None
    exaflop: float


def cost_of_run(
    flops: float,
    batch_size: int,
    num_steps: int,
    chip: Chip,
    chips: int,
    mfu: float,
    price: float | None = None,
) -> Cost:
    """Computes the cost of a run.

    Args:
      flops: Floating-point operations of a training step for one image.
      batch_size: Global batch size.
      num_steps: Steps of the run.
      chip: Chip.
      chips: Number of chips.
      mfu: Fraction of their peak that the run reaches, e.g. 0.35.
      price: Price of an hour of one chip, in any currency.

    Returns:
      Cost.
    """
    images_per_s = chips * chip.tflops * 1e12 * mfu / flops
    step_s = batch_size / images_per_s
    hours = num_steps * step_s / 3600
    return Cost(
        images_per_s=images_per_s,
        step_s=step_s,
        hours=hours,
        chip_hours=hours * chips,
        price=None if price is None else hours * chips * price,
        exaflop=flops * batch_size * num_steps / 1e18,
    )
