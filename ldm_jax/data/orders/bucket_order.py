"""Epochs whose batches are of one bucket each, and that drop nothing.

The positions of the stream do not change: batch s holds the positions from s B to
(s + 1) B, and an epoch of N examples holds each of them once, for any N and B. To that
end the examples of an epoch are rearranged. One bucket, the main one, begins and ends
every epoch, so a batch that spans two epochs is always of this bucket. Every other
bucket has whole batches, in a random order among those of the main one; its few
remaining examples (different ones in each epoch) move to a neighbour that is nearer to
the main bucket, starting with the farthest buckets, and those that reach the main one
complete its batches.
"""

import numpy as np

from ldm_jax.annotations import Int
from ldm_jax.data.orders.buckets import Buckets
from ldm_jax.data.orders.order import Order, shuffle

# Makes the order of the batches independent of that of the examples.
_TAG = 2


class BucketOrder(Order):
    """The epochs of another order, rearranged so that each batch is of one bucket.

    Attributes:
      main: Number of the main bucket: the one with most examples in the first epoch.
    """

    def __init__(self, base: Order, buckets: Buckets, batch_size: int) -> None:
        """Stores what the epochs depend on.

        Args:
          base: Order of the examples.
          buckets: Assignment of examples to buckets.
          batch_size: Global batch size B.
        """
        super().__init__(base.length, base.seed)
        self._base, self._of, self._batch_size = base, buckets.of, batch_size
        self._shapes = buckets.shapes
        first = np.bincount(self._of[base.epoch(0)], minlength=len(self._shapes))
        self.main = int(first.argmax())
        self._next = _neighbours(self._shapes, self.main)

    def shape_at(self, position: int) -> tuple[int, int]:
        """Returns the shape of images at a position.

        Args:
          position: Position.

        Returns:
          (height, width) in pixels.
        """
        number, place = divmod(int(position), self.length)
        head, buckets = self._arranged(number)[1:]
        window = (place - head) // self._batch_size
        inside = place >= head and window < len(buckets)
        height, width = self._shapes[buckets[window] if inside else self.main]
        return int(height), int(width)

    def moved(self, number: int) -> int:
        """Counts the examples that are cropped to the shape of another bucket.

        Args:
          number: Number of the epoch.

        Returns:
          How many.
        """
        indices, head, buckets = self._arranged(number)
        given = np.full(self.length, self.main)
        end = head + len(buckets) * self._batch_size
        given[head:end] = np.repeat(buckets, self._batch_size)
        return int((self._of[indices] != given).sum())

    def epoch(self, number: int) -> Int[np.ndarray, " length"]:
        """Returns the examples of an epoch in order.

        Args:
          number: Number of the epoch, >= 0.

        Returns:
          Indices of examples, int [length]; do not modify them.
        """
        return self._arranged(number)[0]

    def _arranged(self, number):
        """Returns (indices, length of the head, bucket of each batch after it)."""
        return self._cached(number)

    def _make(self, number):
        size, length = self._batch_size, self.length
        # Number of examples that complete the last batch of the previous epoch, and of
        # those that begin a batch which the next epoch completes.
        head = min(-number * length % size, length)
        tail = (length - head) % size
        kept = self._split(self._base.epoch(number), head + tail)
        main = kept.pop(self.main)
        middle = [main[head : len(main) - tail], *kept.values()]
        numbers = [self.main, *kept]
        buckets = np.repeat(numbers, [len(part) // size for part in middle])
        windows = np.concatenate(middle).reshape(-1, size)
        order = shuffle(np.arange(len(windows)), self.seed, number, _TAG)
        ends = main[:head], windows[order].ravel(), main[len(main) - tail :]
        return np.concatenate(ends), head, buckets[order].astype(np.int16)

    def _split(self, indices, ends):
        """Bucket -> its examples of an epoch: whole batches, the rest in the main one.

        `ends` is the number of examples that the main one needs for the ends.
        """
        size, of = self._batch_size, self._of[indices]
        # Positions in the epoch by bucket, in the order of the epoch.
        places = np.argsort(of, kind="stable")
        counts = np.bincount(of, minlength=len(self._shapes))
        parts = dict(enumerate(np.split(places, np.cumsum(counts)[:-1])))
        for bucket, target in self._next:
            own = parts[bucket]
            whole = len(own) - len(own) % size
            # Examples moved here from other buckets come first, so they stay.
            parts[bucket], rest = own[:whole], own[whole:]
            parts[target] = np.concatenate([rest, parts[target]])
        # The nearest buckets provide what is missing for the ends of the epoch.
        for bucket, _ in reversed(self._next):
            while len(parts[self.main]) < ends and len(parts[bucket]):
                given, parts[bucket] = parts[bucket][:size], parts[bucket][size:]
                parts[self.main] = np.concatenate([given, parts[self.main]])
        # Sorted, so that moved examples do not form batches of their own.
        return {bucket: indices[np.sort(place)] for bucket, place in parts.items()}


def _neighbours(shapes, main):
    """Pairs (bucket, nearest one of those nearer to the main one), farthest first."""
    logs = np.log(shapes)
    distance = np.hypot(*(logs - logs[main]).T)
    # At equal distances the first one counts as nearer, so that there is no cycle.
    order = [
        int(b) for b in np.lexsort((np.arange(len(shapes)), distance)) if b != main
    ]
    pairs = []
    for place in reversed(range(len(order))):
        nearer = [main, *order[:place]]
        gaps = np.hypot(*(logs[nearer] - logs[order[place]]).T)
        pairs.append((order[place], nearer[int(gaps.argmin())]))
    return pairs
