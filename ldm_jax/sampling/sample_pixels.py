"""Finds the pixel format of samples in a folder, in order to read them again.

Samples are written in the units of the data: their files do not tell which values are
black and white, or what their channels are, but the settings of their run do.
"""

import os
from typing import Any, NamedTuple

from absl import logging

from ldm_jax.errors import ConfigError
from ldm_jax.images import (
    RGB,
    Pixels,
    depth_of,
    is_other_png,
    pixels_of,
    whole_range_of,
)
from ldm_jax.images.pixels import KEYS, SHOWN
from ldm_jax.reading import MAX_TEXT, parse_json, read_file
from ldm_jax.sampling.settings import SETTINGS
from ldm_jax.store import (
    Place,
    as_path,
    is_dir,
    is_file,
    is_hidden,
    raise_if_silent,
)

# The folder of the samples.
_SAMPLES = "samples"

# The key of the settings. Those of older versions lack it; it can be derived from the
# checkpoint that they name.
PIXELS = "pixels"

# Maximum number of images named for having other bit depths than the first.
_MOST_NAMED = 8


class Beside(NamedTuple):
    """The pixel format in the settings beside images.

    Attributes:
      pixels: The format; RGB if the settings are older than the key; None if there are
        no settings of ldm-sample.
      unsaid: Path of settings that are older than the key, so that the samples may not
        be RGB of 8 bits; else None.
    """

    pixels: Pixels | None = None
    unsaid: Place | None = None


def settings_of(pixels: Pixels) -> dict[str, Any]:
    """Records the pixel format of samples, for their settings.

    Args:
      pixels: Pixels of their run.

    Returns:
      JSON-like dict, to be merged into the settings.
    """
    # RGB of 8 bits is recorded, too: settings without it are of an older version.
    return {PIXELS: pixels.record() or {"channels": "rgb"}}


def is_run(place: str | os.PathLike) -> bool:
    """Whether a folder is the outdir of an ldm-sample run, with a folder of samples.

    Args:
      place: Folder.

    Returns:
      Whether it is. settings.json is not enough, as other programs write it, too.
    """
    folder = as_path(place)
    return is_file(folder / SETTINGS) and is_dir(folder / _SAMPLES)


def pixels_beside(place: str | os.PathLike) -> Beside:
    """Reads the pixel format of samples from the settings beside them.

    Args:
      place: Folder of samples, or a file with some of them.

    Returns:
      The format; an empty Beside if there are no settings, or the file is JSON of
      another program.

    Raises:
      ConfigError: If they cannot be read, or are invalid.
      Unreachable: If the storage does not respond.
    """
    folder = as_path(place).absolute().parent
    path = folder / SETTINGS
    found = _settings_in(path)
    if found is None and folder.name == _SAMPLES:
        # The place is a shard in the folder of samples.
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
    """The contents of a settings file; None if there is none, or that is unknown."""
    try:
        return parse_json(read_file(path, MAX_TEXT))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise_if_silent(path, error)
        if is_hidden(path, error):
            logging.warning(
                "%s may not be read, if it is there, as the object store says the same "
                "of what is not there to who may not list the bucket "
                "(storage.objects.list): it is taken for absent; if it is there, give "
                "the permission to read it, as it says which values of the images are "
                "black and white",
                path,
            )
            return None
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"{path} cannot be read ({reason}), and may say which values of the images "
            "beside it are black and white: repair it, or, if ldm-sample did not write "
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


class SetValues:
    """Which values are black and white in the images of a set.

    Attributes:
      words: The range of the first image, as text; None for 8 bits in full range.
    """

    def __init__(self, beside: Beside, flag: str) -> None:
        """Starts without images.

        Args:
          beside: The pixel format in the settings beside them.
          flag: Flag of the set, for messages.
        """
        self._beside, self._flag = beside, flag
        self.words, self._first, self._differing, self._named = None, None, 0, False

    def look(self, data: bytes, where: str) -> None:
        """Adds an image, and warns if its range of values differs from the first's.

        Args:
          data: Its encoded bytes.
          where: Its name, for messages.

        Raises:
          ConfigError: If its range of values is unknown.
        """
        self.add(self.words_of(data, where), where)

    def words_of(self, data: bytes, where: str) -> str | None:
        """Finds out which values of an image are black and white.

        Args:
          data: Its encoded bytes.
          where: Its name, for messages.

        Returns:
          The range as text; None for 8 bits in full range.

        Raises:
          ConfigError: If the range is unknown.
        """
        pixels, unsaid = self._beside
        if pixels is not None and not pixels.is_rgb:
            return pixels.describe_range()
        depth = depth_of(data)
        if unsaid is not None and (depth or is_other_png(data)):
            raise ConfigError(
                f"{self._flag}: {where} is not RGB of 8 bits, and {unsaid} does not "
                "say what it is, as ldm-sample did not yet: give the same ldm-sample "
                "command once more, which adds it without drawing again, or add it "
                f'there by hand, as "{PIXELS}": {{"channels": "grey", "value_range": '
                "[0, 255]}"
            )
        if depth is None:
            return None
        if depth == "array":
            raise ConfigError(
                f"{self._flag}: nothing says which values of {where} are black and "
                "white: give the folder samples of ldm-sample with the settings.json "
                "beside it, or images of 8 bits"
            )
        if not self._named:
            self._named = True
            logging.warning(
                "%s has 16 bits, and no settings.json of ldm-sample beside its folder "
                "says of which range: 0 is taken for black and 65535 for white",
                where,
            )
        return whole_range_of(0, 65535)

    def add(self, words: str | None, where: str) -> None:
        """Adds the range of an image, and warns if it differs from the first's.

        Args:
          words: Result of `words_of`.
          where: Name of the image, for messages.
        """
        if self._first is None:
            self._first, self.words = where, words
        elif words != self.words:
            self._differing += 1
            if self._differing <= _MOST_NAMED:
                bits = [8 if each is None else 16 for each in (words, self.words)]
                more = "; others are not named" * (self._differing == _MOST_NAMED)
                logging.warning(
                    "%s has %d bits and %s has %d: each fills the range of its own%s",
                    *(where, bits[0], self._first, bits[1], more),
                )
