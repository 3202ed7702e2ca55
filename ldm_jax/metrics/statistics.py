"""Statistics of the features of a set of images, from a stream of their batches.

Sums are float64 on the host and taken over fixed blocks of rows in the order of the
images, so that neither the batch size nor the number of devices or processes changes
them.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from ldm_jax.annotations import Array, Float, Shaped
from ldm_jax.errors import DataError

# Rows that are added at a time; even, so that halves begin with each block alike.
BLOCK = 512

# Rows that are kept where all are.
ALL = 2**62


class TapStatistics(NamedTuple):
    """What is known of the features of a set of images at one tap of a network.

    Attributes:
      count: Number of images N.
      mean: float64 [D].
      covariance: Unbiased covariance, float64 [D, D].
      rows: The features themselves, float32 [n, D] in the order of the images, of all
        or of the first n; None where no distance needs them.
      half: Statistics of every second image, without rows, or None of a few images or
        a reference. What is biased by the count shows its bias between half and whole.
    """

    count: int
    mean: Float[np.ndarray, " features"]
    covariance: Float[np.ndarray, "features features"]
    rows: Float[np.ndarray, "rows features"] | None = None
    half: "TapStatistics | None" = None


class Moments:
    """Collects the statistics of the rows that it is given.

    Attributes:
      count: Number of rows so far.
    """

    def __init__(self, width: int, most_rows: int = 0) -> None:
        """Starts without rows.

        Args:
          width: Number of features D.
          most_rows: How many of the first rows are kept, too; ALL for all.
        """
        self.count = 0
        self._most_rows = most_rows
        # Rows in whole blocks, kept or not, and the block that is being filled.
        self._blocks = []
        self._open = np.empty((BLOCK, width), np.float32)
        # Of the images of even and of odd index.
        self._sums = np.zeros((2, width))
        self._products = np.zeros((2, width, width))

    def add(self, features: Float[Array, "rows features"]) -> None:
        """Takes the features of further images.

        Args:
          features: [N, D]; they are taken as float32.
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
        if len(self._blocks) * BLOCK < self._most_rows:
            self._blocks.append(self._open.copy())

    def statistics(self) -> TapStatistics:
        """Summarises the rows so far.

        Returns:
          Their statistics.

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
        """The rows that are kept, [n, D], or None if none are."""
        if not self._most_rows:
            return None
        rows, blocks = self._stored(), len(self._blocks)
        # The open block does not follow where blocks before it were left out.
        whole = len(rows) if blocks == self.count // BLOCK else blocks * BLOCK
        return rows[: min(whole, self._most_rows)]

    def _stored(self):
        """Rows of the blocks that are kept, and of the open one."""
        whole = np.concatenate([*self._blocks, self._open[: self.count % BLOCK]])
        # Views of the one array: the rows are in memory once.
        count = len(self._blocks)
        self._blocks = [whole[i * BLOCK : (i + 1) * BLOCK] for i in range(count)]
        return whole

    def state(self) -> dict[str, Shaped[np.ndarray, "..."]]:
        """Tells all that is needed to go on from here to the same digits.

        Returns:
          Dict of arrays: "count" a scalar, "sums" [2, D], "products" [2, D, D] and
          "rows" [n, D]: those of the blocks that are kept and of the open one.
        """
        return {
            "count": np.int64(self.count),
            "sums": self._sums.copy(),
            "products": self._products.copy(),
            "rows": self._stored(),
        }

    def restore(self, state: Mapping[str, Shaped[np.ndarray, "..."]]) -> None:
        """Goes on from a state.

        Args:
          state: Dict of arrays as `state` gives it, of as many features [D] and with
            or without rows, like this one.

        Raises:
          DataError: If it is of another kind.
        """
        count, rows = int(state["count"]), np.asarray(state["rows"], np.float32)
        kept = min(count // BLOCK, -(-self._most_rows // BLOCK)) * BLOCK
        expected = (kept + count % BLOCK, self._sums.shape[1])
        if rows.shape != expected:
            raise DataError(
                f"the state of a set's statistics holds rows {rows.shape}, expected "
                f"{expected}: it is of other distances; remove it and start again"
            )
        self.count = count
        self._sums = np.array(state["sums"], np.float64)
        self._products = np.array(state["products"], np.float64)
        whole = len(rows) - count % BLOCK
        self._blocks = [rows[i : i + BLOCK] for i in range(0, whole, BLOCK)]
        self._open[: count % BLOCK] = rows[whole:]


def _summary(count, total, products):
    mean = total / count
    covariance = products - np.outer(total, mean)
    covariance /= count - 1
    return TapStatistics(count, mean, covariance)
