"""What a run takes in time and money, at a stated fraction of the chips' peak."""

import dataclasses

from ldm_jax.chips import Chip


@dataclasses.dataclass(frozen=True)
class Cost:
    """A whole run.

    Attributes:
      images_per_s: Over all chips.
      step_s: Seconds per step.
      hours: From first to last step, without evaluations and checkpoints.
      chip_hours: The same times the number of chips.
      price: Chip-hours times their price; None where none is given.
      exaflop: All floating-point operations, in 10^18.
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
    """Computes what a run takes.

    Args:
      flops: Floating-point operations of a training step for one image.
      batch_size: Images per step.
      num_steps: Steps of the run.
      chip: Chip.
      chips: Number of chips.
      mfu: Fraction of their peak that the run reaches, as 0.35.
      price: Of an hour of one chip, in any currency.

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
