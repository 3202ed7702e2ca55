"""Detects images in files whose bit depth leaves the range of their values open."""

from typing import Any

from ldm_jax.errors import DecodeError
from ldm_jax.images.decoding import SIXTEEN, open_image
from ldm_jax.images.header_sizes import find_size
from ldm_jax.images.memory import without_pillows_limit
from ldm_jax.images.planes import NPY, PNG, TIFF, is_array
from ldm_jax.reading import parse_array

# Beginnings of files that may have more than 8 bits: TIFF, PGM and PPM, JPEG 2000.
_DEEP = (*TIFF, b"P5", b"P6", b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP")


def depth_of(data: Any) -> str | None:
    """Detects images that do not define which of their values are black and white.

    Args:
      data: Encoded bytes, or an array.

    Returns:
      None for images of 8 bits and data that are no image; "16 bits" for integers that
      may or may not use their full range; "array" for data that define neither the
      meaning of their channels nor their range.
    """
    if not isinstance(data, bytes):
        return "array" if is_array(data) else None
    if data.startswith(NPY):
        try:
            array = parse_array(data)
        except ValueError:
            return None
        return "array" if is_array(array) else None
    if data.startswith(PNG):
        return "16 bits" if data[24:25] == b"\x10" else None
    if not data.startswith(_DEEP):
        return None
    try:
        with without_pillows_limit(), open_image(data) as image:
            mode, known = image.mode, image.format in SIXTEEN
    # Damaged files raise nearly anything; reading the image then reports it.
    except Exception:
        # A TIFF with a valid size has channels that Pillow does not support.
        return "array" if data.startswith(TIFF) and has_size(data) else None
    if mode.startswith("I;16") or (mode == "I" and known):
        return "16 bits"
    return "array" if mode in ("I", "F") else None


def has_size(data: Any) -> bool:
    """Returns whether the size of an image can be read, which rules out junk.

    Args:
      data: Encoded bytes, or an array.

    Returns:
      Whether it can.
    """
    if not isinstance(data, bytes):
        return True
    try:
        find_size(lambda at, count: data[at : at + count], len(data))
    except DecodeError:
        return False
    return True


def is_other_png(data: Any) -> bool:
    """Returns whether an image is a PNG of anything but 8-bit RGB.

    Args:
      data: Encoded bytes, or an array.

    Returns:
      Whether it is.
    """
    is_png = isinstance(data, bytes) and data.startswith(PNG)
    # Bit depth and colour type.
    return is_png and data[24:26] != b"\x08\x02"
