"""From what a source gives to arrays of one size: decode, crop, resize, flip.

As in the original: the shorter side is scaled to the size asked for (antialiased), the
longer one is cropped, at the centre or at random, and half of the training images are
mirrored. The other maps of an example (segmentation, depth, boxes) follow the image.
"""

from typing import NamedTuple

import numpy as np
from PIL import Image

from ldm_jax.images import decode, decode_plane

CROPS = ("center", "random")

# Boxes per example are padded or cut to this number, more than a picture of COCO has.
MAX_BOXES = 100


class Crop(NamedTuple):
    """What to cut out of an image, in shares of its width and height, and mirroring."""

    left: float
    top: float
    right: float
    bottom: float
    flip: bool


def choose_crop(width, height, size, crop="center", flip=False, rng=None, min_crop=1.0):
    """Chooses the rectangle to cut out.

    Args:
      width: Width of the image in pixels.
      height: Height of the image in pixels.
      size: Side of the result in pixels, or its (height, width).
      crop: "center" or "random".
      flip: Whether to mirror with probability 1/2.
      rng: NumPy generator; needed for what is random.
      min_crop: Least share of the largest crop's sides; below 1 it is drawn at random.

    Returns:
      A Crop with the proportions of the result, as large as the image allows, times a
      share from `min_crop` to 1.
    """
    rows, columns = _sides(size)
    # So many pixels of the image become so many of the result.
    wide = width * rows > height * columns
    old, new = (height, rows) if wide else (width, columns)
    if min_crop < 1:
        old *= rng.uniform(min_crop, 1)
    cut_width, cut_height = columns * old / new, rows * old / new
    # Places are whole pixels of the rescaled image, as in the original.
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
        bool(flip and rng.random() < 0.5),
    )


def resize_image(image, crop, size):
    """Cuts out and resizes a picture, antialiased (bicubic).

    Args:
      image: PIL image.
      crop: Crop.
      size: Side S of the result in pixels, or its (height, width).

    Returns:
      uint8 [S, S, 3].
    """
    box, shape = _pixels(crop, *image.size), _sides(size)[::-1]
    # reducing_gap shrinks by a whole factor first where much is to be lost.
    bicubic = Image.Resampling.BICUBIC
    image = image.resize(shape, bicubic, box=box, reducing_gap=3.0)
    array = np.asarray(image)
    return array[:, ::-1] if crop.flip else array


def resize_labels(data, crop, size):
    """Cuts out and resizes a map of integers by the nearest pixel.

    Args:
      data: Encoded image of one channel, or array [H, W] or [H, W, 1].
      crop: Crop.
      size: Side S of the result in pixels, or its (height, width).

    Returns:
      int32 [S, S].
    """
    plane = decode_plane(data)
    height, width = plane.shape
    left, top, right, bottom = _pixels(crop, width, height)
    rows, columns = ((np.arange(side) + 0.5) / side for side in _sides(size))
    columns = (left + columns * (right - left)).astype(int).clip(0, width - 1)
    rows = (top + rows * (bottom - top)).astype(int).clip(0, height - 1)
    if crop.flip:
        columns = columns[::-1]
    return plane[rows[:, None], columns].astype(np.int32)


def resize_depth(data, crop, size):
    """Cuts out and resizes a depth map, antialiased (bilinear).

    Args:
      data: Encoded image of one channel, or array [H, W] or [H, W, 1]; integers are
        scaled by the largest number of their type.
      crop: Crop.
      size: Side S of the result in pixels, or its (height, width).

    Returns:
      float32 [S, S, 1]; in [0, 1] for integers.
    """
    plane = decode_plane(data)
    top = np.iinfo(plane.dtype).max if plane.dtype.kind in "iu" else 1
    image = Image.fromarray(plane.astype(np.float32) / np.float32(top))
    box = _pixels(crop, *image.size)
    image = image.resize(_sides(size)[::-1], Image.Resampling.BILINEAR, box=box)
    array = np.asarray(image)[..., None]
    return array[:, ::-1] if crop.flip else array


def resize_mask(data, crop, size):
    """Cuts out and resizes a mask by the nearest pixel.

    Args:
      data: Encoded image of one channel, or array [H, W] or [H, W, 1].
      crop: Crop.
      size: Side S of the result in pixels, or its (height, width).

    Returns:
      bool [S, S]: what lies above half of the mask's largest value.
    """
    plane = decode_plane(data)
    return resize_labels(plane, crop, size) > plane.max() / 2


