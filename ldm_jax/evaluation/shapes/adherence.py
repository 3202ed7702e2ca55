"""Condition adherence: how well images show the scenes they are conditioned on.

All functions take `true`, the labels of N scenes (`labels.truth`, stacked), and `seen`,
the predictions of a probe classifier (`probe.py`) for N images.
"""

from typing import Any

import numpy as np

from ldm_jax.annotations import Bool
from ldm_jax.evaluation.shapes.labels import COLORS, NUM_KINDS

# A kind with fewer pixels, of 32 x 32, counts as a speck: less than one in a hundred
# shapes of the data set is so small.
_LEAST_FRACTION = 6 / 32**2


def adherence(true: dict[str, Any], seen: dict[str, Any]) -> dict[str, float]:
    """Measures images against the scenes they are conditioned on.

    Args:
      true: Dict of arrays of N scenes.
      seen: Dict of arrays of N images.

    Returns:
      Dict of a row of ADHERENCE -> float in [0, 1].
    """
    return {name: float(measure(true, seen)) for name, measure in ADHERENCE.items()}


def chance(
    true: dict[str, Any], seen: dict[str, Any], seed: int = 0, draws: int = 10
) -> dict[str, float]:
    """Measures adherence at chance level: with the scenes shuffled among the images.

    Args:
      true: Dict of arrays of N scenes.
      seen: Dict of arrays of N images.
      seed: Seed of the shuffling.
      draws: How often to shuffle; the results are averaged.

    Returns:
      As `adherence`.
    """
    rng, count = np.random.default_rng(seed), len(true["label"])
    rows = []
    for _ in range(draws):
        order = rng.permutation(count)
        rows.append(adherence({k: v[order] for k, v in true.items()}, seen))
    return {name: float(np.mean([row[name] for row in rows])) for name in ADHERENCE}


def kinds_seen(seen: dict[str, Any]) -> Bool[np.ndarray, "images kinds"]:
    """Finds the kinds of shapes in images.

    Args:
      seen: Dict of arrays of N images.

    Returns:
      Whether each of the 9 kinds is present, bool [N, 9]; False for kind 0, the ground.
    """
    maps = seen["segmentation"]
    fractions = [np.mean(maps == kind, axis=(1, 2)) for kind in range(NUM_KINDS)]
    found = np.stack(fractions, axis=1) >= _LEAST_FRACTION
    found[:, 0] = False
    return found


def _label(true, seen):
    return np.mean(true["label"] == seen["label"])


def _color(true, seen):
    return np.mean(true["color"] == seen["color"])


def _ground(true, seen):
    """How often the predicted colour is one of those of the ground."""
    return np.mean(true["grounds"][np.arange(len(seen["ground"])), seen["ground"]])


def _pattern(true, seen):
    return np.mean(true["pattern"] == seen["pattern"])


def _shapes(true, seen):
    """F1 of the kinds in each image, over all images."""
    return _f1(true["colors"] >= 0, kinds_seen(seen), True)


def _colored_shapes(true, seen):
    """F1 of pairs of kind and colour, over all images."""
    same = true["colors"] == _colors_seen(seen)
    return _f1(true["colors"] >= 0, kinds_seen(seen), same)


def _f1(there, found, right):
    return 2 * np.sum(there & found & right) / max(1, there.sum() + found.sum())


def _colors_seen(seen):
    """The most frequent colour of the pixels of each kind, int [N, 9]."""
    kinds = np.eye(NUM_KINDS)[seen["segmentation"]]
    colors = np.eye(len(COLORS))[seen["colors"]]
    return np.einsum("nhwk,nhwc->nkc", kinds, colors, optimize=True).argmax(-1)


def _pixels(true, seen):
    return np.mean(true["segmentation"] == seen["segmentation"])


def _mean_iou(true, seen):
    """Intersection over union of all pixels of a kind, averaged over kinds."""
    ious = []
    for kind in range(NUM_KINDS):
        one, other = true["segmentation"] == kind, seen["segmentation"] == kind
        if one.any():
            ious.append(np.sum(one & other) / np.sum(one | other))
    return np.mean(ious)


def _foreground_iou(true, seen):
    """Intersection over union of everything but the ground, over all images."""
    one, other = true["segmentation"] > 0, seen["segmentation"] > 0
    return np.sum(one & other) / np.sum(one | other)


def _box_iou(true, seen):
    """Mean IoU of each box and that around the predicted pixels of its kind, else 0."""
    found = kinds_seen(seen)
    size = seen["segmentation"].shape[1]
    ious = []
    for index, kind in np.argwhere(true["colors"] >= 0):
        iou = 0.0
        if found[index, kind]:
            box = _box(seen["segmentation"][index] == kind) / size
            iou = _iou(true["boxes"][index, kind], box)
        ious.append(iou)
    return np.mean(ious)


def _box(mask):
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return np.array([rows[0], columns[0], rows[-1] + 1, columns[-1] + 1])


def _iou(one, other):
    """Intersection over union of two boxes (ymin, xmin, ymax, xmax)."""
    low, high = np.maximum(one[:2], other[:2]), np.minimum(one[2:], other[2:])
    common = np.prod(np.clip(high - low, 0, None))
    areas = np.prod(one[2:] - one[:2]) + np.prod(other[2:] - other[:2])
    return common / (areas - common)


# Labels of N scenes and predictions of N images -> [0, 1]; equal ones give 1.
ADHERENCE = {
    "class": _label,
    "color": _color,
    "ground": _ground,
    "pattern": _pattern,
    "shapes": _shapes,
    "colored_shapes": _colored_shapes,
    "pixels": _pixels,
    "mean_iou": _mean_iou,
    "foreground_iou": _foreground_iou,
    "box_iou": _box_iou,
}
