"""Sets of images as streams of their features."""

from collections.abc import Iterator
from typing import NamedTuple

import jax
import numpy as np

from ldm_jax import peers, sharding
from ldm_jax.annotations import Float, Int, UInt8
from ldm_jax.errors import DataError
from ldm_jax.evaluation.image_sets import ImageSet
from ldm_jax.evaluation.nearest.search import Nearest
from ldm_jax.evaluation.scoring import Progress, numbers_of
from ldm_jax.metrics.programs import FeatureProgram, require_finite

# The tap of each network whose features are compared.
TAPS = {
    "dinov2": "class_token",
    "inception": "2048",
    "inception_pytorch_fid": "2048",
    "clip": "embedding",
    "random": "pooled",
}

# Number of training images whose own neighbours are found too, and of the parts of the
# set that they are taken from: folders are often sorted by class.
_CONTROLS, _PARTS = 1_000, 16


class Rows(NamedTuple):
    """Features of the images of a batch that can be read.

    Attributes:
      numbers: Numbers of the images in their set, int [n].
      features: float32 [n, D].
    """

    numbers: Int[np.ndarray, " n"]
    features: Float[np.ndarray, "n features"]


class Places:
    """Positions of a set's batches, so that some of its images can be read again."""

    def __init__(self, images: ImageSet) -> None:
        """Starts without batches.

        Args:
          images: The set.
        """
        self._images = images
        # For each batch: the position before it, and the number of its first row.
        self._starts, self._firsts = [], []

    def note(self, start: int, first: int) -> None:
        """Records a batch.

        Args:
          start: Position before the batch, see `ImageSet.batches`.
          first: Number of its first row, larger than those of earlier batches.
        """
        self._starts.append(start)
        self._firsts.append(first)

    def read(
        self, numbers: Int[np.ndarray, "..."]
    ) -> dict[int, UInt8[np.ndarray, "h w 3"]]:
        """Reads, or draws, images again; every process must call it.

        Args:
          numbers: Numbers of images in the recorded batches, an array of any shape,
            also with repetitions.

        Returns:
          Number -> uint8 [H, W, 3].
        """
        found = {}
        numbers = np.unique(numbers)
        batch_of = np.searchsorted(self._firsts, numbers, side="right") - 1
        for k in np.unique(batch_of).tolist():
            batches = self._images.batches(self._starts[k])
            _, batch = next(batches)
            batches.close()
            rows = sharding.gathered(batch["image"])
            for number in numbers[batch_of == k].tolist():
                # A copy, so that the rest of the batch can be freed.
                found[number] = rows[number - self._firsts[k]].copy()
            peers.progress()
        return found


class Found(NamedTuple):
    """The neighbours of samples, and those of some training images.

    Attributes:
      numbers: Numbers of the samples in their set, int [K].
      nearest: The nearest training images of the samples.
      controls: Distances of training images to their nearest other one, float64 [M].
      samples: Positions of the samples' batches.
      training: Positions of the training images' batches.
    """

    numbers: Int[np.ndarray, " k"]
    nearest: Nearest
    controls: Float[np.ndarray, " m"]
    samples: Places
    training: Places


def rows_of(
    images: ImageSet,
    program: FeatureProgram,
    start: int = 0,
    places: Places | None = None,
) -> Iterator[tuple[int, Rows]]:
    """Computes the features of a set, batch by batch; every process must call it.

    Args:
      images: The set.
      program: Computes features of one tap.
      start: Position to begin at, see `ImageSet.batches`.
      places: Records the batches, if given.

    Yields:
      (position after the batch, Rows) of the images that can be read.

    Raises:
      DataError: If features are not finite.
    """
    for end, batch in images.batches(start):
        found, mask = jax.device_get(program(batch["image"], batch["mask"], None))
        ((tap, features),) = found.items()
        real = np.flatnonzero(mask)
        require_finite(features[real], program.network.name, tap)
        numbers = numbers_of(batch, start)
        if places is not None:
            places.note(start, int(numbers[0]))
        yield end, Rows(numbers[real], features[real])
        start = end


def find_nearest(
    samples: ImageSet, training: ImageSet, program: FeatureProgram, count: int
) -> Found:
    """Finds the training images nearest to samples, in one pass over each set.

    Some training images are read once more, as controls. Only the features of these and
    of the samples are kept in memory.

    Args:
      samples: The samples.
      training: The training images.
      program: Computes features of one tap.
      count: Number of neighbours of each sample.

    Returns:
      The neighbours.

    Raises:
      DataError: If images cannot be read, or features are not finite.
    """
    places = Places(samples), Places(training)
    drawn = [rows for _, rows in rows_of(samples, program, places=places[0])]
    if not any(len(rows.numbers) for rows in drawn):
        raise DataError(f"none of the images of {samples.name} can be read")
    numbers, features = (np.concatenate(each) for each in zip(*drawn, strict=True))
    nearest = Nearest(features, min(count, training.count))
    control_features, own = _controls(training, program)
    controls = Nearest(control_features, 1, own)
    progress = Progress(training, 0)
    for end, rows in rows_of(training, program, places=places[1]):
        controls.add(rows.features, rows.numbers)
        nearest.add(rows.features, rows.numbers)
        progress.advance(end)
    progress.close()
    distances = controls.distances[:, 0]
    distances = distances[np.isfinite(distances)]
    if not len(distances):
        raise DataError(
            f"fewer than two of the {training.count} images of {training.name} can be "
            "read: they are compared with one another, too"
        )
    return Found(numbers, nearest, distances, *places)


def _controls(training, program):
    """(features, numbers) of training images spread over the whole set."""
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
