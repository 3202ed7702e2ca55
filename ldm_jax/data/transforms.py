"""Turns examples of a source into arrays of one size: decode, crop, resize, mirror.

The crop is chosen for the image (`crops.py`), and everything else is cropped with it as
its row of MODALITIES defines (`modalities.py`).
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ldm_jax.annotations import Num
from ldm_jax.data.crops import (
    SIZE_AND_CROP,
    Crop,
    Size,
    choose_crop,
    resize_image,
    sides,
    size_and_crop,
)
from ldm_jax.data.modalities import MODALITIES, as_text, modality_of, pack, unpack
from ldm_jax.images import RGB, Pixels, batch_image, decode_pixels, size_of
from ldm_jax.images.header_sizes import size_in


def transform(
    example: Mapping[str, Any],
    size: Size,
    crop: str = "center",
    flip: bool | str = False,
    rng: np.random.Generator | None = None,
    min_crop: float = 1.0,
    with_size: bool = False,
    pixels: Pixels = RGB,
) -> dict[str, Any]:
    """Makes the arrays of one example.

    Args:
      example: Dict from a source, with at least an "image".
      size: Side S of the images in pixels, or their (height, width).
      crop: Row of CROPS.
      flip: Whether to mirror with probability 1/2; `crops.ALWAYS` mirrors.
      rng: NumPy generator; needed if anything is random.
      min_crop: See `choose_crop`.
      with_size: Whether to add "size_and_crop", see `crops.size_and_crop`.
      pixels: Channels and type of the image.

    Returns:
      Dict of "image" [S, S, C], by default uint8 [S, S, 3]; "label" int32 [];
      "segmentation" int32 [S, S]; "depth" float32 [S, S, 1]; "boxes" float32
      [MAX_BOXES, 4] and "box_labels" int32 [MAX_BOXES], see `pad_boxes`; "mask" bool
      [S, S]; "low_res" uint8 [h, w, 3] at its own resolution, and so on for every row
      of MODALITIES that the example has; strings as str, "caption" as a list of str if
      there are several; other values unchanged.

    Raises:
      DecodeError: If one of the images cannot be decoded.
    """
    image = decode_pixels(example["image"], max(sides(size)), pixels)
    where = choose_crop(*extent(image), size, crop, flip, rng, min_crop)
    followed = {}
    if with_size:
        original = _original_size(example["image"])
        example = {**example, SIZE_AND_CROP: None}
        followed[SIZE_AND_CROP] = size_and_crop(original, where, sides(size))
    for key in example:
        name = modality_of(key)
        # A modality of several keys is handled at the first of them.
        if name == "image":
            followed[key] = cut_image(image, where, size, pixels)
        elif name is not None and key not in followed:
            followed |= _follow(name, pack(name, example), where, size)
    return {
        key: followed[key] if key in followed else as_text(value)
        for key, value in example.items()
    }


def extent(image: Any) -> tuple[int, int]:
    """Returns the size of a decoded image.

    Args:
      image: PIL image, or an array [H, W, ...].

    Returns:
      (width, height) in pixels.
    """
    return image.shape[1::-1] if isinstance(image, np.ndarray) else image.size


def cut_image(
    image: Any, crop: Crop, size: Size, pixels: Pixels = RGB
) -> Num[np.ndarray, "height width channels"]:
    """Crops and resizes an image of any kind at its full precision.

    Args:
      image: Result of `images.decode_pixels`.
      crop: Crop.
      size: Side of the result in pixels, or its (height, width).
      pixels: Its channels and type.

    Returns:
      Array [height, width, C] in the type of a batch.
    """
    layered = pixels.kind == "rgba" and isinstance(image, np.ndarray)
    image = resize_image(_weighted(image) if layered else image, crop, size)
    return batch_image(_unweighted(image) if layered else image, pixels)


def _weighted(image):
    """Colours times opacity, so that those of transparent pixels do not bleed."""
    image = (image + 1) / 2
    return np.concatenate([image[..., :3] * image[..., 3:], image[..., 3:]], axis=-1)


def _unweighted(image):
    colours, opacity = image[..., :3], image[..., 3:].clip(0, 1)
    colours = colours / np.maximum(opacity, np.float32(1e-6))
    return np.concatenate([colours.clip(0, 1), opacity], axis=-1) * 2 - 1


def _original_size(data):
    """(height, width) of an image in a file, which decoding may reduce."""
    if isinstance(data, np.ndarray):
        return data.shape[:2]
    width, height = isinstance(data, bytes) and size_in(data) or size_of(data)
    return height, width


def _follow(name, value, where, size):
    """Crops a modality with the image; returns its part of the example."""
    row = MODALITIES[name]
    if value is None or row.follow is None:
        return {}
    if row.decode is not None:
        value = row.decode(value)
    return unpack(name, row.follow(value, where, size))
