"""The endless stream of examples: which one stands at a position.

A position is step * batch size + row. An epoch is a function of (seed, number of the
epoch) alone, so that a run goes on anywhere and any number of processes sees the same
batches.
"""

import threading

import numpy as np

from ldm_jax.annotations import Int

# So many epochs are kept: at the border of two, both are in use.
_KEPT = 2
# Sets these draws apart from those of the examples, whose key is (seed, position).
_TAG = 1


class Order:
    """Which example stands at a position of the endless stream; can be pickled.

    Attributes:
      length: Number of positions of an epoch.
      seed: Seed of the order, in [0, 2**64).
    """

    def __init__(self, length: int, seed: int) -> None:
        """Keeps what the epochs depend on.

        Args:
          length: Number of positions of an epoch.
          seed: Seed of the order, in [0, 2**64).
        """
        self.length, self.seed = length, seed
        self._epochs, self._lock = {}, threading.Lock()

    def __getstate__(self):
        # Each worker makes its own epochs: they are as large as the data set is long.
        state = dict(self.__dict__)
        del state["_epochs"], state["_lock"]
        return state

    def __setstate__(self, state):
        self.__dict__.update(state)
        self._epochs, self._lock = {}, threading.Lock()

    def epoch(self, number: int) -> Int[np.ndarray, " length"]:
        """The examples of an epoch in their order.

        Args:
          number: Number of the epoch, >= 0.

        Returns:
          Indices of examples, int [length]; not to be changed.
        """
        return self._cached(number)

    def _cached(self, number):
        """What `_make` gives for an epoch, made once."""
        with self._lock:
            if number not in self._epochs:
                while len(self._epochs) >= _KEPT:
                    del self._epochs[next(iter(self._epochs))]
                self._epochs[number] = self._make(number)
            return self._epochs[number]

    def __getitem__(self, position: int) -> int:
        """Index of the example at a position."""
        number, place = divmod(int(position), self.length)
        return int(self.epoch(number)[place])

    def take(self, start: int, stop: int) -> Int[np.ndarray, " count"]:
        """The examples at positions that follow one another.

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
        """The shape that images have at a position.

        Args:
          position: Position.

        Returns:
          (height, width) in pixels; None for that of the config.
        """
        del position
        return None

    def _make(self, number):
        raise NotImplementedError


class Shuffled(Order):
    """All examples in each epoch, each time in another order."""

    def _make(self, number):
        return shuffle(np.arange(self.length), self.seed, number)


def shuffle(
    values: Int[np.ndarray, " count"], seed: int, number: int, tag: int = _TAG
) -> Int[np.ndarray, " count"]:
    """Permutes numbers by (seed, number) alone.

    Args:
      values: int [n].
      seed: In [0, 2**64).
      number: In [0, 2**64), as that of an epoch.
      tag: Sets draws of one seed and number apart, 1 or more.

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
