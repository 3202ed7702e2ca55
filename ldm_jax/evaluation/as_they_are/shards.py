"""The error for a folder of shards where a folder of images is expected."""

import contextlib
import os
from collections.abc import Iterator

from ldm_jax.errors import ConfigError, DataError
from ldm_jax.images import Pixels


@contextlib.contextmanager
def explaining_shards(
    path: str, pixels: Pixels, flag: str, image_size: int | None
) -> Iterator[None]:
    """Adds to errors of opening a folder how its shards, if any, can be measured.

    Args:
      path: Path of the folder.
      pixels: Channels, bits and range of its images.
      flag: The flag that names the folder.
      image_size: Side to which images are cropped and resized, or None.

    Yields:
      Nothing.

    Raises:
      ConfigError: If it cannot be opened.
      DataError: If a part of it cannot be read.
    """
    try:
        yield
    except DataError:
        raise
    except ValueError as error:
        names, advice = [], ""
        # If the folder cannot be listed, the error says so already.
        with contextlib.suppress(OSError):
            names = sorted(os.listdir(path))
        for suffix, how in (("npz", _of_npz(pixels)), ("tar", _of_tar(image_size))):
            found = [name for name in names if name.endswith(f".{suffix}")]
            if found and how:
                advice = f"; it has shards, as {found[0]}: {how}"
        # The flag replaces the name of the config section.
        reason = str(error).removeprefix("data: ")
        raise ConfigError(f"{flag}: {reason}{advice}") from error


def _of_npz(pixels):
    if not pixels.is_rgb:
        return (
            "samples of other channels, bits or ranges than photos have are measured "
            "as files; draw them with --output=png"
        )
    return (
        "measure one of them, or samples.npz, which the same ldm-sample command with "
        "--npz writes of all, without drawing again"
    )


def _of_tar(image_size):
    if image_size is not None:
        return ""
    return "give --image_size, the side of the samples, which reads them"
