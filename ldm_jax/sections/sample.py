"""The section `sample`: how samples are drawn, checked against the model."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from ldm_jax.config import check_names, to_dict
from ldm_jax.console import warn_once
from ldm_jax.diffusion.grids import make_points, starts_too_low
from ldm_jax.diffusion.sample_options import NAMES, SampleOptions, from_flat
from ldm_jax.diffusion.schedule import NoiseSchedule
from ldm_jax.errors import ConfigError


def read_sample_options(
    config: ConfigDict,
    schedule: NoiseSchedule,
    entries: Mapping[str, Any],
    given: Mapping[str, Any] | None = None,
    size: tuple[int | None, int | None] = (None, None),
) -> SampleOptions:
    """Reads the section, with the options in `given` taking precedence.

    A model without conditions is not guided, and a sampler other than the section's
    does not inherit its `eta`.

    Args:
      config: ConfigDict with `data` and `sample`.
      schedule: The noise levels.
      entries: Entries of the conditioner by batch key.
      given: Rows of `sample_options.NAMES` -> values; None uses the section's.
      size: (height, width) of the images in pixels; None is that of training.

    Returns:
      SampleOptions.

    Raises:
      ConfigError: On an unknown name or a value out of its range.
    """
    options = to_dict(config.sample)
    given = {key: value for key, value in (given or {}).items() if value is not None}
    if given.get("sampler", options.get("sampler")) != options.get("sampler"):
        options["eta"] = None
    if not entries:
        options["guidance_scale"] = 1.0
    options |= given
    check_names(options, NAMES, "sample")
    side = config.data.image_size
    size = tuple(side if length is None else length for length in size)
    name = "--guidance_scale" if "guidance_scale" in given else "sample.guidance_scale"
    try:
        made = from_flat(options, size)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"sample: {error}") from error
    check_sampling(made, schedule, entries, name)
    return made


def check_sampling(
    options: SampleOptions,
    schedule: NoiseSchedule,
    entries: Mapping[str, Any],
    name: str = "sample.guidance_scale",
) -> None:
    """Checks options against the noise levels and conditions of a model.

    Logs a warning if the first noise level is too low to start from pure noise.

    Args:
      options: The options.
      schedule: The noise levels.
      entries: Entries of the conditioner by batch key.
      name: Name of the guidance scale, for messages.

    Raises:
      ConfigError: If the noise levels or the guidance are not possible.
    """
    check_guidance(options.guidance.scale, entries, name)
    steps, spacing = options.num_steps, options.spacing
    try:
        points = make_points(
            schedule, steps, spacing, options.final_level, options.shift
        )
    except ValueError as error:
        raise ConfigError(f"sample: {error}") from error
    if options.strength in (None, 1) and starts_too_low(schedule, points):
        warn_once(
            f"sample.spacing={spacing} starts {steps} steps where the signal is scaled "
            f"by {points.alpha[0]:.2g}, but this schedule (zero_terminal_snr or "
            "rectified_flow) ends in pure noise, from which samples have to start: set "
            'sample.spacing="trailing" (--spacing=trailing where samples are drawn)'
        )


def check_guidance(scale: Any, entries: Mapping[str, Any], name: str) -> None:
    """Checks that a model has the conditions that are guided, and their null inputs.

    Args:
      scale: Number, or dict of batch key -> number, or its pairs.
      entries: Entries of the conditioner by batch key.
      name: Name of the scale, for messages.

    Raises:
      ConfigError: If a condition or its null input is missing.
    """
    given = isinstance(scale, Mapping | tuple | list)
    scales = dict(scale) if given else dict.fromkeys(entries or [""], scale)
    for key, value in scales.items():
        if value == 1:
            continue
        if entries and key not in entries:
            raise ConfigError(
                f"{name}: this model has no condition '{key}'; it has "
                f"{', '.join(sorted(entries))}"
            )
        if not entries or not entries[key].get("null_class", True):
            raise ConfigError(
                f"{name}={value:g} needs a model that was also trained without the "
                f"condition; this one has none{key and f' for {key}'}: use {name}=1"
            )
