"""The best and the worst reconstructions of a data set, as images."""

import numpy as np
from jax.experimental import multihost_utils

from ldm_jax.annotations import Float, UInt8
from ldm_jax.images import make_grid

# Images of each kind, and images in a row, each beside its reconstruction.
SHOWN, COLUMNS = 16, 8

Pairs = UInt8[np.ndarray, "n 2 h w c"]


def pairs_grid(pairs: Pairs) -> UInt8[np.ndarray, "height width c"] | None:
    """Lays images out, each left of its reconstruction.

    Args:
      pairs: uint8 [N, 2, H, W, C].

    Returns:
      uint8 [height, width, C], or None of no pairs.
    """
    if not len(pairs):
        return None
    return make_grid(pairs.reshape(-1, *pairs.shape[2:]), COLUMNS)


class Extremes:
    """Keeps the pairs of the lowest and of the highest score."""

    def __init__(self) -> None:
        """Starts without pairs."""
        # -1: the lowest first, by scores times that the highest.
        self._kept = {}

    def add(self, scores: Float[np.ndarray, " n"], pairs: Pairs) -> None:
        """Takes pairs of this process.

        Args:
          scores: A number each, [N].
          pairs: uint8 [N, 2, H, W, C].
        """
        for name, sign in (("worst", 1), ("best", -1)):
            known = self._kept.get(name)
            both = np.asarray(scores, np.float32), pairs
            if known is not None:
                both = (np.concatenate(each) for each in zip(known, both, strict=True))
            self._kept[name] = _first(*both, sign)

    def grids(self) -> dict[str, UInt8[np.ndarray, "height width c"] | None]:
        """Makes the image grids; every process calls it.

        Returns:
          "worst" and "best" -> a grid of the pairs of all processes, uint8 [height,
          width, C], from the worst or the best one on; None where there are none.
        """
        return {
            name: pairs_grid(_first(*_of_all_processes(*kept), sign)[1])
            for (name, kept), sign in zip(self._kept.items(), (1, -1), strict=True)
        }


def _first(scores, pairs, sign):
    """The pairs of the first scores in an order; equal ones stay as they came."""
    order = np.argsort(sign * scores, kind="stable")[:SHOWN]
    return scores[order], pairs[order]


def _of_all_processes(scores, pairs):
    """Gathers what processes have kept, as many of each."""
    missing = SHOWN - len(scores)
    scores = np.pad(scores, (0, missing), constant_values=np.nan)
    pairs = np.pad(pairs, [(0, missing)] + [(0, 0)] * (pairs.ndim - 1))
    gathered = multihost_utils.process_allgather((scores, pairs), tiled=True)
    scores, pairs = map(np.asarray, gathered)
    real = ~np.isnan(scores)
    return scores[real], pairs[real]
