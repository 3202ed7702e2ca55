"""Goes through all examples of a source that has no index, and says so: it takes time.

It is done once for an opened source, in threads: mostly it waits for the disk.
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

# Seconds until it says how far it is, at first and from then on.
_SOON, _LINE = 2.0, 30.0


def survey(count: int, look: Callable[[int], Any], what: str) -> Iterator[Any]:
    """Looks at every example.

    Args:
      count: Number of examples.
      look: Number of an example -> what is found.
      what: What is looked for, for the log, as "sizes of the images in a".

    Yields:
      What is found, in order.
    """
    began = time.monotonic()
    next_line = began + _SOON
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        for start in range(0, count, _CHUNK):
            yield from pool.map(look, range(start, min(start + _CHUNK, count)))
            peers.progress()
            if time.monotonic() > next_line:
                next_line = time.monotonic() + _LINE
                # Commands show nothing less than warnings.
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
      look: Number of an image -> (width, height) in pixels; where it raises an error
        the size is not known.
      where: What the images are of, for the log.

    Returns:
      int32 [N, 2], (height, width) in pixels, or zeros.

    Raises:
      Unreachable: If the disk does not answer.
    """

    def size(number):
        try:
            width, height = look(number)
        # Whatever a damaged image or record raises: it fails once it is loaded, too,
        # and is counted then.
        except Exception as error:
            raise_if_silent(where, error)
            return 0, 0
        return height, width

    sizes = np.zeros((count, 2), np.int32)
    found = survey(count, size, f"sizes of the images of {where}")
    for number, one in enumerate(found):
        sizes[number] = one
    return sizes
