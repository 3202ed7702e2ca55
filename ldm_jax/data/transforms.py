"""From what a source gives to arrays of one size: decode, crop, resize, mirror.

The image decides on the crop (`crops.py`), and everything else follows it as its row of
MODALITIES says (`modalities.py`).
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ldm_jax.data.crops import (
    SIZE_AND_CROP,
    Size,
    choose_crop,
    sides,
    size_and_crop,
)
from ldm_jax.data.modalities import MODALITIES, as_text, modality_of, pack, unpack
from ldm_jax.images import size_of
from ldm_jax.images.header_sizes import size_in


def transform(
    example: Mapping[str, Any],
    size: Size,
    crop: str = "center",
    flip: bool | str = False,
    rng: np.random.Generator | None = None,
    min_crop: float = 1.0,
    with_size: bool = False,
) -> dict[str, Any]:
    """Makes the arrays of one example.

    Args:
      example: Dict from a source, with an "image" at least.
      size: Side S of the images in pixels, or their (height, width).
      crop: Row of CROPS.
      flip: Whether to mirror with probability 1/2; `crops.ALWAYS` mirrors.
      rng: NumPy generator; needed for what is random.
      min_crop: See `choose_crop`.
      with_size: Whether to add "size_and_crop", see `crops.size_and_crop`.

    Returns:
      Dict of "image" uint8 [S, S, 3]; "label" int32 []; "segmentation" int32 [S, S];
      "depth" float32 [S, S, 1]; "boxes" float32 [MAX_BOXES, 4] and "box_labels" int32
      [MAX_BOXES], see `pad_boxes`; "mask" bool [S, S]; "low_res" uint8 [h, w, 3] at its
      own resolution, and so on for every row of MODALITIES, as far as the example has
      them; strings as str, of "caption" a list of str where there are several; other
      values as they are.

    Raises:
      DecodeError: If one of the images cannot be decoded.
    """
    image = MODALITIES["image"].decode(example["image"], max(sides(size)))
    where = choose_crop(*image.size, size, crop, flip, rng, min_crop)
    followed = {}
    if with_size:
        original = _original_size(example["image"])
        example = {**example, SIZE_AND_CROP: None}
        followed[SIZE_AND_CROP] = size_and_crop(original, where, sides(size))
    for key in example:
        name = modality_of(key)
        # A modality of several keys follows with the first of them.
        if name is not None and key not in followed:
            value = image if name == "image" else pack(name, example)
            followed |= _follow(name, value, where, size)
    return {
        key: followed[key] if key in followed else as_text(value)
        for key, value in example.items()
    }


def _original_size(data):
    """(height, width) of an image in a file, which decoding may reduce."""
    if isinstance(data, np.ndarray):
        return data.shape[:2]
    width, height = isinstance(data, bytes) and size_in(data) or size_of(data)
    return height, width


def _follow(name, value, where, size):
    """The part of an example that holds a modality, cut as the image is."""
    row = MODALITIES[name]
    if value is None or row.follow is None:
        return {}
    if row.decode is not None and name != "image":
        value = row.decode(value)
    return unpack(name, row.follow(value, where, size))
