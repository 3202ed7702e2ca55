"""Apportionment: how many of the first examples of a mixture come from each part."""

from collections.abc import Sequence
from fractions import Fraction

# Every float is an exact fraction, so counts are exact however long a run is.


def apportion(weights: Sequence[float], count: int) -> list[int]:
    """Divides a number of examples over parts by their weights (Webster's method).

    It has the properties that an endless stream needs: with a larger `count` no part
    has fewer examples (Balinski & Young 1982, "Fair Representation": divisor methods
    are house-monotone), and each differs from its exact fraction by about one example,
    after any number of epochs.

    Args:
      weights: Weight of each part, > 0.
      count: Number of examples, >= 0.

    Returns:
      Number of examples of each part; they sum to `count`.
    """
    exact = [Fraction(weight) for weight in weights]
    total = sum(exact)
    counts = [int(count * weight / total + Fraction(1, 2)) for weight in exact]
    # The next example goes where weight / (count + 1/2) is largest.
    parts = range(len(exact))
    while sum(counts) < count:
        counts[max(parts, key=lambda k: (exact[k] / (2 * counts[k] + 1), -k))] += 1
    while sum(counts) > count:
        given = [k for k in parts if counts[k]]
        counts[min(given, key=lambda k: (exact[k] / (2 * counts[k] - 1), -k))] -= 1
    return counts
