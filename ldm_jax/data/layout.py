"""Layouts as token ids: boxes with classes, as CompVis writes them.

A layout is up to `max_objects` objects of three ids each, (class, upper left corner,
lower right corner), and two ids for the corners of the crop: 92 ids for 30 objects
(Esser et al. 2021, "Taming Transformers", and the `objects_bbox` of CompVis). A corner
(x, y) is one cell of a square grid over the image, counted row by row, with
isqrt(vocab_size - 1) cells per side: 90 for 8192 ids. Classes and cells share the ids
and are distinguished by their position in the sequence: class 5 and cell 5 are both id
5. The last id means "no object" and is the padding.

Objects keep their order; CompVis shuffles them in training, and so does the input
"layout" by default.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ldm_jax.annotations import Bool, Float, Int, Shaped
from ldm_jax.data.labels import find_class

WHOLE = (0.0, 0.0, 1.0, 1.0)

# How far boxes may exceed the image by rounding, as a fraction of its sides: at most a
# pixel of images of 64 pixels. They are clipped to the image.
EDGE = 1 / 64

# The largest label that a box can have.
_MOST = np.iinfo(np.int32).max


def num_sections(vocab_size: int) -> int:
    """Counts the cells per side of the grid of corners.

    CompVis takes isqrt(vocab_size): if vocab_size is a square number, its last cell has
    the id of "no object"; otherwise the two agree.

    Args:
      vocab_size: Number of ids.

    Returns:
      Number of cells.
    """
    return math.isqrt(vocab_size - 1)


def encode_layout(
    boxes: Shaped[np.ndarray, "..."] | Sequence,
    labels: Shaped[np.ndarray, "..."] | Sequence,
    vocab_size: int = 8192,
    max_objects: int = 30,
    crop: Sequence[float] = WHOLE,
) -> Int[np.ndarray, " length"]:
    """Encodes a layout as token ids.

    Args:
      boxes: [n, 4] as (ymin, xmin, ymax, xmax) in [0, 1].
      labels: Integers [n]; objects with a negative one are left out, and so are those
        beyond `max_objects`.
      vocab_size: Number of ids.
      max_objects: Largest number of objects.
      crop: Box of the crop in the coordinates of `boxes`. Here boxes are relative to
        the cropped image, so it is all of it; in CompVis, to the uncropped image.

    Returns:
      int32 [3 * max_objects + 2].

    Raises:
      ValueError: If a label has no id.
    """
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    labels = np.asarray(labels, np.int64).reshape(-1)
    if len(boxes) != len(labels):
        raise ValueError(
            f"{len(boxes)} boxes and {len(labels)} box labels: give one per box"
        )
    if (labels >= vocab_size - 1).any():
        raise ValueError(
            f"box label {labels.max()} has no id: labels go up to {vocab_size - 2}; "
            "give the layout a larger vocab_size"
        )
    boxes, labels = boxes[labels >= 0][:max_objects], labels[labels >= 0][:max_objects]
    ids = np.full(3 * max_objects + 2, vocab_size - 1, np.int32)
    objects = ids[:-2].reshape(max_objects, 3)[: len(labels)]
    objects[:, 0] = labels
    objects[:, 1:] = _corners(boxes, num_sections(vocab_size))
    ids[-2:] = _corners(np.asarray([crop]), num_sections(vocab_size))[0]
    return ids


def decode_layout(
    ids: Int[np.ndarray, " length"], vocab_size: int = 8192
) -> tuple[
    Float[np.ndarray, "count 4"], Int[np.ndarray, " count"], Float[np.ndarray, "4"]
]:
    """Decodes a layout from its token ids.

    Args:
      ids: Integers [3 * max_objects + 2].
      vocab_size: Number of ids.

    Returns:
      (boxes float32 [n, 4] as (ymin, xmin, ymax, xmax) in [0, 1], labels int32 [n],
      crop float32 [4]); corners are rounded to the grid, by half a cell at most.
    """
    ids = np.asarray(ids)
    objects = ids[:-2].reshape(-1, 3)
    objects = objects[objects[:, 0] != vocab_size - 1]
    pairs = np.concatenate([objects[:, 1:], ids[None, -2:]])
    sections = num_sections(vocab_size)
    y, x = np.divmod(pairs, sections)
    corners = np.stack([y[:, 0], x[:, 0], y[:, 1], x[:, 1]], axis=1) / (sections - 1)
    corners = corners.astype(np.float32)
    return corners[:-1], objects[:, 0].astype(np.int32), corners[-1]


def _corners(boxes, sections):
    """Cells of the upper left and lower right corners, int [n, 2]."""
    cells = np.rint(boxes.clip(0, 1) * (sections - 1)).astype(np.int64)
    top, left, bottom, right = cells.T
    return np.stack([top * sections + left, bottom * sections + right], axis=1)


def parse_layout(
    objects: Any, names: Sequence[str] | None = None
) -> tuple[Float[np.ndarray, "count 4"], Int[np.ndarray, " count"]]:
    """Parses a layout from decoded JSON.

    Args:
      objects: List of {"label": number or name, "box": [ymin, xmin, ymax, xmax]}, boxes
        in [0, 1].
      names: Names of the classes in the order of their numbers; None if unknown.

    Returns:
      (boxes float32 [n, 4], labels int32 [n]); see `check_boxes`.

    Raises:
      ValueError: If it is not a layout, or has an unknown class.
    """
    form = '[{"label": 3, "box": [ymin, xmin, ymax, xmax]}, ...]'
    if not isinstance(objects, list):
        raise ValueError(f"a layout is a list of objects: {form}")
    boxes, labels = [], []
    for entry in objects:
        if not isinstance(entry, dict) or not {"label", "box"} <= entry.keys():
            raise ValueError(f"an object of a layout is not {entry!r}: write {form}")
        labels.append(_label(entry["label"], names))
        boxes.append(_box(entry["box"]))
    return check_boxes(boxes), np.asarray(labels, np.int32)


def check_boxes(
    boxes: Shaped[np.ndarray, "..."] | Sequence,
) -> Float[np.ndarray, "count 4"]:
    """Checks boxes and clips those that exceed the image by rounding.

    Args:
      boxes: [n, 4] as (ymin, xmin, ymax, xmax).

    Returns:
      float32 [n, 4] in [0, 1]; some may have no area, see `without_area`.

    Raises:
      ValueError: If one exceeds the image by more than EDGE, or its sides are swapped.
    """
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    top, left, bottom, right = boxes.T
    inside = (boxes >= -EDGE) & (boxes <= 1 + EDGE)  # False for NaN.
    right_way = (top <= bottom + EDGE) & (left <= right + EDGE)
    wrong = np.flatnonzero(~(inside.all(axis=1) & right_way))
    if wrong.size:
        raise ValueError(
            f"box {boxes[wrong[0]].tolist()} must have 0 <= ymin < ymax <= 1 and "
            "0 <= xmin < xmax <= 1"
        )
    return boxes.clip(0, 1).astype(np.float32)


def without_area(
    boxes: Shaped[np.ndarray, "..."] | Sequence,
) -> Bool[np.ndarray, " count"]:
    """Finds boxes without area.

    Args:
      boxes: [n, 4] as (ymin, xmin, ymax, xmax) in [0, 1].

    Returns:
      bool [n], true where a box has no height or no width.
    """
    top, left, bottom, right = np.asarray(boxes, np.float32).reshape(-1, 4).T
    return (bottom <= top) | (right <= left)


def _label(label, names):
    number = isinstance(label, int) and not isinstance(label, bool)
    if number or (names and isinstance(label, str) and label in names):
        found = find_class(label, names or ())
        if found is not None and found <= _MOST:
            return found
    if number and not any(name.isdecimal() for name in names or ()):
        most = f" to {len(names) - 1}" if names else " on"
        raise ValueError(f"label {label} of a box is out of range: 0{most}")
    known = (
        f"choose from {', '.join(names)}"
        if names
        else "give the class's number, or name the classes in data.box_names"
    )
    raise ValueError(f"label {label!r} of a box is unknown: {known}")


def _box(box):
    try:
        top, left, bottom, right = map(float, box)
    # An integer of four hundred digits overflows a float.
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(
            f"box {box!r} must be [ymin, xmin, ymax, xmax], in [0, 1]"
        ) from error
    return top, left, bottom, right
