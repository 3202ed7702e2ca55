"""Writes image files: PNG of 8 or 16 bits, or `.npy` for images that PNG cannot hold.

They contain the values of the data, in the units of `data.value_range`, so that samples
can be used as training data.
"""

import dataclasses
import io
import os
from typing import Any

import numpy as np
from PIL import Image

from ldm_jax.annotations import Num, Shaped
from ldm_jax.files import write_bytes
from ldm_jax.images.pixels import RGB, Pixels
from ldm_jax.images.planes import decode_pixels, decode_planes


def encode_png(image: Shaped[Any, "H W *channels"]) -> bytes:
    """Encodes an image as PNG.

    Args:
      image: uint8 [H, W], [H, W, 1], [H, W, 3] or [H, W, 4], or uint16 of one channel.

    Returns:
      Bytes of the PNG file.

    Raises:
      ValueError: If `image` is of another type.
    """
    image = np.asarray(image)
    if image.shape[2:] == (1,):
        image = image[..., 0]
    if image.dtype != np.uint8 and not (image.dtype == np.uint16 and image.ndim == 2):
        raise ValueError(
            f"PNG needs uint8, got {image.dtype} {list(image.shape)}; use to_uint8 on "
            "floats, and 16 bits for one channel alone"
        )
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="png")
    return buffer.getvalue()


def write_png(path: str | os.PathLike, image: Shaped[Any, "H W *channels"]) -> None:
    """Writes a PNG file atomically: a reader sees the whole file or none.

    Args:
      path: Path of the file; missing folders are created.
      image: As for `encode_png`, [H, W] or [H, W, C].

    Raises:
      ValueError: If `image` is of another type.
      DiskError: If it cannot be written.
    """
    write_bytes(path, encode_png(image))


def suffix_of(pixels: Pixels) -> str:
    """Returns the suffix of a run's image files.

    Args:
      pixels: Pixels of the run.

    Returns:
      ".png" for grey, RGB and RGBA of 8 bits and for grey of 16, else ".npy".
    """
    whole = pixels.dtype.kind == "u" and _fits(pixels)
    deep = pixels.dtype.itemsize > 1
    is_png = whole and (pixels.kind == "grey" or (pixels.kind and not deep))
    return ".png" if is_png else ".npy"


def _fits(pixels):
    """Whether the integers of a batch's type can represent the values of the data."""
    if pixels.value_range is None:
        return True
    low, high = pixels.value_range
    # In a narrow range, such as floats in [0, 1], integers would have two levels.
    whole = float(low).is_integer() and float(high).is_integer() and high - low >= 127
    return whole and low >= 0 and high <= np.iinfo(pixels.dtype).max


def write_image(
    path: str | os.PathLike, image: Num[np.ndarray, "H W channels"], pixels: Pixels
) -> None:
    """Writes an image of a batch atomically.

    Args:
      path: Path with the suffix of `suffix_of`; missing folders are created.
      image: Image in the type of a batch, [H, W, C].
      pixels: Its channels, type and range.

    Raises:
      DiskError: If it cannot be written.
    """
    write_bytes(path, encode_image(image, pixels))


def encode_image(image: Num[np.ndarray, "H W channels"], pixels: Pixels) -> bytes:
    """Encodes an image of a batch.

    Args:
      image: Image in the type of a batch, [H, W, C].
      pixels: Its channels, type and range.

    Returns:
      Bytes of a file with the suffix of `suffix_of`.
    """
    values = file_values(image, pixels)
    if suffix_of(pixels) == ".png":
        return encode_png(values)
    buffer = io.BytesIO()
    np.save(buffer, values, allow_pickle=False)
    return buffer.getvalue()


def read_image(source: Any, pixels: Pixels = RGB) -> Num[np.ndarray, "H W channels"]:
    """Reads an image file of any format and mode.

    Args:
      source: Path, or the file's bytes.
      pixels: Channels and type of the result.

    Returns:
      Image in the type of a batch, [H, W, C]: by default RGB, uint8.

    Raises:
      DecodeError: (a ValueError) If it is not an image or is damaged.
    """
    pixels = as_written(pixels)
    return batch_image(decode_pixels(source, pixels=pixels), pixels)


def from_values(
    values: Shaped[np.ndarray, "H W channels"], pixels: Pixels
) -> Num[np.ndarray, "H W channels"]:
    """Maps the values of a file to an image of a batch: the inverse of `file_values`.

    Args:
      values: Array [H, W, C].
      pixels: Their channels, type and range.

    Returns:
      Image in the type of a batch, [H, W, C].

    Raises:
      DecodeError: If they do not match `pixels`.
    """
    if pixels.value_range is None:
        return values
    return batch_image(decode_planes(values, pixels), pixels)


def as_written(pixels: Pixels) -> Pixels:
    """Returns the pixels of files of samples.

    Args:
      pixels: Pixels of their run.

    Returns:
      Pixels, with the range [-1, 1] for floats if the data have no range of their own.
    """
    if pixels.dtype == np.float32 and pixels.value_range is None:
        return dataclasses.replace(pixels, value_range=(-1.0, 1.0))
    return pixels


def batch_image(image: Any, pixels: Pixels) -> Num[np.ndarray, "H W channels"]:
    """Converts a decoded image to the type of a batch.

    Args:
      image: PIL image or array uint8 [H, W] or [H, W, C], or floats in [-1, 1].
      pixels: Type of the result.

    Returns:
      Array [H, W, C].
    """
    image = np.asarray(image)
    image = image[..., None] if image.ndim == 2 else image
    return image if image.dtype == np.uint8 else pixels.quantise(image)


def file_values(
    images: Num[np.ndarray, "*batch H W channels"], pixels: Pixels
) -> Shaped[np.ndarray, "*batch H W channels"]:
    """Maps images of a batch to the values in their files.

    Args:
      images: Images in the type of a batch, [..., H, W, C].
      pixels: Their channels, type and range.

    Returns:
      Array of the same shape, in the units of the data: integers if the type of a batch
      can represent them, else float32.
    """
    if pixels.value_range is None:
        return images
    low, high = pixels.value_range
    whole = pixels.dtype.kind == "u"
    least, span = (0.0, np.iinfo(pixels.dtype).max) if whole else (-1.0, 2.0)
    values = low + (images.astype(np.float64) - least) * ((high - low) / span)
    if whole and _fits(pixels):
        return np.round(values).astype(pixels.dtype)
    return values.astype(np.float32)
