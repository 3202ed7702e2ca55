"""Sets of images as streams of their features."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from ldm_jax import peers
from ldm_jax.annotations import Float, Int, UInt8
from ldm_jax.errors import DataError
from ldm_jax.evaluation.image_sets import ImageSet
from ldm_jax.evaluation.nearest.search import Nearest
from ldm_jax.evaluation.scoring import Progress, numbers_of
from ldm_jax.metrics.programs import FeatureProgram

# The tap of each network whose features are compared.
TAPS = {
    "dinov2": "class_token",
    "inception": "2048",
    "inception_pytorch_fid": "2048",
    "clip": "embedding",
    "random": "pooled",
}

# Training images whose own neighbours are found too, and parts of the set that they are
# taken from: folders are often in the order of classes.
_CONTROLS, _PARTS = 1_000, 16


class Rows(NamedTuple):
    """What can be read of a batch.

    Attributes:
      numbers: Numbers of the images in their set, int [n].
      features: float32 [n, D].
      images: Function without arguments -> uint8 [n, H, W, 3]; every process must call
        it, or none.
    """

    numbers: Int[np.ndarray, " n"]
    features: Float[np.ndarray, "n features"]
    images: Callable[[], UInt8[np.ndarray, "n h w 3"]]


class Found(NamedTuple):
    """The neighbours of samples, and those of some training images.

    Attributes:
      samples: uint8 [K, H, W, 3].
      numbers: Their numbers in their set, int [K].
      nearest: The nearest training images of the samples.
      images: Number of a training image -> uint8 [H, W, 3], of all these.
      controls: Distances of training images to their nearest other one, float64 [M].
    """

    samples: UInt8[np.ndarray, "k h w 3"]
    numbers: Int[np.ndarray, " k"]
    nearest: Nearest
    images: dict[int, UInt8[np.ndarray, "h w 3"]]
    controls: Float[np.ndarray, " m"]


def rows_of(
    images: ImageSet, program: FeatureProgram, start: int = 0
) -> Iterator[tuple[int, Rows]]:
    """Computes the features of a set, batch by batch; every process must call it.

    Args:
      images: The set.
      program: Computes features of one tap.
      start: Position to begin at, see `ImageSet.batches`.

    Yields:
      (position after the batch, Rows) of the images that can be read.

    Raises:
      DataError: If features are not finite.
    """
    for end, batch in images.batches(start):
        ((features,), mask) = _computed(program, batch)
        rows = np.flatnonzero(mask)
        if not np.isfinite(features[rows]).all():
            raise DataError(
                f"features of {images.name} are not finite numbers: the weights of the "
                "network are damaged or in another layout"
            )
        numbers, images = numbers_of(batch, start), _fetching(batch["image"], rows)
        yield end, Rows(numbers[rows], features[rows], images)
        start = end


def _computed(program, batch):
    found, mask = jax.device_get(program(batch["image"], batch["mask"], None))
    return tuple(found.values()), np.asarray(mask)


def _fetching(images, rows):
    def fetch():
        array = images
        if jax.process_count() > 1:
            array = multihost_utils.process_allgather(images, tiled=True)
        return np.asarray(array)[rows]

    return fetch


def find_nearest(
    samples: ImageSet, training: ImageSet, program: FeatureProgram, count: int
) -> Found:
    """Goes over the samples, and once over the training images.

    Args:
      samples: The samples; all of them are kept in memory, with their neighbours.
      training: The training images, of which no more are.
      program: Computes features of one tap.
      count: Neighbours of each sample.

    Returns:
      What was found.

    Raises:
      DataError: If images cannot be read, or features are not finite.
    """
    taken = [
        (rows.features, rows.images(), rows.numbers)
        for _, rows in rows_of(samples, program)
    ]
    features, *shown = (np.concatenate(each) for each in zip(*taken, strict=True))
    if not len(features):
        raise DataError(f"none of the images of {samples.name} can be read")
    nearest = Nearest(features, min(count, training.count))
    control_features, own = _controls(training, program)
    controls, images = Nearest(control_features, 1, own), {}
    progress = Progress(training, 0)
    for end, rows in rows_of(training, program):
        controls.add(rows.features, rows.numbers)
        if nearest.add(rows.features, rows.numbers):
            images = _kept(images, rows, nearest.numbers)
        progress.advance(end)
    progress.close()
    distances = controls.distances[:, 0]
    distances = distances[np.isfinite(distances)]
    if not len(distances):
        raise DataError(
            f"fewer than two of the {training.count} images of {training.name} can be "
            "read: they are compared with one another, too"
        )
    return Found(*shown, nearest, images, distances)


def _kept(images: dict[int, Any], rows: Rows, numbers: Any) -> dict[int, Any]:
    """The images of these numbers, of those before and of a batch."""
    new = dict(zip(rows.numbers.tolist(), rows.images(), strict=True))
    both = images | new
    # A copy, that the rest of the batch can be freed.
    return {k: both[k].copy() for k in np.unique(numbers).tolist() if k in both}


def _controls(training, program):
    """(features, numbers) of training images from all over the set."""
    features, numbers = [], []

    def take(start):
        batches = rows_of(training, program, start)
        end, rows = next(batches)
        batches.close()
        features.append(rows.features)
        numbers.append(rows.numbers)
        peers.progress()
        return end

    unit = take(0)
    last = -(-training.count // unit) - 1
    parts = min(_PARTS, max(1, _CONTROLS // unit))
    places = np.unique(np.linspace(0, last, parts).round().astype(int))
    for place in places[places > 0].tolist():
        take(place * unit)
    features, numbers = np.concatenate(features), np.concatenate(numbers)
    return features[:_CONTROLS], numbers[:_CONTROLS]
