"""Epochs whose batches are of one bucket each, and that drop nothing.

The positions of the stream stay: batch s holds the positions from s B to (s + 1) B, and
an epoch of N examples holds each of them once, whatever N and B are. For that the
examples of an epoch are re-arranged. One bucket, the main one, begins and ends every
epoch: a batch that two epochs share is its own. Of every other bucket whole batches
come, in a random order among those of the main one; the few examples that are left over
(others in each epoch) go to a neighbour that is nearer to the main bucket, the farthest
buckets first, and what reaches the main one completes its batches.
"""

import numpy as np

from ldm_jax.annotations import Int
from ldm_jax.data.orders.buckets import Buckets
from ldm_jax.data.orders.order import Order, shuffle

# Sets the order of the batches apart from that of the examples.
_TAG = 2


class BucketOrder(Order):
    """Another order's epochs, each batch of one bucket.

    Attributes:
      main: Number of the main bucket: that with the most examples in the first epoch.
    """

    def __init__(self, base: Order, buckets: Buckets, batch_size: int) -> None:
        """Keeps what the epochs depend on.

        Args:
          base: Order of the examples.
          buckets: Which example goes to which bucket.
          batch_size: Global batch size B.
        """
        super().__init__(base.length, base.seed)
        self._base, self._of, self._batch_size = base, buckets.of, batch_size
        self._shapes = buckets.shapes
        first = np.bincount(self._of[base.epoch(0)], minlength=len(self._shapes))
        self.main = int(first.argmax())
        self._next = _neighbours(self._shapes, self.main)

    def shape_at(self, position: int) -> tuple[int, int]:
        """The shape that images have at a position.

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
        """Counts the examples that are cut to another shape than their own bucket's.

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
        """The examples of an epoch in their order.

        Args:
          number: Number of the epoch, >= 0.

        Returns:
          Indices of examples, int [length]; not to be changed.
        """
        return self._arranged(number)[0]

    def _arranged(self, number):
        """(indices, length of the head, bucket of each window behind it)."""
        return self._cached(number)

    def _make(self, number):
        size, length = self._batch_size, self.length
        # What completes the last batch of the epoch before, and what begins one that
        # the next epoch completes.
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
        """Bucket -> its examples of an epoch, whole batches, the rest in the main one.

        `ends` is how many the main one needs at least, besides whole batches.
        """
        size, of = self._batch_size, self._of[indices]
        # Places in the epoch by bucket, in the order of the epoch.
        places = np.argsort(of, kind="stable")
        counts = np.bincount(of, minlength=len(self._shapes))
        parts = dict(enumerate(np.split(places, np.cumsum(counts)[:-1])))
        for bucket, target in self._next:
            own = parts[bucket]
            whole = len(own) - len(own) % size
            # What has come from elsewhere stays, as it stands in front.
            parts[bucket], rest = own[:whole], own[whole:]
            parts[target] = np.concatenate([rest, parts[target]])
        # The nearest ones give up what the ends of the epoch need.
        for bucket, _ in reversed(self._next):
            while len(parts[self.main]) < ends and len(parts[bucket]):
                given, parts[bucket] = parts[bucket][:size], parts[bucket][size:]
                parts[self.main] = np.concatenate([given, parts[self.main]])
        # What has moved shall not come in batches of its own.
        return {bucket: indices[np.sort(place)] for bucket, place in parts.items()}


def _neighbours(shapes, main):
    """(bucket, the nearest one among those nearer to the main one), farthest first."""
    logs = np.log(shapes)
    distance = np.hypot(*(logs - logs[main]).T)
    # Of two equally far ones the first counts as nearer, so that there is no circle.
    order = [
        int(b) for b in np.lexsort((np.arange(len(shapes)), distance)) if b != main
    ]
    pairs = []
    for place in reversed(range(len(order))):
        nearer = [main, *order[:place]]
        gaps = np.hypot(*(logs[nearer] - logs[order[place]]).T)
        pairs.append((order[place], nearer[int(gaps.argmin())]))
    return pairs
