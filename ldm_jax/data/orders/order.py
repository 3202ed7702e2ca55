"""The endless stream of examples: index of the example at each position.

A position is step * batch size + row. An epoch is a function of (seed, number of the
epoch) alone, so that a run can resume anywhere and any number of processes sees the
same batches.
"""

import threading

import numpy as np

from ldm_jax.annotations import Int

# Number of epochs in the cache: at the border of two, both are in use.
_KEPT = 2
# Makes these draws independent of those of examples, whose key is (seed, position).
_TAG = 1


class Order:
    """Index of the example at each position of the endless stream; can be pickled.

    Attributes:
      length: Number of positions of an epoch.
      seed: Seed of the order, in [0, 2**64).
    """

    def __init__(self, length: int, seed: int) -> None:
        """Stores what the epochs depend on.

        Args:
          length: Number of positions of an epoch.
          seed: Seed of the order, in [0, 2**64).
        """
        self.length, self.seed = length, seed
        self._epochs, self._lock = {}, threading.Lock()

    def __getstate__(self):
        # Each worker makes its own epochs, which are arrays as long as the data set.
        state = dict(self.__dict__)
        del state["_epochs"], state["_lock"]
        return state

    def __setstate__(self, state):
        self.__dict__.update(state)
        self._epochs, self._lock = {}, threading.Lock()

    def epoch(self, number: int) -> Int[np.ndarray, " length"]:
        """Returns the examples of an epoch in order.

        Args:
          number: Number of the epoch, >= 0.

        Returns:
          Indices of examples, int [length]; do not modify them.
        """
        return self._cached(number)

    def _cached(self, number):
        """Cached result of `_make` for an epoch."""
        with self._lock:
            if number not in self._epochs:
                while len(self._epochs) >= _KEPT:
                    del self._epochs[next(iter(self._epochs))]
                self._epochs[number] = self._make(number)
            return self._epochs[number]

    def __getitem__(self, position: int) -> int:
        """Returns the index of the example at a position."""
        number, place = divmod(int(position), self.length)
        return int(self.epoch(number)[place])

    def take(self, start: int, stop: int) -> Int[np.ndarray, " count"]:
        """Returns the examples at consecutive positions.

        Args:
          start: First position.
          stop: The position after the last one.

        Returns:
          Indices of examples, int [stop - start].
        """
        parts = [np.empty(0, np.int64)]
        while start < stop:
            number, place = divmod(start, self.length)
            parts.append(self.epoch(number)[place : place + stop - start])
            start += len(parts[-1])
        return np.concatenate(parts)

    def shape_at(self, position: int) -> tuple[int, int] | None:
        """Returns the shape of images at a position.

        Args:
          position: Position.

        Returns:
          (height, width) in pixels; None for the config's `image_size`.
        """
        del position
        return None

    def _make(self, number):
        raise NotImplementedError


class Shuffled(Order):
    """All examples in each epoch, reshuffled each time."""

    def _make(self, number):
        return shuffle(np.arange(self.length), self.seed, number)


def shuffle(
    values: Int[np.ndarray, " count"], seed: int, number: int, tag: int = _TAG
) -> Int[np.ndarray, " count"]:
    """Shuffles integers, as a function of (seed, number, tag) alone.

    Args:
      values: int [n].
      seed: In [0, 2**64).
      number: In [0, 2**64), e.g. that of an epoch.
      tag: Makes draws with the same seed and number independent, 1 or more.

    Returns:
      int32 [n] where they fit, else int64.
    """
    key = np.array([seed, number], np.uint64)
    bits = np.random.Philox(key=key, counter=np.array([0, 0, 0, tag], np.uint64))
    small = values.max(initial=0) < 2**31
    return (
        np.random.Generator(bits)
        .permutation(values)
        .astype(np.int32 if small else np.int64, copy=False)
    )
