"""Pairs of rows of two sets, some at a time: of 50,000 images all would be 10 GB."""

from collections.abc import Iterator

from ldm_jax import peers

# Rows of each set whose pairs are in memory at a time.
BLOCK = 2048


def block_pairs(
    first: int, second: int, upper: bool = False
) -> Iterator[tuple[slice, slice]]:
    """Goes through all pairs of rows in blocks.

    Args:
      first: Number of rows of the one set.
      second: Number of rows of the other.
      upper: Whether the blocks below the diagonal are left out: of a set with itself
        they hold what those above it do.

    Yields:
      (rows of the first, rows of the second), as slices.
    """
    for start in range(0, first, BLOCK):
        peers.progress()
        for other in range(start if upper else 0, second, BLOCK):
            yield slice(start, start + BLOCK), slice(other, other + BLOCK)
