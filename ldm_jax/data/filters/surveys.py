"""Scans all examples of a source without an index, and logs so, as it takes time.

It is done once for an opened source, in threads, as it mostly waits for the disk.
"""

import concurrent.futures
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from absl import logging

from ldm_jax import peers
from ldm_jax.annotations import Int
from ldm_jax.store import raise_if_silent

_THREADS, _CHUNK = 16, 4096

# Seconds until the first log line of the progress, and between the following ones.
_SOON, _LINE = 2.0, 30.0


def survey(count: int, look: Callable[[int], Any], what: str) -> Iterator[Any]:
    """Applies a function to every example.

    Args:
      count: Number of examples.
      look: Function of the number of an example.
      what: What it reads, for the log, e.g. "sizes of the images in a".

    Yields:
      Its results, in order.
    """
    began = time.monotonic()
    next_line = began + _SOON
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        for start in range(0, count, _CHUNK):
            yield from pool.map(look, range(start, min(start + _CHUNK, count)))
            peers.progress()
            if time.monotonic() > next_line:
                next_line = time.monotonic() + _LINE
                # Commands only show warnings and above.
                logging.warning(
                    "reading the %s, once for this run: %d of %d",
                    what,
                    min(start + _CHUNK, count),
                    count,
                )


def survey_sizes(
    count: int, look: Callable[[int], tuple[int, int]], where: str
) -> Int[np.ndarray, "N 2"]:
    """Finds the size of every image.

    Args:
      count: Number of images.
      look: Number of an image -> (width, height) in pixels; if it raises an error, the
        size is unknown.
      where: Where the images are, for the log.

    Returns:
      int32 [N, 2], (height, width) in pixels, or zeros if unknown.

    Raises:
      Unreachable: If the disk does not answer.
    """

    def size(number):
        try:
            width, height = look(number)
        # A damaged image or record may raise anything: loading it fails, too, and it is
        # counted then.
        except Exception as error:
            raise_if_silent(where, error)
            return 0, 0
        return height, width

    sizes = np.zeros((count, 2), np.int32)
    found = survey(count, size, f"sizes of the images of {where}")
    for number, one in enumerate(found):
        sizes[number] = one
    return sizes
