"""Options of sampling: one dataclass for code, configs and flags."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from ldm_jax import ranges
from ldm_jax.diffusion import grids, samplers
from ldm_jax.diffusion.guidance import GuidanceOptions
from ldm_jax.diffusion.sampling_method import SamplingMethod


@dataclasses.dataclass(frozen=True)
class SampleOptions:
    """How samples are drawn.

        SampleOptions("unipc", num_steps=20, guidance=GuidanceOptions(scale=4.0))

    Holds no arrays and is hashable, so it can be a static argument of `jax.jit`. In
    configs and flags its fields have the names in NAMES, see `from_flat`.

    Attributes:
      sampler: Row of SAMPLERS, or a SamplingMethod.
      num_steps: Number of steps of the grid.
      spacing: Row of SPACINGS.
      final_level: End of the last step, see `grids.make_points`.
      shift: Factor on the noise levels, see `grids.make_points`.
      eta: Fraction of the ancestral noise in [0, 1], for samplers that have it; None
        for their default. Must be None with a SamplingMethod, which is made with its
        own.
      temperature: Factor on the noise of stochastic samplers.
      strength: Fraction of the steps to run on given images, in [0, 1]: 0 returns them
        unchanged, 1 starts from pure noise, like None.
      size: (height, width) of the images in pixels; None to use that of given images.
      tile: Side in pixels of the overlapping tiles in which the backbone evaluates
        larger images, ideally the size of training; None for the whole at once.
      decode_tile: The same for the first stage, to save memory.
      guidance: Classifier-free guidance.

    Raises:
      ValueError: If a choice is unknown or a number is out of its range.
    """

    sampler: str | SamplingMethod = "ddim"
    num_steps: int = 50
    spacing: str = "uniform"
    final_level: str | None = None
    shift: float = 1.0
    eta: float | None = None
    temperature: Any = 1.0
    strength: float | None = None
    size: Sequence[int] | None = None
    tile: int | None = None
    decode_tile: int | None = None
    guidance: GuidanceOptions = GuidanceOptions()

    def __post_init__(self):
        for name in _NUMBERS:
            value = getattr(self, name)
            # JAX scalars may be traced, and then have no known value.
            if not isinstance(value, jax.Array):
                ranges.check_value(ranges.SAMPLE[name], value, name)
        if isinstance(self.sampler, str):
            samplers.make_sampler(self.sampler, eta=self.eta)
        elif self.eta is not None:
            raise ValueError(
                f"eta={self.eta} is for a sampler by name: give it to the constructor "
                "of the sampler instead, as ddim(eta=...)"
            )
        grids.check_choices(self.spacing, self.final_level, self.shift)
        if self.size is not None:
            object.__setattr__(self, "size", tuple(self.size))


# Fields whose range is in `ranges.SAMPLE`; that of `strength` depends on the grid.
_NUMBERS = ("num_steps", "shift", "eta", "temperature", "tile", "decode_tile")
# Name in configs and flags -> field of GuidanceOptions.
_GUIDANCE = {
    f"guidance_{field.name}": field.name
    for field in dataclasses.fields(GuidanceOptions)
}
# All names in configs and flags; there the size comes from the section `data`.
NAMES = tuple(
    name
    for field in dataclasses.fields(SampleOptions)
    if field.name != "size"
    for name in (_GUIDANCE if field.name == "guidance" else (field.name,))
)


def from_flat(
    values: Mapping[str, Any], size: tuple[int, int] | None = None
) -> SampleOptions:
    """Makes options from their flat names in configs and flags.

    Args:
      values: Names in NAMES -> values, such as "num_steps" and "guidance_scale";
        missing ones have their defaults.
      size: See SampleOptions.

    Returns:
      The options.

    Raises:
      ValueError: If a choice is unknown or a number is out of its range.
    """
    guidance = {_GUIDANCE[k]: value for k, value in values.items() if k in _GUIDANCE}
    others = {key: value for key, value in values.items() if key not in _GUIDANCE}
    return SampleOptions(**others, size=size, guidance=GuidanceOptions(**guidance))


def to_flat(options: SampleOptions) -> dict[str, Any]:
    """Inverse of `from_flat`: lists options by their names in configs and flags.

    Args:
      options: The options.

    Returns:
      Dict of all NAMES -> values.
    """
    return {
        name: getattr(options.guidance, _GUIDANCE[name])
        if name in _GUIDANCE
        else getattr(options, name)
        for name in NAMES
    }
