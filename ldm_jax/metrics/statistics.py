"""Statistics of the features of a set of images, from a stream of batches.

Sums are float64 on the host, over fixed blocks of rows in the order of the images, so
that they depend neither on the batch size nor on the number of devices or processes.
"""

from collections.abc import Mapping
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from ldm_jax.annotations import Array, Float, Int, Shaped
from ldm_jax.errors import DataError

# Rows that are summed at a time; even, so that halves are alike in all blocks.
BLOCK = 512

# Fraction of the images whose rows are kept: none, and all.
NONE, ALL = Fraction(0), Fraction(1)


def evenly_spaced(total: int, most: int) -> Int[np.ndarray, " rows"]:
    """Chooses evenly spaced images of a set, which may be sorted by class.

    Args:
      total: Number of images.
      most: Number of images to choose; all if there are fewer.

    Returns:
      Their numbers, int [n], in order, as in `data.sources.spread`.
    """
    count = min(most, total)
    return np.arange(count) * total // max(count, 1)


class TapStatistics(NamedTuple):
    """Statistics of the features of a set of images at one tap of a network.

    Attributes:
      count: Number of images N.
      mean: float64 [D].
      covariance: Unbiased covariance, float64 [D, D].
      rows: The features, float32 [n, D] in the order of the images, of all images or n
        evenly spaced ones; None if no metric needs them.
      half: Statistics of every second image, without rows; None for very few images and
        for references. The difference between half and whole shows the bias of metrics
        that depend on the number of images.
    """

    count: int
    mean: Float[np.ndarray, " features"]
    covariance: Float[np.ndarray, "features features"]
    rows: Float[np.ndarray, "rows features"] | None = None
    half: "TapStatistics | None" = None


class Moments:
    """Accumulates the statistics of rows.

    Attributes:
      count: Number of rows so far.
    """

    def __init__(self, width: int, kept: Fraction = NONE) -> None:
        """Starts without rows.

        Args:
          width: Number of features D.
          kept: Fraction of the rows to keep, evenly spaced, at most ALL. Of n rows
            Fraction(m, n) keeps those of `evenly_spaced(n, m)`.
        """
        self.count = 0
        self._kept = kept
        # The kept rows of complete blocks, and the block that is being filled.
        self._blocks = []
        self._open = np.empty((BLOCK, width), np.float32)
        # Sums over the images of even and of odd index.
        self._sums = np.zeros((2, width))
        self._products = np.zeros((2, width, width))

    def add(self, features: Float[Array, "rows features"]) -> None:
        """Adds the features of further images.

        Args:
          features: [N, D]; they are cast to float32.
        """
        features = np.asarray(features, np.float32)
        while len(features):
            filled = self.count % BLOCK
            part = features[: BLOCK - filled]
            self._open[filled : filled + len(part)] = part
            self.count += len(part)
            features = features[len(part) :]
            if self.count % BLOCK == 0:
                self._close_block()

    def _close_block(self):
        for parity in (0, 1):
            rows = self._open[parity::2].astype(np.float64)
            self._sums[parity] += rows.sum(axis=0)
            self._products[parity] += rows.T @ rows
        if self._kept:
            self._blocks.append(self._chosen(self.count - BLOCK))

    def statistics(self) -> TapStatistics:
        """Returns the statistics of the rows so far.

        Returns:
          The statistics.

        Raises:
          DataError: If there are fewer than two.
        """
        if self.count < 2:
            raise DataError(
                f"statistics of a set need two images or more, got {self.count}"
            )
        even = self._total(0)
        whole = [a + b for a, b in zip(even, self._total(1), strict=True)]
        half = _summary(*even) if even[0] > 1 else None
        return _summary(*whole)._replace(rows=self._rows(), half=half)

    def _total(self, parity):
        """(count, sum, products) of the images of even or odd index so far."""
        rows = self._open[parity : self.count % BLOCK : 2].astype(np.float64)
        products = self._products[parity] + rows.T @ rows
        count = (self.count + 1 - parity) // 2
        return count, self._sums[parity] + rows.sum(axis=0), products

    def _rows(self):
        """The kept rows, [n, D], or None if none are kept."""
        if not self._kept:
            return None
        return self._joined(self._chosen(self.count - self.count % BLOCK))

    def _chosen(self, start):
        """The kept rows of the open block, whose first row has the number `start`."""
        before = self._kept_before(np.arange(start, self.count + 1))
        return self._open[: self.count - start][np.diff(before) > 0]

    def _kept_before(self, number):
        """How many of the first `number` rows are kept: their fraction, rounded up."""
        return -(-number * self._kept.numerator // self._kept.denominator)

    def _joined(self, last):
        """The kept rows of complete blocks and then the rows `last`, in one array."""
        whole = np.concatenate([*self._blocks, last])
        # A view of this array, so that the rows are in memory only once.
        self._blocks = [whole[: len(whole) - len(last)]]
        return whole

    def state(self) -> dict[str, Shaped[np.ndarray, "..."] | np.int64]:
        """Returns all that is needed to resume and get the same digits.

        Returns:
          Dict of arrays: "count" a scalar, "sums" [2, D], "products" [2, D, D] and
          "rows" [n, D]: the kept rows of complete blocks, and all of the open one.
        """
        return {
            "count": np.int64(self.count),
            "sums": self._sums.copy(),
            "products": self._products.copy(),
            "rows": self._joined(self._open[: self.count % BLOCK]),
        }

    def restore(
        self, state: Mapping[str, Shaped[np.ndarray, "..."] | np.int64]
    ) -> None:
        """Restores a state.

        Args:
          state: Result of `state`, dict of arrays, with the same number of features
            [D] and the same fraction of kept rows.

        Raises:
          DataError: If the shape of its rows is another one.
        """
        count, rows = int(state["count"]), np.asarray(state["rows"], np.float32)
        kept = self._kept_before(count - count % BLOCK)
        expected = (kept + count % BLOCK, self._sums.shape[1])
        if rows.shape != expected:
            raise DataError(
                f"the state of a set's statistics holds rows {rows.shape}, expected "
                f"{expected}: it is of other metrics; remove it and start again"
            )
        self.count = count
        self._sums = np.array(state["sums"], np.float64)
        self._products = np.array(state["products"], np.float64)
        self._blocks = [rows[:kept]]
        self._open[: count % BLOCK] = rows[kept:]


def _summary(count, total, products):
    mean = total / count
    covariance = products - np.outer(total, mean)
    covariance /= count - 1
    return TapStatistics(count, mean, covariance)
