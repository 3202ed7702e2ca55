"""Counts how many examples of each part of a mixture a run has seen."""

from typing import Any

import numpy as np

from ldm_jax.data.orders.order import Order


def count_parts(source: Any, order: Any) -> "PartCounts | None":
    """Makes the counter of the examples of a mixture by part.

    Args:
      source: Opened source.
      order: Order of its examples in training.

    Returns:
      PartCounts; None for a source that is not a mixture.
    """
    return PartCounts(source, order) if hasattr(source, "part_of") else None


class PartCounts:
    """Counts the examples of each part since the start of the stream."""

    def __init__(self, source: Any, order: Order) -> None:
        """Starts without counting.

        Args:
          source: MixtureSource.
          order: Its order, or one that rearranges the epochs of it.
        """
        self._source, self._order = source, order
        self._position, self._counts = None, None

    def at(self, position: int) -> dict[str, int]:
        """Counts the examples before a position.

        Args:
          position: Position, the same as in the last call or a later one.

        Returns:
          "data/images/PART" -> number of examples, by part.
        """
        if self._position is None:
            # The totals of whole epochs are known without their order.
            epochs = position // self._order.length
            self._position = epochs * self._order.length
            self._counts = np.array(self._source.totals(epochs))
        taken = self._source.part_of(self._order.take(self._position, position))
        self._counts = self._counts + np.bincount(taken, minlength=len(self._counts))
        self._position = position
        names = (f"data/images/{name}" for name in self._source.names)
        return dict(zip(names, self._counts.tolist(), strict=True))
