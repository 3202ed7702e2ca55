"""Image files that are written: PNG of 8 or 16 bits, or `.npy` of what PNG cannot hold.

They hold the numbers of the data, in the units of `data.value_range`, so that what was
sampled can be trained on.
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
    """Writes a PNG file in one move: a reader sees the whole file or none.

    Args:
      path: Where to; missing folders are made.
      image: As for `encode_png`, [H, W] or [H, W, C].

    Raises:
      ValueError: If `image` is of another type.
      DiskError: If it cannot be written.
    """
    write_bytes(path, encode_png(image))


def suffix_of(pixels: Pixels) -> str:
    """Says what image files of a run are.

    Args:
      pixels: Pixels of the run.

    Returns:
      ".png" of grey, RGB and RGBA of 8 bits and of grey of 16, else ".npy".
    """
    whole = pixels.dtype.kind == "u" and _fits(pixels)
    deep = pixels.dtype.itemsize > 1
    is_png = whole and (pixels.kind == "grey" or (pixels.kind and not deep))
    return ".png" if is_png else ".npy"


def _fits(pixels):
    """Whether whole numbers of a batch's type hold the values of the data."""
    if pixels.value_range is None:
        return True
    low, high = pixels.value_range
    # Of a narrow range, as of floats in [0, 1], whole numbers would leave two levels.
    whole = float(low).is_integer() and float(high).is_integer() and high - low >= 127
    return whole and low >= 0 and high <= np.iinfo(pixels.dtype).max


def write_image(
    path: str | os.PathLike, image: Num[np.ndarray, "H W channels"], pixels: Pixels
) -> None:
    """Writes an image of a batch in one move.

    Args:
      path: Where to, with the suffix of `suffix_of`; missing folders are made.
      image: Image in the type of a batch, [H, W, C].
      pixels: What it means.

    Raises:
      DiskError: If it cannot be written.
    """
    write_bytes(path, encode_image(image, pixels))


def encode_image(image: Num[np.ndarray, "H W channels"], pixels: Pixels) -> bytes:
    """Encodes an image of a batch.

    Args:
      image: Image in the type of a batch, [H, W, C].
      pixels: What it means.

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
      pixels: Of what kind and type it is to be.

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
    """Maps the numbers of a file to an image of a batch: undoes `file_values`.

    Args:
      values: Array [H, W, C].
      pixels: What they mean.

    Returns:
      Image in the type of a batch, [H, W, C].

    Raises:
      DecodeError: If they are something else.
    """
    if pixels.value_range is None:
        return values
    return batch_image(decode_planes(values, pixels), pixels)


def as_written(pixels: Pixels) -> Pixels:
    """Says what the numbers in files of samples mean.

    Args:
      pixels: Pixels of their run.

    Returns:
      Pixels, of floats in [-1, 1] where the data have no range of their own.
    """
    if pixels.dtype == np.float32 and pixels.value_range is None:
        return dataclasses.replace(pixels, value_range=(-1.0, 1.0))
    return pixels


def batch_image(image: Any, pixels: Pixels) -> Num[np.ndarray, "H W channels"]:
    """Brings a decoded image to the type of a batch.

    Args:
      image: PIL image or array uint8 [H, W] or [H, W, C], or floats in [-1, 1].
      pixels: What is wanted.

    Returns:
      Array [H, W, C].
    """
    image = np.asarray(image)
    image = image[..., None] if image.ndim == 2 else image
    return image if image.dtype == np.uint8 else pixels.quantise(image)


def file_values(
    images: Num[np.ndarray, "*batch H W channels"], pixels: Pixels
) -> Shaped[np.ndarray, "*batch H W channels"]:
    """Maps images of a batch to the numbers that files of them hold.

    Args:
      images: Images in the type of a batch, [..., H, W, C].
      pixels: What they mean.

    Returns:
      Array like it: of whole numbers in the units of the data where the type of a batch
      holds them, else float32.
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
