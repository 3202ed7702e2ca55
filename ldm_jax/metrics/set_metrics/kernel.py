"""Maximum mean discrepancies: kernel inception distance (KID) and CMMD."""

import numpy as np

from ldm_jax.annotations import Float
from ldm_jax.metrics.set_metrics.blocks import block_pairs
from ldm_jax.metrics.set_metrics.results import Result
from ldm_jax.metrics.statistics import TapStatistics

# Subsets of KID and images in each, as in torch-fidelity.
SUBSETS, SUBSET_SIZE = 100, 1000

# Width of CMMD's kernel, and the factor of its values.
CMMD_SIGMA, CMMD_SCALE = 10.0, 1000.0


def kid(images: TapStatistics, reference: TapStatistics, seed: int) -> Result:
    """Kernel inception distance (Bińkowski et al. 2018, Sec. 3).

    The unbiased squared maximum mean discrepancy with the kernel (x·y / D + 1)³,
    averaged over random subsets of both sets. With the same seed the subsets are those
    of torch-fidelity.

    Args:
      images: Statistics of one set, with rows.
      reference: Statistics of the other one, with rows.
      seed: Seed of the subsets.

    Returns:
      The distance, which may be negative, and its standard deviation over the subsets.
    """
    first, second = images.rows, reference.rows
    size = min(SUBSET_SIZE, len(first), len(second))
    # The generator of torch-fidelity.
    generator = np.random.RandomState(seed)  # noqa: NPY002

    def subset(rows):
        return rows[generator.choice(len(rows), size, replace=False)]

    found = [_unbiased_mmd(subset(first), subset(second)) for _ in range(SUBSETS)]
    note, deviation = "", float(np.std(found))
    if size < SUBSET_SIZE:
        note = f"subsets of {size} images instead of {SUBSET_SIZE}"
    if size == len(first) == len(second):
        # All subsets are the whole sets.
        deviation = None
    return Result(float(np.mean(found)), deviation, note=note)


def _unbiased_mmd(first, second):
    """Squared discrepancy of two sets of rows [n, D]; no row is paired with itself."""
    count = len(first)
    within = sum(_kernel_sum(rows, rows, diagonal=False) for rows in (first, second))
    between = _kernel_sum(first, second)
    return within / (count * (count - 1)) - 2 * between / count**2


def _kernel_sum(first, second, diagonal=True):
    """Sum of (x·y / D + 1)³ over the pairs, in float64."""
    kernel = first @ second.T
    kernel /= first.shape[1]
    kernel += 1
    kernel *= kernel * kernel
    total = kernel.sum(dtype=np.float64)
    return total if diagonal else total - np.trace(kernel, dtype=np.float64)


def cmmd(images: TapStatistics, reference: TapStatistics, seed: int = 0) -> Result:
    """CLIP maximum mean discrepancy (Jayasumana et al. 2024, Eq. 4).

    Squared and times 1000, with the Gaussian kernel exp(-|x - y|² / (2 · 10²)) on
    embeddings of unit length. Pairs of an image with itself count, as in the code of
    the paper, so that equal sets have the distance 0.

    Args:
      images: Statistics of one set, with rows.
      reference: Statistics of the other one, with rows.
      seed: Not used.

    Returns:
      A number >= 0, up to rounding.
    """
    del seed
    first, second = images.rows, reference.rows
    within = _mean_gaussian(first, first) + _mean_gaussian(second, second)
    return Result(CMMD_SCALE * (within - 2 * _mean_gaussian(first, second)))


def _mean_gaussian(
    first: Float[np.ndarray, "n features"], second: Float[np.ndarray, "m features"]
) -> float:
    """Mean over all pairs of CMMD's kernel minus 1.

    The kernel is between 0.98 and 1. Without the 1, which cancels in the distance,
    float32 keeps all digits.
    """
    same, total = first is second, 0.0
    for i, j in block_pairs(len(first), len(second), upper=same):
        # |x - y|² = 2 - 2 x·y.
        exponents = _unit(first[i]) @ _unit(second[j]).T
        exponents -= 1
        exponents /= CMMD_SIGMA**2
        part = np.expm1(exponents, out=exponents).sum(dtype=np.float64)
        # Blocks off the diagonal also count for their mirror images.
        total += part * (2 if same and i != j else 1)
    return float(total / len(first) / len(second))


def _unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)
