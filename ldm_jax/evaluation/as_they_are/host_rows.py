"""Rows of this process: prefetched, and put on the devices as a global batch."""

import concurrent.futures
from collections.abc import Iterator

import numpy as np
from jax.sharding import Mesh

from ldm_jax import sharding
from ldm_jax.annotations import Bool, UInt8
from ldm_jax.batches import Batch


def put_rows(
    images: UInt8[np.ndarray, "rows h w 3"],
    mask: Bool[np.ndarray, " rows"] | None,
    rows: int,
    mesh: Mesh,
) -> Batch:
    """Makes a global batch of this process's rows, padded with blank rows.

    Args:
      images: uint8 [n, H, W, 3].
      mask: Which of them count, bool [n]; None for all.
      rows: Number of rows of this process in a batch, at least n.
      mesh: Mesh over the devices of all processes.

    Returns:
      Dict of global arrays "image" uint8 [B, H, W, 3] and "mask" bool [B].
    """
    count = len(images)
    filled = np.zeros((rows, *images.shape[1:]), np.uint8)
    real = np.zeros(rows, bool)
    filled[:count], real[:count] = images, True if mask is None else mask
    return sharding.put_batch({"image": filled, "mask": real}, mesh)


def ahead(batches: Iterator[tuple[int, Batch]]) -> Iterator[tuple[int, Batch]]:
    """Loads the next batch in a thread while the last one is processed.

    Args:
      batches: Iterator of (position, batch).

    Yields:
      The same pairs.
    """
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, batches, None)
        while (batch := coming.result()) is not None:
            coming = pool.submit(next, batches, None)
            yield batch
