"""The best and the worst reconstructions of a data set, as images."""

import numpy as np
from jax.experimental import multihost_utils

from ldm_jax.annotations import Float, UInt8
from ldm_jax.images import make_grid

# Pairs of image and reconstruction that are kept of each kind, and images in a row.
SHOWN, COLUMNS = 16, 8

Pairs = UInt8[np.ndarray, "n 2 h w c"]


def pairs_grid(pairs: Pairs) -> UInt8[np.ndarray, "height width c"] | None:
    """Makes a grid of images, each to the left of its reconstruction.

    Args:
      pairs: uint8 [N, 2, H, W, C].

    Returns:
      uint8 [height, width, C], or None if there are no pairs.
    """
    if not len(pairs):
        return None
    return make_grid(pairs.reshape(-1, *pairs.shape[2:]), COLUMNS)


class Extremes:
    """Keeps the pairs with the lowest and with the highest scores."""

    def __init__(self) -> None:
        """Starts without pairs."""
        # Name -> (scores, pairs): "worst" by rising, "best" by falling scores.
        self._kept = {}

    def add(self, scores: Float[np.ndarray, " n"], pairs: Pairs) -> None:
        """Adds pairs of this process.

        Args:
          scores: Score of each pair, [N].
          pairs: uint8 [N, 2, H, W, C].
        """
        for name, sign in (("worst", 1), ("best", -1)):
            known = self._kept.get(name)
            both = np.asarray(scores, np.float32), pairs
            if known is not None:
                both = (np.concatenate(each) for each in zip(known, both, strict=True))
            self._kept[name] = _first(*both, sign)

    def grids(self) -> dict[str, UInt8[np.ndarray, "height width c"] | None]:
        """Makes the image grids; every process must call it.

        Returns:
          "worst" and "best" -> a grid of the pairs of all processes, uint8 [height,
          width, C], the worst or the best one first; None if there are none.
        """
        return {
            name: pairs_grid(_first(*_of_all_processes(*kept), sign)[1])
            for (name, kept), sign in zip(self._kept.items(), (1, -1), strict=True)
        }


def _first(scores, pairs, sign):
    """The SHOWN pairs of lowest sign * score; equal ones in the order they came in."""
    order = np.argsort(sign * scores, kind="stable")[:SHOWN]
    return scores[order], pairs[order]


def _of_all_processes(scores, pairs):
    """Gathers the pairs that all processes have kept, padded to equal numbers."""
    missing = SHOWN - len(scores)
    scores = np.pad(scores, (0, missing), constant_values=np.nan)
    pairs = np.pad(pairs, [(0, missing)] + [(0, 0)] * (pairs.ndim - 1))
    gathered = multihost_utils.process_allgather((scores, pairs), tiled=True)
    scores, pairs = map(np.asarray, gathered)
    real = ~np.isnan(scores)
    return scores[real], pairs[real]
