"""The images of a folder, unchanged, batch by batch."""

import concurrent.futures
from collections.abc import Iterator

import numpy as np
from absl import logging
from jax.sharding import Mesh

from ldm_jax import sharding
from ldm_jax.batches import Batch
from ldm_jax.data.folder import FolderSource
from ldm_jax.data.load_batch import MAX_FAILURES
from ldm_jax.errors import ConfigError, DataError
from ldm_jax.evaluation.as_they_are.first_image import none_can_be_read
from ldm_jax.evaluation.as_they_are.host_rows import put_rows
from ldm_jax.images import Pixels, read_image
from ldm_jax.sampling.sample_pixels import SetValues
from ldm_jax.store import raise_if_silent

# Threads that decode images.
_THREADS = 4


class FolderReader:
    """Reads the images of a folder, all of one size.

    Attributes:
      size: (height, width) in pixels of the first image that can be read.
    """

    def __init__(
        self,
        source: FolderSource,
        count: int,
        skip_unreadable: bool,
        values: SetValues,
        pixels: Pixels,
    ) -> None:
        """Reads the first image.

        Args:
          source: The folder.
          count: Number of images to read, the first ones.
          skip_unreadable: Whether images that cannot be read are left out, and named.
          values: Finds which of their values are black and white.
          pixels: Channels, bits and range of the images.

        Raises:
          DataError: If the image, or a folder in the folder, cannot be read, or with
            `skip_unreadable` none of the first MAX_FAILURES images can.
        """
        self._source, self._count, self._skip = source, count, skip_unreadable
        self._values, self._pixels = values, pixels
        for where, reason in source.skipped:
            self._leave_out(where, reason)
        # All have the size of the first one that can be read.
        self._first, self.size = 0, None
        found = (self._read(index) for index in range(min(count, MAX_FAILURES)))
        for self._first, image in enumerate(found):
            if image is not None:
                self.size = image.shape[:2]
                break
        if self.size is None:
            raise none_can_be_read(count, source.describe(0))

    def _leave_out(self, path, reason, error=None):
        if not self._skip:
            raise DataError(
                f"{path} {reason}: repair it or remove it, or leave such images out "
                "with --skip_unreadable"
            ) from error
        logging.warning("left out: %s %s", path, reason)

    def _read(self, index):
        """uint8 [H, W, 3], or None if it cannot be read and may be left out."""
        path = self._source.describe(index)
        try:
            data = self._source[index]["image"]
            words = self._values.words_of(data, path)
            image = self._pixels.shown(read_image(data, self._pixels))
            self._values.add(words, path)
        except ConfigError:
            raise
        except (OSError, ValueError) as error:
            raise_if_silent(path, error)
            reason = getattr(error, "strerror", None) or error
            self._leave_out(path, f"cannot be read ({reason})", error)
            return None
        if self.size is not None and image.shape[:2] != self.size:
            height, width = image.shape[:2]
            raise DataError(
                f"{path} is {height} x {width} pixels and "
                f"{self._source.describe(self._first)} {self.size[0]} x "
                f"{self.size[1]}: remove it, or bring all to one size with "
                "--image_size"
            )
        return image

    def batches(self, unit: int, mesh: Mesh, start: int) -> Iterator[tuple[int, Batch]]:
        """Reads the images in order; each process reads those of its own devices.

        Args:
          unit: Global batch size, a multiple of the number of devices.
          mesh: Mesh over the devices of all processes.
          start: Number of the first image, a multiple of `unit`.

        Yields:
          (position, batch): the number of images so far, and global arrays "image"
          uint8 [unit, H, W, 3] and "mask" bool [unit], the rows that count.

        Raises:
          DataError: If an image has another size, or cannot be read and may not be
            left out.
        """
        mine = sharding.own_rows(mesh, unit)
        with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
            for first in range(start, self._count, unit):
                rows = [row for row in (first + mine).tolist() if row < self._count]
                found = list(pool.map(self._read, rows))
                blank = np.zeros((*self.size, 3), np.uint8)
                images = [blank if image is None else image for image in found]
                mask = np.array([image is not None for image in found], bool)
                images = np.stack(images) if images else np.zeros((0, *blank.shape))
                batch = put_rows(images, mask, len(mine), mesh)
                yield min(first + unit, self._count), batch
