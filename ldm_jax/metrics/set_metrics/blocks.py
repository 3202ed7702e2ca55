"""Pairs of rows of two sets, in blocks: all pairs of 50,000 images would be 10 GB."""

from collections.abc import Iterator

from ldm_jax import peers

# Rows of each set in a block.
BLOCK = 2048


def block_pairs(
    first: int, second: int, upper: bool = False
) -> Iterator[tuple[slice, slice]]:
    """Iterates over all pairs of rows in blocks.

    Args:
      first: Number of rows of the one set.
      second: Number of rows of the other.
      upper: Whether to leave out the blocks below the diagonal, which for a set with
        itself are those above it, transposed.

    Yields:
      (rows of the first, rows of the second), as slices.
    """
    for start in range(0, first, BLOCK):
        peers.progress()
        for other in range(start if upper else 0, second, BLOCK):
            yield slice(start, start + BLOCK), slice(other, other + BLOCK)
