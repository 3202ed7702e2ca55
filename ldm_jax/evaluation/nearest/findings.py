"""What the nearest training images say: a fraction, a file and an image grid."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ldm_jax.annotations import Int, UInt8
from ldm_jax.evaluation.nearest.streams import Found
from ldm_jax.images import make_grid

# Below this quantile of the distances of training images to their nearest other one a
# sample is called near: of fresh images of the same kind as many are.
QUANTILE = 0.05

# Pixels between samples and neighbours.
_GAP = 8


class Near(NamedTuple):
    """How many samples are near to a training image.

    Attributes:
      threshold: The distance below which they are, QUANTILE of the controls'.
      fraction: Of all samples.
      controls: Number of training images that the threshold is of.
    """

    threshold: float
    fraction: float
    controls: int


def near(found: Found) -> Near:
    """Counts the samples that are nearer to a training image than these to another.

    Args:
      found: The neighbours.

    Returns:
      What was counted.
    """
    threshold = float(np.quantile(found.controls, QUANTILE))
    fraction = float(np.mean(found.nearest.distances[:, 0] < threshold))
    return Near(threshold, fraction, len(found.controls))


def order_of(found: Found) -> Int[np.ndarray, " k"]:
    """Orders the samples, that which is nearest to a training image first.

    Args:
      found: The neighbours.

    Returns:
      Places of the samples, int [K].
    """
    return np.argsort(found.nearest.distances[:, 0], kind="stable")


def grid_of(found: Found, rows: int) -> UInt8[np.ndarray, "height width 3"]:
    """Shows samples on the left, their neighbours by growing distance on the right.

    Their images are read again, or drawn; every process must call it.

    Args:
      found: The neighbours.
      rows: How many samples, those nearest to a training image.

    Returns:
      uint8 [height, width, 3].
    """
    chosen = order_of(found)[:rows]
    samples = found.samples.read(found.numbers[chosen])
    samples = [samples[number] for number in found.numbers[chosen].tolist()]
    numbers = found.nearest.numbers[chosen]
    images = found.training.read(numbers[numbers >= 0])
    # Where there were fewer neighbours it stays white.
    white = np.full_like(samples[0], 255)
    images = [images.get(number, white) for number in numbers.ravel().tolist()]
    left = make_grid(np.stack(samples), columns=1)
    right = make_grid(np.stack(images), columns=numbers.shape[1])
    gap = np.full((len(left), _GAP, 3), 255, np.uint8)
    return np.concatenate([left, gap, right], axis=1)


def record_of_neighbours(
    found: Found, describe_sample: Callable[[int], str], describe: Callable[[int], str]
) -> dict[str, Any]:
    """Lists all neighbours, for `neighbours.json`.

    Args:
      found: The neighbours.
      describe_sample: Number of a sample -> its name.
      describe: Number of a training image -> its name.

    Returns:
      JSON-like dict; the samples are in order, and "shown" has their places there, that
      of the sample which is nearest to a training image first.
    """
    samples = []
    columns = found.numbers, found.nearest.numbers, found.nearest.distances
    columns = (column.tolist() for column in columns)
    for sample, numbers, distances in zip(*columns, strict=True):
        neighbours = [
            {"image": number, "name": describe(number), "distance": distance}
            for number, distance in zip(numbers, distances, strict=True)
            if number >= 0
        ]
        named = {"sample": sample, "name": describe_sample(sample)}
        samples.append(named | {"neighbours": neighbours})
    counted = near(found)
    return {
        "quantile": QUANTILE,
        "threshold": counted.threshold,
        "controls": counted.controls,
        "fraction_nearer": counted.fraction,
        "shown": order_of(found).tolist(),
        "samples": samples,
    }
