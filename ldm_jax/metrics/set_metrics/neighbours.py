"""Metrics by nearest neighbours: precision, recall, density and coverage.

The ball around each row of a set reaches to its k-th nearest neighbour in the set; the
union of the balls estimates the manifold of the set. Distances are computed for a block
of pairs at a time.
"""

from collections.abc import Iterator

import numpy as np

from ldm_jax.annotations import Float
from ldm_jax.metrics.set_metrics.blocks import block_pairs
from ldm_jax.metrics.set_metrics.results import Result
from ldm_jax.metrics.statistics import TapStatistics

# Neighbours, as the papers recommend.
PRECISION_RECALL_K, DENSITY_COVERAGE_K = 3, 5

Rows = Float[np.ndarray, "rows features"]


def precision_recall(
    images: TapStatistics, reference: TapStatistics, seed: int = 0
) -> dict[str, Result]:
    """Improved precision and recall (Kynkäänniemi et al. 2019, Sec. 2), k = 3.

    Args:
      images: Statistics of the generated set, with rows.
      reference: Statistics of the real one, with rows.
      seed: Not used.

    Returns:
      "precision", the fraction of the images that are in a ball of the reference, and
      "recall", the fraction of the reference that is in a ball of the images.
    """
    del seed
    x, y = images.rows, reference.rows
    center = y.mean(axis=0)
    k, note = _fitting_k(PRECISION_RECALL_K, x, y)
    radii_x, radii_y = (squared_radii(rows, k, center) for rows in (x, y))
    precise, recalled = np.zeros(len(x), bool), np.zeros(len(y), bool)
    for i, j, distances in _blocks(x, y, center):
        precise[i] |= (distances <= radii_y[j]).any(axis=1)
        recalled[j] |= (distances <= radii_x[i, None]).any(axis=0)
    return {
        "precision": Result(float(precise.mean()), note=note),
        "recall": Result(float(recalled.mean()), note=note),
    }


def density_coverage(
    images: TapStatistics, reference: TapStatistics, seed: int = 0
) -> dict[str, Result]:
    """Density and coverage (Naeem et al. 2020, Eq. 3 and 4), k = 5.

    Args:
      images: Statistics of the generated set, with rows.
      reference: Statistics of the real one, with rows.
      seed: Not used.

    Returns:
      "density", the mean number of balls of the reference that contain an image,
      divided by k, may be above 1; and "coverage", the fraction of these balls that
      contain an image.
    """
    del seed
    x, y = images.rows, reference.rows
    center = y.mean(axis=0)
    k, note = _fitting_k(DENSITY_COVERAGE_K, y)
    radii = squared_radii(y, k, center)
    hits, covered = 0, np.zeros(len(y), bool)
    for _, j, distances in _blocks(x, y, center):
        inside = distances < radii[j]
        hits += int(np.count_nonzero(inside))
        covered[j] |= inside.any(axis=0)
    return {
        "density": Result(hits / (k * len(x)), note=note),
        "coverage": Result(float(covered.mean()), note=note),
    }


def _fitting_k(k, *sets):
    """k, or less if a set has too few rows, and a note about it."""
    fitting = min(k, *(len(rows) - 1 for rows in sets))
    return fitting, "" if fitting == k else f"k = {fitting} instead of {k}"


def squared_radii(
    rows: Rows, k: int, center: Float[np.ndarray, " features"]
) -> Float[np.ndarray, " rows"]:
    """Squared distance of each row to its k-th nearest other row.

    Args:
      rows: float32 [N, D], more than k of them.
      k: Which neighbour.
      center: A point near the centre of the rows, [D], subtracted for precision.

    Returns:
      float32 [N].
    """
    nearest = np.full((len(rows), k), np.inf, np.float32)

    def take(index, distances):
        both = np.concatenate([nearest[index], distances], axis=1)
        nearest[index] = np.partition(both, k - 1, axis=1)[:, :k]

    for i, j, distances in _blocks(rows, rows, center, upper=True):
        if i == j:
            # No row is its own neighbour.
            np.fill_diagonal(distances, np.inf)
        else:
            take(j, distances.T)
        take(i, distances)
    return nearest[:, k - 1]


def _blocks(
    first: Rows,
    second: Float[np.ndarray, "others features"],
    center: Float[np.ndarray, " features"],
    upper: bool = False,
) -> Iterator[tuple[slice, slice, Float[np.ndarray, "n m"]]]:
    """Yields blocks: (rows of the first, of the second, squared distances [n, m])."""
    for i, j in block_pairs(len(first), len(second), upper):
        # Centred for precision: the distances are differences of squares.
        x, y = first[i] - center, second[j] - center
        distances = x @ y.T
        distances *= -2
        distances += np.square(x).sum(axis=1)[:, None]
        distances += np.square(y).sum(axis=1)
        yield i, j, np.maximum(distances, 0, out=distances)
