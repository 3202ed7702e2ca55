"""Images between the disk and the models: uint8 <-> [-1, 1], grids, PNG files.

`pixels.py` defines the channels, type and range of images. `decoding.py` decodes files
of any format and mode to 8 bits, within the memory limit of `memory.py`, and
`planes.py` those of more bits or channels; `map_decoding.py` decodes maps of classes,
depth and vectors. `header_sizes.py` only reads sizes. `image_files.py` writes files.
"""

import math
from typing import Any

import numpy as np

from ldm_jax.annotations import Shaped, UInt8
from ldm_jax.images.decoding import (
    BACKGROUND,
    decode,
    decode_grey,
    decode_plane,
    size_of,
)
from ldm_jax.images.depths import depth_of, has_size, is_other_png
from ldm_jax.images.header_sizes import find_size
from ldm_jax.images.image_files import (
    as_written,
    batch_image,
    encode_image,
    encode_png,
    file_values,
    from_values,
    read_image,
    suffix_of,
    write_image,
    write_png,
)
from ldm_jax.images.memory import DEFAULT_GB, limit_bytes, memory_limit, require_memory
from ldm_jax.images.pixels import (
    RGB,
    Pixels,
    pixels_of,
    to_float,
    to_uint8,
)
from ldm_jax.images.planes import decode_pixels
from ldm_jax.images.value_ranges import same_range, whole_range_of

__all__ = [
    "BACKGROUND",
    "DEFAULT_GB",
    "RGB",
    "Pixels",
    "as_written",
    "batch_image",
    "decode",
    "decode_grey",
    "decode_pixels",
    "decode_plane",
    "depth_of",
    "encode_image",
    "encode_png",
    "file_values",
    "find_size",
    "from_values",
    "has_size",
    "is_other_png",
    "limit_bytes",
    "make_grid",
    "memory_limit",
    "pixels_of",
    "read_image",
    "same_range",
    "require_memory",
    "size_of",
    "suffix_of",
    "to_float",
    "to_uint8",
    "write_image",
    "write_png",
    "whole_range_of",
]


def make_grid(
    images: Shaped[Any, "..."], columns: int | None = None, border: int = 2
) -> UInt8[np.ndarray, "height width 3"]:
    """Arranges images in a grid, with white between them.

    Args:
      images: uint8 [N, H, W, 3], N >= 1.
      columns: Images per row; None for an about square grid.
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
