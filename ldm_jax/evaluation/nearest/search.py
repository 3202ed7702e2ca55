"""Nearest neighbours in a stream of features, none of which is kept."""

import numpy as np

from ldm_jax.annotations import Float, Int


class Nearest:
    """Finds the nearest features of a stream for each of some query features.

    Attributes:
      distances: Euclidean distances of the nearest so far, float64 [Q, n], ascending;
        infinite if there were fewer.
      numbers: Their numbers in the stream, int64 [Q, n]; -1 if there were fewer.
    """

    def __init__(
        self,
        queries: Float[np.ndarray, "queries features"],
        count: int,
        own: Int[np.ndarray, " queries"] | None = None,
    ) -> None:
        """Starts without neighbours.

        Args:
          queries: Features [Q, D].
          count: Number of neighbours to find for each query.
          own: Number of each query itself in the stream, [Q], which does not count as
            its neighbour; None if the queries are not part of the stream.
        """
        self._queries, self._own = queries.astype(np.float64), own
        self._squares = np.square(self._queries).sum(axis=1)
        self.distances = np.full((len(queries), count), np.inf)
        self.numbers = np.full((len(queries), count), -1, np.int64)

    def add(
        self,
        features: Float[np.ndarray, "batch features"],
        numbers: Int[np.ndarray, " batch"],
    ) -> None:
        """Adds the next features of the stream.

        Args:
          features: [B, D].
          numbers: Their numbers, [B], larger than all before.
        """
        rows = features.astype(np.float64)
        squares = self._squares[:, None] + np.square(rows).sum(axis=1)[None]
        squares -= 2 * self._queries @ rows.T
        distances = np.sqrt(np.maximum(squares, 0))
        if self._own is not None:
            distances[self._own[:, None] == numbers[None]] = np.inf
        # Equal distances stay in the order of the stream.
        distances = np.concatenate([self.distances, distances], axis=1)
        both = np.broadcast_to(numbers, (len(self.numbers), len(rows)))
        both = np.concatenate([self.numbers, both], axis=1)
        count = self.numbers.shape[1]
        order = np.argsort(distances, axis=1, kind="stable")[:, :count]
        self.distances = np.take_along_axis(distances, order, axis=1)
        found = np.take_along_axis(both, order, axis=1)
        self.numbers = np.where(np.isinf(self.distances), -1, found)
