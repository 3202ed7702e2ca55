"""What the pixels of samples mean that lie in a folder, for who reads them again.

Samples are written in the units of the data: their files do not say which values are
black and white, nor what their channels are, but the settings of their run do.
"""

import os
from typing import Any

from absl import logging

from ldm_jax.errors import ConfigError
from ldm_jax.images import RGB, WHOLE_RANGE, Pixels, depth_of, pixels_of
from ldm_jax.reading import MAX_TEXT, parse_json, read_file
from ldm_jax.sampling.settings import SETTINGS
from ldm_jax.store import as_path

# The folder of the samples, and the key of the settings.
_SAMPLES, _KEY = "samples", "pixels"


def settings_of(pixels: Pixels) -> dict[str, Any]:
    """Says what samples are, for their settings.

    Args:
      pixels: Pixels of their run.

    Returns:
      JSON-like dict, to be joined to others; empty of RGB of 8 bits.
    """
    found = pixels.record()
    return {_KEY: found} if found else {}


def pixels_beside(place: str | os.PathLike) -> Pixels | None:
    """Finds out what samples are, by the settings that lie beside them.

    Args:
      place: Folder of samples, or file of some of them.

    Returns:
      Pixels; None where no settings lie beside.

    Raises:
      ConfigError: If they say what no pixels are.
    """
    folder = as_path(place).absolute().parent
    if not (folder / SETTINGS).is_file() and folder.name == _SAMPLES:
        # Shards lie in the folder of samples.
        folder = folder.parent
    try:
        found = parse_json(read_file(folder / SETTINGS, MAX_TEXT))
        _ = found["conditions"], found["options"]
    # Other programs have files of that name, too.
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if _KEY not in found:
        return RGB
    try:
        return pixels_of(found[_KEY])
    except (ConfigError, AttributeError, TypeError) as error:
        raise ConfigError(f"{folder / SETTINGS}: {error}") from error


def values_of(
    pixels: Pixels | None, data: bytes, where: str, flag: str, said: str | None = None
) -> str | None:
    """Finds out which values of an image are black and white.

    Args:
      pixels: What the settings beside it say; None where there are none.
      data: Its encoded bytes.
      where: What it is called.
      flag: What names its set, for messages.
      said: What was found of another image, and need not be said anew.

    Returns:
      Words; None of 8 bits in their whole range.

    Raises:
      ConfigError: If nothing says it.
    """
    if pixels not in (None, RGB):
        return pixels.describe_range()
    depth = depth_of(data)
    if depth is None:
        return None
    if depth == "array":
        raise ConfigError(
            f"{flag}: nothing says which values of {where} are black and white: give "
            "the folder samples of ldm-sample with the settings.json beside it, or "
            "images of 8 bits"
        )
    if said != WHOLE_RANGE:
        logging.warning(
            "%s has 16 bits, and no settings.json of ldm-sample beside its folder says "
            "of which range: 0 is taken for black and 65535 for white",
            where,
        )
    return WHOLE_RANGE