def crop_image(data, crop, size):
    """Cuts a picture out at its own resolution, as of a version that is smaller.

    Args:
      data: Encoded image, or uint8 [H, W, 3].
      crop: Crop.
      size: Not used.

    Returns:
      uint8 [h, w, 3].
    """
    del size
    image = decode(data)
    box = tuple(round(edge) for edge in _pixels(crop, *image.size))
    array = np.asarray(image.crop(box))
    return array[:, ::-1] if crop.flip else array


def crop_boxes(boxes, crop):
    """Moves boxes into the frame of the crop.

    Args:
      boxes: [n, 4] as (ymin, xmin, ymax, xmax) in [0, 1], n >= 0.
      crop: Crop.

    Returns:
      float32 [n, 4] in the same form, cut off at the frame; boxes outside it are zeros.
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


def pad_boxes(boxes, labels):
    """Brings boxes to one number, without those that a crop has left out.

    Args:
      boxes: [n, 4]; zeros are no box.
      labels: Their classes, [n].

    Returns:
      (boxes float32 [MAX_BOXES, 4], labels int32 [MAX_BOXES]), filled with zeros and
      -1; of more than MAX_BOXES the first.
    """
    boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
    labels = np.asarray(labels, np.int32).reshape(-1)
    shown = np.flatnonzero(boxes.any(axis=1))[:MAX_BOXES]
    result = np.zeros((MAX_BOXES, 4), np.float32), np.full(MAX_BOXES, -1, np.int32)
    for padded, values in zip(result, (boxes, labels), strict=True):
        padded[: len(shown)] = values[shown]
    return result


def transform(example, size, crop="center", flip=False, rng=None, min_crop=1.0):
    """Makes the arrays of one example.

    Args:
      example: Dict from a source.
      size: Side S of the pictures in pixels, or their (height, width).
      crop: "center" or "random".
      flip: Whether to mirror with probability 1/2.
      rng: NumPy generator; needed for what is random.
      min_crop: See `choose_crop`.

    Returns:
      Dict of "image" uint8 [S, S, 3]; "label" int32 []; "segmentation" int32 [S, S];
      "depth" float32 [S, S, 1]; "boxes" float32 [MAX_BOXES, 4] and "box_labels" int32
      [MAX_BOXES], see `pad_boxes`; "mask" bool [S, S]; "low_res" uint8 [h, w, 3] at its
      own resolution, as far as the example has them; strings as str, of "caption" a
      list of str where there are several; other values as they are.

    Raises:
      DecodeError: If one of the images cannot be decoded.
    """
    image = decode(example["image"], least_side=max(_sides(size)))
    where = choose_crop(*image.size, size, crop, flip, rng, min_crop)
    result = {}
    for key, value in example.items():
        if key == "image":
            result[key] = resize_image(image, where, size)
        elif key in MAPS:
            result[key] = MAPS[key](value, where, size)
        elif key == "boxes":
            result[key] = crop_boxes(value, where)
        elif key == "label":
            result[key] = np.int32(value)
        elif key == "caption" and not isinstance(value, str | bytes):
            result[key] = [_text(caption) for caption in value]
        else:
            result[key] = _text(value)
    if "boxes" in result:
        labels = result.get("box_labels", np.zeros(len(result["boxes"]), np.int32))
        result["boxes"], padded = pad_boxes(result["boxes"], labels)
        if "box_labels" in result:
            result["box_labels"] = padded
    return result


def _sides(size):
    """Height and width of a result."""
    return size if isinstance(size, tuple) else (size, size)


def _text(data):
    """Bytes that are text as a string; all else, such as encoded images, as it is."""
    try:
        return data.decode() if isinstance(data, bytes) else data
    except UnicodeDecodeError:
        return data


def _pixels(crop, width, height):
    """The crop's edges in pixels, as Pillow wants them."""
    return (
        crop.left * width,
        crop.top * height,
        min(crop.right * width, width),
        min(crop.bottom * height, height),
    )


# Further keys of an example that follow the image's crop.
MAPS = {
    "segmentation": resize_labels,
    "depth": resize_depth,
    "mask": resize_mask,
    "low_res": crop_image,
}
