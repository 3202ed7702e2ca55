"""Images between the disk and the models: uint8 <-> [-1, 1], grids, PNG files.

`decoding.py` reads files of any format and mode, within the memory of `memory.py`;
`header_sizes.py` reads their sizes alone.
"""

import io
import math
import os
from typing import Any

import numpy as np
from PIL import Image

from ldm_jax.annotations import Float, Shaped, UInt8
from ldm_jax.files import write_bytes
from ldm_jax.images.decoding import (
    BACKGROUND,
    decode,
    decode_grey,
    decode_plane,
    size_of,
)
from ldm_jax.images.header_sizes import find_size
from ldm_jax.images.memory import DEFAULT_GB, limit_bytes, memory_limit, require_memory

__all__ = [
    "BACKGROUND",
    "DEFAULT_GB",
    "decode",
    "decode_grey",
    "decode_plane",
    "encode_png",
    "find_size",
    "limit_bytes",
    "make_grid",
    "memory_limit",
    "read_image",
    "require_memory",
    "size_of",
    "to_float",
    "to_uint8",
    "write_png",
]


def to_float(images: Shaped[Any, "*shape"]) -> Float[Any, "*shape"]:
    """Maps uint8 images to float32 in [-1, 1].

    Args:
      images: NumPy or JAX array of uint8, of any shape.

    Returns:
      float32 array of the same kind and shape: x / 127.5 - 1.
    """
    return images.astype("float32") / 127.5 - 1


def to_uint8(images: Float[Any, "*shape"]) -> UInt8[Any, "*shape"]:
    """Maps images in [-1, 1] to uint8, the inverse of `to_float`.

    Args:
      images: NumPy or JAX array of floats, of any shape; values outside are clipped.

    Returns:
      uint8 array of the same kind and shape: floor(127.5 x + 128) in [0, 255].
    """
    return (images.astype("float32") * 127.5 + 128).clip(0, 255).astype("uint8")


def make_grid(
    images: Shaped[Any, "..."], columns: int | None = None, border: int = 2
) -> UInt8[np.ndarray, "height width 3"]:
    """Lays images out in rows, with white between them.

    Args:
      images: uint8 [N, H, W, 3], N >= 1.
      columns: Images per row; None makes the grid about square.
      border: Width of the gaps in pixels.

    Returns:
      uint8 [rows * (H + border) - border, columns * (W + border) - border, 3]; places
      without an image are white.

    Raises:
      ValueError: If `images` is not uint8 [N, H, W, 3].
    """
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise ValueError(
            "a grid needs uint8 images [N, H, W, 3], got "
            f"{images.dtype} {list(images.shape)}; use to_uint8 on floats"
        )
    count, height, width, _ = images.shape
    if not count:
        raise ValueError("a grid needs at least one image, got none")
    columns = min(count, columns or math.ceil(math.sqrt(count)))
    rows = math.ceil(count / columns)
    step = (height + border, width + border)
    grid = np.full((rows * step[0], columns * step[1], 3), 255, np.uint8)
    for index, image in enumerate(images):
        top, left = (index // columns) * step[0], (index % columns) * step[1]
        grid[top : top + height, left : left + width] = image
    return grid[: rows * step[0] - border, : columns * step[1] - border]


def encode_png(image: Shaped[Any, "H W *channels"]) -> bytes:
    """Encodes an image as PNG.

    Args:
      image: uint8 [H, W, 3] or [H, W].

    Returns:
      Bytes of the PNG file.

    Raises:
      ValueError: If `image` is not uint8.
    """
    image = np.asarray(image)
    if image.dtype != np.uint8:
        raise ValueError(f"PNG needs uint8, got {image.dtype}; use to_uint8 on floats")
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="png")
    return buffer.getvalue()


def write_png(path: str | os.PathLike, image: Shaped[Any, "H W *channels"]) -> None:
    """Writes a PNG file in one move: a reader sees the whole file or none.

    Args:
      path: Where to; missing folders are made.
      image: uint8 [H, W, 3] or [H, W].

    Raises:
      ValueError: If `image` is not uint8.
      DiskError: If it cannot be written.
    """
    write_bytes(path, encode_png(image))


def read_image(source: Any) -> UInt8[np.ndarray, "H W 3"]:
    """Reads an image file of any format and mode as RGB; see `decoding.decode`.

    Args:
      source: Path, or the file's bytes.

    Returns:
      uint8 [H, W, 3].

    Raises:
      DecodeError: (a ValueError) If it is not an image or is damaged.
    """
    return np.asarray(decode(source))
