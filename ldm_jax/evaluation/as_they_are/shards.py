"""What to do with shards of samples where a folder of images is asked for."""

import contextlib
import os
from collections.abc import Iterator

from ldm_jax.errors import ConfigError, DataError
from ldm_jax.images import Pixels


@contextlib.contextmanager
def explaining_shards(
    path: str, pixels: Pixels, flag: str, image_size: int | None
) -> Iterator[None]:
    """Says of a folder that cannot be opened in the block what its shards are good for.

    Args:
      path: Path of the folder.
      pixels: What its images are.
      flag: What names it.
      image_size: Side to which images are to be brought, or None.

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
        # Where that is what is wrong, it has been said.
        with contextlib.suppress(OSError):
            names = sorted(os.listdir(path))
        for suffix, how in (("npz", _of_npz(pixels)), ("tar", _of_tar(image_size))):
            found = [name for name in names if name.endswith(f".{suffix}")]
            if found and how:
                advice = f"; it has shards, as {found[0]}: {how}"
        # The flag stands for the section of the config.
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
        "--npz writes of all, and draws nothing anew"
    )


def _of_tar(image_size):
    if image_size is not None:
        return ""
    return "give --image_size, the side of the samples, which reads them"
