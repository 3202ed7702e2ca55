"""Fréchet distance of two Gaussians: FID, sFID, FD-DINOv2 and similar metrics."""

import numpy as np

from ldm_jax.annotations import Float
from ldm_jax.metrics.set_metrics.results import Result
from ldm_jax.metrics.statistics import TapStatistics

# Columns of a root that are computed one by one before the rest is updated.
_PANEL = 64


def frechet(images: TapStatistics, reference: TapStatistics, seed: int = 0) -> Result:
    """Fréchet distance of two Gaussians (Heusel et al. 2017, Eq. 6).

    |m1 - m2|² + tr(C1) + tr(C2) - 2 tr((C1 C2)^½).

    Args:
      images: Statistics of one set.
      reference: Statistics of the other one; the distance is symmetric.
      seed: Not used.

    Returns:
      A number >= 0, in units of the features squared. Its expectation is above the
      value for infinitely many images by about a constant divided by their number
      (Chong and Forsyth 2020), so this bias is about the distance of half of the images
      minus that of all; the result's `bias` is that of the images, without that of the
      reference.
    """
    del seed
    value, bias, note = _distance(images, reference), None, ""
    if images.half is not None:
        bias = _distance(images.half, reference) - value
    if images.count <= len(images.mean):
        note = f"no more images than the {len(images.mean)} features"
    return Result(value, bias=bias, note=note)


def _distance(images, reference):
    # The root has as many columns as the rank, fewer for the smaller set. Published
    # statistics do not record their number of images: their count is 0.
    first, second = sorted((images, reference), key=lambda each: each.count or np.inf)
    root = pivoted_root(first.covariance)
    product = np.linalg.eigvalsh(root.T @ second.covariance @ root)
    traces = np.trace(first.covariance) + np.trace(second.covariance)
    shift = np.sum((first.mean - second.mean) ** 2)
    distance = shift + traces - 2 * np.sqrt(product.clip(0)).sum()
    return float(max(distance, 0.0))


def pivoted_root(
    covariance: Float[np.ndarray, "features features"],
) -> Float[np.ndarray, "features rank"]:
    """Pivoted Cholesky root of a covariance, up to its rank.

    With a root R of C1 = R Rᵀ the nonzero eigenvalues of C1 C2 are those of the
    symmetric Rᵀ C2 R. It takes a fraction of the time of eigenvectors, and for a set
    with fewer images than features it has no columns of rounding errors.

    Args:
      covariance: Symmetric and positive semi-definite, float64 [D, D].

    Returns:
      R, float64 [D, r].
    """
    size = len(covariance)
    rest, left = np.diag(covariance).astype(np.float64), covariance.copy()
    limit = size * np.finfo(np.float64).eps * max(rest.max(), 0.0)
    columns = np.empty((size, size))
    for rank in range(size):
        pivot = int(rest.argmax())
        if rest[pivot] <= limit:
            return columns[:rank].T
        first = rank - rank % _PANEL
        if first == rank and rank:
            # The part of a whole panel is subtracted at once, in one product.
            panel = columns[rank - _PANEL : rank]
            left -= panel.T @ panel
        panel = columns[first:rank]
        column = left[pivot] - panel[:, pivot] @ panel
        column /= np.sqrt(rest[pivot])
        columns[rank] = column
        rest -= column * column
        rest[pivot] = 0.0
    return columns.T
