"""Labels of a scene of the data set `shapes`, as arrays to compare images with.

Kinds are numbered as in segmentations: 0 is the ground, k + 1 is class k. No two shapes
of a scene have the same kind, so a kind's pixels are one shape's, of one colour.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ldm_jax.data.shapes import captions, scenes
from ldm_jax.data.shapes.drawing import PATTERNS
from ldm_jax.errors import ConfigError

# Keys that an example must have.
KEYS = ("image", "label", "caption", "segmentation", "boxes", "box_labels")

COLORS, GROUNDS, PATTERNS = (list(t) for t in (scenes.COLORS, scenes.GROUNDS, PATTERNS))
NUM_KINDS = len(scenes.CLASS_NAMES) + 1


def truth(example: dict[str, Any]) -> dict[str, Any]:
    """Collects the labels of a scene.

    Args:
      example: Dict with KEYS, of side S, boxes [n, 4] and box_labels [n], -1 for
        padding.

    Returns:
      Dict of "label" int, the class of the main shape; "color" int, index of its colour
      in COLORS; "grounds" bool [11], the colours of the ground, in the order of
      GROUNDS; "pattern" int, index in PATTERNS; "colors" int [9], the colour of the
      shape of each kind, -1 for absent kinds; "segmentation" int [S, S]; "boxes" float
      [9, 4] as (ymin, xmin, ymax, xmax) in [0, 1], the box of each kind, zeros for
      absent kinds.

    Raises:
      ConfigError: If the example is not one of `shapes`.
    """
    missing = [key for key in KEYS if key not in example]
    if missing:
        raise ConfigError(
            f"the data has no {', '.join(missing)}: only the data set `shapes` can be "
            "evaluated (python -m ldm_jax.data.shapes)"
        )
    try:
        caption = captions.read(example["caption"])
    except ValueError as error:
        raise ConfigError(str(error)) from error
    colors = np.full(NUM_KINDS, -1)
    for color, kind in caption.shapes:
        colors[scenes.CLASS_NAMES.index(kind) + 1] = COLORS.index(color)
    boxes = np.zeros((NUM_KINDS, 4), np.float32)
    for box, label in zip(example["boxes"], example["box_labels"], strict=True):
        if label >= 0:
            boxes[label + 1] = box
    return {
        "label": int(example["label"]),
        "color": COLORS.index(caption.shapes[0][0]),
        "grounds": np.isin(GROUNDS, caption.grounds),
        "pattern": PATTERNS.index(caption.pattern),
        "colors": colors,
        "segmentation": np.asarray(example["segmentation"], np.int32),
        "boxes": boxes,
    }


def stack(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Stacks examples.

    Args:
      rows: N dicts with the same keys.

    Returns:
      Dict of arrays [N, ...].
    """
    return {key: np.stack([row[key] for row in rows]) for key in rows[0]}
