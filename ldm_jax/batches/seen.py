"""Names that processes meet, each counted once, whichever of them met it."""

import hashlib
from collections.abc import Iterable

import jax
import numpy as np
from jax.experimental import multihost_utils


class Seen:
    """Names that were met so far, by their hashes."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        """Begins with some names.

        Args:
          names: The names.
        """
        self._own, self._all, self._new = set(), set(), []
        self.add(names)

    def add(self, names: Iterable[str]) -> None:
        """Adds names.

        Args:
          names: The names; those that were met before change nothing.
        """
        for found in map(_hash, names):
            if found not in self._own:
                self._own.add(found)
                self._new.append(found)

    def count(self) -> int:
        """Counts the names of all processes; every one must call it.

        Returns:
          How many different ones were met.
        """
        self._all.update(_of_all(self._new))
        self._new = []
        return len(self._all)


def _hash(name):
    digest = hashlib.blake2b(name.encode(errors="surrogateescape"), digest_size=8)
    # Arrays on devices have no integers of 64 bits.
    return tuple(np.frombuffer(digest.digest(), np.uint32).tolist())


def _of_all(new):
    """The new hashes of all processes: nearly always none."""
    if jax.process_count() == 1:
        return new
    counts = multihost_utils.process_allgather(np.int32(len(new)))
    if not counts.max():
        return []
    rows = np.zeros((counts.max(), 2), np.uint32)
    rows[: len(new)] = np.array(new, np.uint32).reshape(-1, 2)
    rows = multihost_utils.process_allgather(rows)
    return [
        tuple(row)
        for count, theirs in zip(counts, rows, strict=True)
        for row in theirs[:count].tolist()
    ]
