"""Cropping and resizing: one rectangle for an image and everything that belongs to it.

As in CompVis: the shorter side is scaled to the size asked for (antialiased), the
longer one is cropped, at the centre or at random, and half of the training images are
mirrored. Rectangles are fractions of the sides, so that maps of any resolution are
cropped alike.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from ldm_jax.annotations import Bool, Float, Int, Num, Shaped, UInt8

# Where the crop is taken: the values of the option `crop`.
CROPS = ("center", "random")

# Value of `flip` that mirrors every image.
ALWAYS = "always"

# Boxes per example are padded or cut to this number, more than an image of COCO has.
MAX_BOXES = 100

# Key of an example that holds the result of `size_and_crop`.
SIZE_AND_CROP = "size_and_crop"

# Side of a square in pixels, or (height, width).
Size = int | tuple[int, int]


class Crop(NamedTuple):
    """A rectangle in fractions of width and height, and whether to mirror it."""

    left: float
    top: float
    right: float
    bottom: float
    flip: bool


WHOLE = Crop(0.0, 0.0, 1.0, 1.0, False)


def choose_crop(
    width: int,
    height: int,
    size: Size,
    crop: str = "center",
    flip: bool | str = False,
    rng: np.random.Generator | None = None,
    min_crop: float = 1.0,
) -> Crop:
    """Chooses the rectangle to crop.

    Args:
      width: Width of the image in pixels.
      height: Height of the image in pixels.
      size: Side of the result in pixels, or its (height, width).
      crop: Row of CROPS.
      flip: Whether to mirror with probability 1/2; ALWAYS mirrors.
      rng: NumPy generator; needed if anything is random.
      min_crop: Smallest crop, as a fraction of the largest crop's sides; below 1 the
        fraction is drawn at random.

    Returns:
      A Crop with the proportions of the result, as large as the image allows, times a
      fraction from `min_crop` to 1.
    """
    rows, columns = sides(size)
    # `old` pixels of the image become `new` pixels of the result.
    wide = width * rows > height * columns
    old, new = (height, rows) if wide else (width, columns)
    if min_crop < 1:
        old *= rng.uniform(min_crop, 1)
    cut_width, cut_height = columns * old / new, rows * old / new
    # Positions are whole pixels of the rescaled image, as in CompVis.
    spare_x = round(width * new / old) - columns
    spare_y = round(height * new / old) - rows
    if crop == "random":
        left, top = rng.integers(spare_x + 1), rng.integers(spare_y + 1)
        left, top = left * old / new, top * old / new
    else:
        left, top = (width - cut_width) / 2, (height - cut_height) / 2
    left, top = min(left, width - cut_width), min(top, height - cut_height)
    return Crop(
        left / width,
        top / height,
        (left + cut_width) / width,
        (top + cut_height) / height,
        flip == ALWAYS or bool(flip and rng.random() < 0.5),
    )


def size_and_crop(
    size: tuple[int, int], crop: Crop, shape: tuple[int, int]
) -> Float[np.ndarray, "6"]:
    """Makes the size and crop condition of SDXL (Podell et al. 2023, Sec. 2.2).

    Args:
      size: (height, width) of the original in pixels.
      crop: The crop taken from it.
      shape: (height, width) of the result in pixels.

    Returns:
      float32 [6]: height and width of the original, top and left of the crop in pixels
      of the image as it was resized and mirrored, height and width of the result.
    """
    height, width = shape
    top = crop.top / (crop.bottom - crop.top) * height
    left = 1 - crop.right if crop.flip else crop.left
    left = left / (crop.right - crop.left) * width
    return np.array([*size, round(top), round(left), height, width], np.float32)


def whole_size(shape: tuple[int, int]) -> Float[np.ndarray, "6"]:
    """Makes `size_and_crop` of an image that was neither cropped nor resized.

    Args:
      shape: Its (height, width) in pixels.

    Returns:
      float32 [6].
    """
    return size_and_crop(tuple(shape), WHOLE, tuple(shape))


def sides(size: Size) -> tuple[int, int]:
    """Expands a size to (height, width).

    Args:
      size: Side of a square in pixels, or (height, width).

    Returns:
      (height, width) in pixels.
    """
    return size if isinstance(size, tuple) else (size, size)


def resize_image(
    image: Image.Image | Float[np.ndarray, "H W channels"], crop: Crop, size: Size
) -> Num[np.ndarray, "height width *channels"]:
    """Crops and resizes an image, antialiased (bicubic).

    Args:
      image: PIL image of mode RGB, RGBA or L, or floats [H, W, channels].
      crop: Crop.
      size: Side of the result in pixels, or its (height, width).

    Returns:
      uint8 [height, width, 3] or [height, width, 4], or [height, width] of grey; or
      float32 [height, width, channels], which may exceed the range of the image.
    """
    if isinstance(image, np.ndarray):
        planes = np.ascontiguousarray(np.moveaxis(image, -1, 0), np.float32)
        planes = [_bicubic(Image.fromarray(plane), crop, size) for plane in planes]
        resized = np.stack([np.asarray(plane) for plane in planes], axis=-1)
    else:
        resized = np.asarray(_bicubic(image, crop, size))
    return _mirrored(resized, crop)


def _bicubic(image, crop, size):
    box, shape = _pixels(crop, *image.size), sides(size)[::-1]
    # reducing_gap first shrinks by a whole factor if the image gets much smaller.
    bicubic = Image.Resampling.BICUBIC
    return image.resize(shape, bicubic, box=box, reducing_gap=3.0)


def crop_image(
    image: Image.Image, crop: Crop, size: Size
) -> UInt8[np.ndarray, "height width 3"]:
    """Crops an image at its own resolution, such as a low-resolution version.

    Args:
      image: PIL image of mode RGB.
      crop: Crop.
      size: Not used.

    Returns:
      uint8 [height, width, 3].
    """
    del size
    box = tuple(round(edge) for edge in _pixels(crop, *image.size))
    return _mirrored(np.asarray(image.crop(box)), crop)


def resize_labels(
    labels: Shaped[np.ndarray, "H W"], crop: Crop, size: Size
) -> Int[np.ndarray, "height width"]:
    """Crops and resizes a map of integers by nearest neighbour.

    Args:
      labels: [H, W].
      crop: Crop.
      size: Side of the result in pixels, or its (height, width).

    Returns:
      int32 [height, width].
    """
    height, width = labels.shape
    left, top, right, bottom = _pixels(crop, width, height)
    rows, columns = ((np.arange(side) + 0.5) / side for side in sides(size))
    columns = (left + columns * (right - left)).astype(int).clip(0, width - 1)
    rows = (top + rows * (bottom - top)).astype(int).clip(0, height - 1)
    if crop.flip:
        columns = columns[::-1]
    return labels[rows[:, None], columns].astype(np.int32)


def resize_mask(
    mask: Shaped[np.ndarray, "H W"], crop: Crop, size: Size
) -> Bool[np.ndarray, "height width"]:
    """Crops and resizes a mask by nearest neighbour.

    Args:
      mask: [H, W].
      crop: Crop.
      size: Side of the result in pixels, or its (height, width).

    Returns:
      bool [height, width]: true above half of the mask's largest value.
    """
    # Thresholded first: masks may be floats, while labels are integers.
    return resize_labels(mask > mask.max() / 2, crop, size).astype(bool)


def resize_floats(
    values: Float[np.ndarray, "H W channels"],
    crop: Crop,
    size: Size,
    mirrored: Sequence[int] = (),
) -> Float[np.ndarray, "height width channels"]:
    """Crops and resizes a map of floats, antialiased (bilinear).

    Args:
      values: [H, W, channels].
      crop: Crop.
      size: Side of the result in pixels, or its (height, width).
      mirrored: Channels that change their sign where the map is mirrored, such as the
        first one of surface normals, which points to the right.

    Returns:
      float32 [height, width, channels].
    """
    height, width, channels = values.shape
    box, shape = _pixels(crop, width, height), sides(size)[::-1]
    bilinear = Image.Resampling.BILINEAR
    planes = np.ascontiguousarray(np.moveaxis(values, -1, 0), np.float32)
    planes = [Image.fromarray(p).resize(shape, bilinear, box=box) for p in planes]
    resized = np.asarray(planes[0])[..., None] if channels == 1 else np.dstack(planes)
    if crop.flip and mirrored:
        resized[..., list(mirrored)] *= -1
    return _mirrored(resized, crop)


def crop_boxes(
    boxes: Shaped[np.ndarray, "..."] | Sequence, crop: Crop
) -> Float[np.ndarray, "count 4"]:
    """Converts boxes to coordinates relative to the crop.

    Args:
      boxes: [n, 4] as (ymin, xmin, ymax, xmax) in [0, 1], n >= 0.
      crop: Crop.

    Returns:
      float32 [n, 4] in the same form, clipped to the crop; boxes outside it are zeros.
    """
    boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
    top, left, bottom, right = boxes.T
    frame_height, frame_width = crop.bottom - crop.top, crop.right - crop.left
    rows = np.clip((np.stack([top, bottom]) - crop.top) / frame_height, 0, 1)
    columns = np.clip((np.stack([left, right]) - crop.left) / frame_width, 0, 1)
    if crop.flip:
        columns = 1 - columns[::-1]
    moved = np.stack([rows[0], columns[0], rows[1], columns[1]], axis=1)
    visible = (rows[1] > rows[0]) & (columns[1] > columns[0])
    return np.where(visible[:, None], moved, 0).astype(np.float32)


def pad_boxes(
    boxes: Shaped[np.ndarray, "..."] | Sequence,
    labels: Shaped[np.ndarray, "..."] | Sequence,
) -> tuple[Float[np.ndarray, "count 4"], Int[np.ndarray, " count"]]:
    """Pads boxes to MAX_BOXES, after dropping those outside the crop.

    Args:
      boxes: [n, 4]; those of zeros are outside the crop.
      labels: Their classes, [n].

    Returns:
      (boxes float32 [MAX_BOXES, 4], labels int32 [MAX_BOXES]), padded with zeros and
      -1; if there are more than MAX_BOXES, the first ones.
    """
    boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
    labels = np.asarray(labels, np.int32).reshape(-1)
    shown = np.flatnonzero(boxes.any(axis=1))[:MAX_BOXES]
    result = np.zeros((MAX_BOXES, 4), np.float32), np.full(MAX_BOXES, -1, np.int32)
    for padded, values in zip(result, (boxes, labels), strict=True):
        padded[: len(shown)] = values[shown]
    return result


def _mirrored(array: np.ndarray, crop: Crop) -> np.ndarray:
    return array[:, ::-1] if crop.flip else array


def _pixels(crop: Crop, width: int, height: int) -> tuple[float, float, float, float]:
    """The crop's edges in pixels, as Pillow expects them."""
    return (
        crop.left * width,
        crop.top * height,
        min(crop.right * width, width),
        min(crop.bottom * height, height),
    )
