"""The memory limit for reading one image, and the memory that reading it needs.

The header of a file of some kilobytes can state any number of pixels. Pillow rejects
more than 179 million, regardless of their size in memory; here the limit is in bytes,
and can be raised.
"""

import contextlib
import contextvars
import math
import threading
from collections.abc import Iterator

from PIL import ExifTags, Image

from ldm_jax.errors import ConfigError, DecodeError

# Memory that reading one image may take, in units of 10^9 bytes.
DEFAULT_GB = 1.0

_limit = contextvars.ContextVar("max_image_gb", default=DEFAULT_GB)

_Tag = ExifTags.Base

# Bytes per pixel that decoders of whole images need beside the result.
_BESIDES = {"WEBP": 12, "AVIF": 8, "JPEG2000": 16}


def memory_limit(gigabytes: float | None) -> contextlib.AbstractContextManager[None]:
    """Limits the memory that reading one image may take, in a `with` block.

    Args:
      gigabytes: Limit in 10^9 bytes; None for DEFAULT_GB.

    Returns:
      Context manager; the limit applies to the thread that enters it.

    Raises:
      ConfigError: If the limit is not a positive number.
    """
    gigabytes = DEFAULT_GB if gigabytes is None else gigabytes
    if not 0 < gigabytes < float("inf"):
        raise ConfigError(f"max_image_gb must be a number above 0, got {gigabytes}")
    return _limited(gigabytes)


@contextlib.contextmanager
def _limited(gigabytes):
    token = _limit.set(gigabytes)
    try:
        yield
    finally:
        _limit.reset(token)


def limit_bytes() -> int:
    """Returns how much memory one image, or one array beside it, may take.

    Returns:
      Number of bytes.
    """
    return int(_limit.get() * 1e9)


def require_memory(needed: float, what: str) -> None:
    """Raises an error if reading something would take more memory than the limit.

    Args:
      needed: Bytes that it would take.
      what: What it is, for the message, e.g. "40000 x 30000 pixels".

    Raises:
      DecodeError: If `needed` exceeds the limit.
    """
    if needed > limit_bytes():
        raise DecodeError(
            f"{what} take {needed / 1e9:.2g} GB to read, and the limit is "
            f"{_limit.get():g} GB: raise it by --config.data.max_image_gb in training "
            "and --max_image_gb elsewhere, or make it smaller"
        )


def bytes_to_load(image: Image.Image, size: tuple[int, int]) -> int:
    """Counts the memory that Pillow takes to decode an opened image.

    Args:
      image: Opened image, not loaded yet; a JPEG may be drafted.
      size: (width, height) in pixels of the image in the file.

    Returns:
      Number of bytes.
    """
    pixels = image.width * image.height
    needed = pixels * (bytes_per_pixel(image.mode) + _BESIDES.get(image.format, 0))
    if image.info.get("progressive"):
        # All coefficients of the full-size image, in 16 bits, even if it is drafted.
        needed += 2 * len(image.getbands()) * size[0] * size[1]
    return needed + (_bytes_of_part(image) if image.format == "TIFF" else 0)


def _bytes_of_part(image):
    """Bytes of libtiff's buffer: a strip, or a tile, which may exceed its image."""
    if not image.tile or image.tile[0][0] != "libtiff":
        return 0
    tags = image.tag_v2
    width, height = tags[_Tag.ImageWidth], tags[_Tag.ImageLength]
    rows = min(tags.get(_Tag.RowsPerStrip, height), height)
    if _Tag.TileWidth in tags:
        width, rows = tags[_Tag.TileWidth], tags[_Tag.TileLength]
    return width * rows * math.ceil(sum(tags.get(_Tag.BitsPerSample, (1,))) / 8)


def bytes_per_pixel(mode: str) -> int:
    """Returns the bytes per pixel of Pillow's images in memory.

    Args:
      mode: Mode of an image.

    Returns:
      Bytes per pixel.
    """
    if mode in ("1", "L", "P"):
        return 1
    return 2 if mode.startswith("I;16") else 4


# Marks a lifted limit while images are read: any other value was set by the program,
# and this one is recognised if the program saves it and sets it again.
_LIFTED = float("inf")

_lock, _depth, _saved = threading.Lock(), 0, None


@contextlib.contextmanager
def without_pillows_limit() -> Iterator[None]:
    """Lifts Pillow's own limit, a global of its module, while an image is read.

    Other threads may read at the same time, and the program may set or restore a limit
    meanwhile: the one that it set last is in force when no thread reads any more.

    Yields:
      Nothing.
    """
    global _depth, _saved
    with _lock:
        found, others_read = Image.MAX_IMAGE_PIXELS, _depth > 0
        if found is not _LIFTED and not others_read:
            _saved = found
        Image.MAX_IMAGE_PIXELS = _LIFTED
        _depth += 1
    try:
        yield
    finally:
        with _lock:
            _depth -= 1
            if Image.MAX_IMAGE_PIXELS is _LIFTED:
                if found is not _LIFTED and others_read:
                    Image.MAX_IMAGE_PIXELS = found
                elif not _depth:
                    Image.MAX_IMAGE_PIXELS = _saved
