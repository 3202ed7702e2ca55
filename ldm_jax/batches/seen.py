"""Counts distinct names over all processes."""

import hashlib
from collections.abc import Iterable

import jax
import numpy as np
from jax.experimental import multihost_utils


class Seen:
    """The names so far, by their hashes."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        """Starts with some names.

        Args:
          names: The names.
        """
        self._own, self._all, self._new = set(), set(), []
        self.add(names)

    def add(self, names: Iterable[str]) -> None:
        """Adds names.

        Args:
          names: The names; known ones are ignored.
        """
        for found in map(_hash, names):
            if found not in self._own:
                self._own.add(found)
                self._new.append(found)

    def count(self) -> int:
        """Counts the names of all processes; every one must call it.

        Returns:
          Number of distinct names.
        """
        self._all.update(_of_all(self._new))
        self._new = []
        return len(self._all)


def _hash(name):
    digest = hashlib.blake2b(name.encode(errors="surrogateescape"), digest_size=8)
    # As two uint32: device arrays have no 64-bit integers by default.
    return tuple(np.frombuffer(digest.digest(), np.uint32).tolist())


def _of_all(new):
    """Gathers the new hashes of all processes: nearly always none."""
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
