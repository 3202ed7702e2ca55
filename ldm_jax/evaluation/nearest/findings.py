"""Results of the search for neighbours: a fraction, a JSON record and an image grid."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ldm_jax.annotations import Int, UInt8
from ldm_jax.evaluation.nearest.streams import Found
from ldm_jax.images import make_grid

# A sample is near if its distance is below this quantile of the distances of training
# images to their nearest other one; of new images of the same kind this fraction is.
QUANTILE = 0.05

# Pixels between samples and neighbours.
_GAP = 8


class Near(NamedTuple):
    """How many samples are near to a training image.

    Attributes:
      threshold: Distance below which a sample is near, the QUANTILE of the controls.
      fraction: Fraction of the samples that are near.
      controls: Number of training images that the threshold is computed from.
    """

    threshold: float
    fraction: float
    controls: int


def near(found: Found) -> Near:
    """Counts the samples that are nearer to a training image than these are to another.

    Args:
      found: The neighbours.

    Returns:
      The fraction of such samples, and the threshold.
    """
    threshold = float(np.quantile(found.controls, QUANTILE))
    fraction = float(np.mean(found.nearest.distances[:, 0] < threshold))
    return Near(threshold, fraction, len(found.controls))


def order_of(found: Found) -> Int[np.ndarray, " k"]:
    """Sorts the samples by the distance to their nearest training image.

    Args:
      found: The neighbours.

    Returns:
      Indices of the samples, int [K], the nearest first.
    """
    return np.argsort(found.nearest.distances[:, 0], kind="stable")


def grid_of(found: Found, rows: int) -> UInt8[np.ndarray, "height width 3"]:
    """Makes a grid of samples on the left and their neighbours, nearest first, right.

    The images are read, or drawn, again; every process must call it.

    Args:
      found: The neighbours.
      rows: Number of samples to show, those nearest to a training image.

    Returns:
      uint8 [height, width, 3].
    """
    chosen = order_of(found)[:rows]
    samples = found.samples.read(found.numbers[chosen])
    samples = [samples[number] for number in found.numbers[chosen].tolist()]
    numbers = found.nearest.numbers[chosen]
    images = found.training.read(numbers[numbers >= 0])
    # Missing neighbours are white.
    white = np.full_like(samples[0], 255)
    images = [images.get(number, white) for number in numbers.ravel().tolist()]
    left = make_grid(np.stack(samples), columns=1)
    right = make_grid(np.stack(images), columns=numbers.shape[1])
    gap = np.full((len(left), _GAP, 3), 255, np.uint8)
    return np.concatenate([left, gap, right], axis=1)


def record_of_neighbours(
    found: Found, describe_sample: Callable[[int], str], describe: Callable[[int], str]
) -> dict[str, Any]:
    """Makes the record of all neighbours for `neighbours.json`.

    Args:
      found: The neighbours.
      describe_sample: Number of a sample -> its name.
      describe: Number of a training image -> its name.

    Returns:
      JSON-like dict: "samples", in order; "shown", their indices by the distance to the
      nearest training image; and the fields of `Near`, with its quantile.
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
