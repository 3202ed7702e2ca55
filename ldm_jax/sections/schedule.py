"""The section `schedule`: the noise levels, and what the network predicts."""

from ml_collections import ConfigDict

from ldm_jax.config import Section, build, choose, to_dict
from ldm_jax.diffusion.schedule import (
    PREDICTION_TYPES,
    NoiseSchedule,
    make_schedule,
)
from ldm_jax.errors import ConfigError

# Names in diffusers and CompVis -> rows of PREDICTION_TYPES.
_OTHER_NAMES = {
    "epsilon": "noise",
    "eps": "noise",
    "sample": "x0",
    "v_prediction": "v",
    "flow_prediction": "velocity",
}


def make_noise_schedule(config: ConfigDict) -> NoiseSchedule:
    """Makes the noise levels that a config describes.

    Args:
      config: ConfigDict with `schedule`.

    Returns:
      A NoiseSchedule.

    Raises:
      ConfigError: If the section is wrong.
    """
    section = to_dict(config.schedule)
    section.pop("prediction_type", None)
    return build(make_schedule, section, "schedule")


def prediction_type_of(section: Section) -> str:
    """Returns what the network predicts.

    Args:
      section: Config section `schedule`.

    Returns:
      Row of PREDICTION_TYPES.

    Raises:
      ConfigError: If there is no such row.
    """
    name = section.get("prediction_type", "noise")
    if isinstance(name, str) and name in _OTHER_NAMES:
        raise ConfigError(
            f'schedule.prediction_type="{name}" is unknown: it is called '
            f'"{_OTHER_NAMES[name]}" here; choose from {", ".join(PREDICTION_TYPES)}'
        )
    choose(PREDICTION_TYPES, name, "schedule.prediction_type")
    return name
