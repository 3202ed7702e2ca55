"""What the pixels of samples mean that lie in a folder, for who reads them again.

Samples are written in the units of the data: their files do not say which values are
black and white, nor what their channels are, but the settings of their run do.
"""

import os
from typing import Any, NamedTuple

from absl import logging

from ldm_jax.errors import ConfigError, raise_if_silent
from ldm_jax.images import RGB, WHOLE_RANGE, Pixels, depth_of, is_other_png, pixels_of
from ldm_jax.images.pixels import KEYS, SHOWN
from ldm_jax.reading import MAX_TEXT, parse_json, read_file
from ldm_jax.sampling.settings import SETTINGS
from ldm_jax.store import Place, as_path

# The folder of the samples.
_SAMPLES = "samples"

# The key of the settings. Those of older versions lack it; it follows from the
# checkpoint, which they name.
PIXELS = "pixels"


class Beside(NamedTuple):
    """What the settings that lie beside images say of their pixels.

    Attributes:
      pixels: What they are; RGB where the settings are older than the key; None where
        no settings of ldm-sample lie beside.
      unsaid: Path of settings that are older than the key, which leaves open whether
        the samples are RGB of 8 bits; else None.
    """

    pixels: Pixels | None = None
    unsaid: Place | None = None


def settings_of(pixels: Pixels) -> dict[str, Any]:
    """Says what samples are, for their settings.

    Args:
      pixels: Pixels of their run.

    Returns:
      JSON-like dict, to be joined to others.
    """
    # Also of RGB of 8 bits: what says nothing is of an older version.
    return {PIXELS: pixels.record() or {"channels": "rgb"}}


def pixels_beside(place: str | os.PathLike) -> Beside:
    """Finds out what samples are, by the settings that lie beside them.

    Args:
      place: Folder of samples, or file of some of them.

    Returns:
      What they say; nothing where there are none, or a file of that name is JSON of
      another program.

    Raises:
      ConfigError: If they cannot be read, or say what no pixels are.
      Unreachable: If what they lie on does not answer.
    """
    folder = as_path(place).absolute().parent
    path = folder / SETTINGS
    found = _settings_in(path)
    if found is None and folder.name == _SAMPLES:
        # Shards lie in the folder of samples.
        path = folder.parent / SETTINGS
        found = _settings_in(path)
    if not isinstance(found, dict) or not {"conditions", "options"} <= found.keys():
        return Beside()
    if PIXELS not in found:
        logging.warning(
            "%s is of a version that did not say what the pixels of samples are: they "
            "are taken for RGB of 8 bits in their whole range; the same ldm-sample "
            "command, given once more, says it there",
            path,
        )
        return Beside(RGB, unsaid=path)
    try:
        return Beside(_pixels_in(found[PIXELS]))
    except (ConfigError, AttributeError, TypeError) as error:
        raise ConfigError(f"{path}: {PIXELS}: {error}") from error


def _settings_in(path):
    """What a file says; None where there is none."""
    try:
        return parse_json(read_file(path, MAX_TEXT))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise_if_silent(path, error)
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"{path} cannot be read ({reason}), and may say which values of the images "
            "beside it are black and white: mend it, or, if ldm-sample did not write "
            "it, move the images to another folder"
        ) from error


def _pixels_in(said):
    unknown = said.keys() - {*KEYS, SHOWN}
    if unknown:
        raise ConfigError(
            f"{', '.join(sorted(unknown))}: unknown; there are "
            f"{', '.join((*KEYS, SHOWN))}"
        )
    return pixels_of(said)


def values_of(
    beside: Beside, data: bytes, where: str, flag: str, said: str | None = None
) -> str | None:
    """Finds out which values of an image are black and white.

    Args:
      beside: What the settings beside it say.
      data: Its encoded bytes.
      where: What it is called.
      flag: What names its set, for messages.
      said: What was found of another image, and need not be said anew.

    Returns:
      Words; None of 8 bits in their whole range.

    Raises:
      ConfigError: If nothing says it.
    """
    pixels = beside.pixels
    if pixels is not None and not pixels.is_rgb:
        return pixels.describe_range()
    depth = depth_of(data)
    if beside.unsaid is not None and (depth or is_other_png(data)):
        raise ConfigError(
            f"{flag}: {where} is not RGB of 8 bits, and {beside.unsaid} does not say "
            "what it is, as ldm-sample did not yet: give the same ldm-sample command "
            "once more, which adds it and draws nothing anew, or add it there by hand, "
            f'as "{PIXELS}": {{"channels": "grey", "value_range": [0, 255]}}'
        )
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
