"""Sets of images that are measured: folders, npz files and data sets, as a stream.

Images of a folder or an npz are taken as they are, all of one size. Only where a size
is asked for are they cropped at the centre and resized, as training does it. Samples of
other channels, bits or ranges than photos have are read as the settings beside them
say, and mapped to RGB as their run shows them.
"""

import concurrent.futures
import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from absl import logging
from jax.sharding import Mesh

from ldm_jax import sharding
from ldm_jax.annotations import Bool, UInt8
from ldm_jax.batches import Batch, Images
from ldm_jax.config import Section
from ldm_jax.data.folder import FolderSource
from ldm_jax.errors import ConfigError, DataError, raise_if_silent
from ldm_jax.images import RGB, read_image
from ldm_jax.metrics.adm_npz import StoredImages
from ldm_jax.metrics.reference import CUT
from ldm_jax.metrics.statistics import evenly_spaced
from ldm_jax.sampling.sample_pixels import pixels_beside, values_of
from ldm_jax.store import is_remote, local_copy

# Threads that decode images.
_THREADS = 4

# Files of a folder that are told by what is in them, and how much of each is read.
_HASHED, _HASHED_BYTES = 64, 1 << 20

# What images that are measured as they are have of preprocessing.
AS_THEY_ARE = {"crop": None, "resize": None}


class ImageSet:
    """A set of images in a fixed order.

    Attributes:
      name: What it is, in words.
      count: Number of images.
      size: (height, width) in pixels.
      batches: Function of a position, the number of images that were taken before: 0 or
        one that it gave -> iterator over the rest in order, which every process goes
        through alike and which has a few batches in memory. It yields (position,
        batch): that after the batch, and a dict of arrays on the mesh, split along axis
        0, all batches of one size B: "image" uint8 [B, H, W, 3] in [0, 255], "mask"
        bool [B], which rows count, and, where numbers do not follow one another,
        "index" int32 [B], those of the images. It raises DataError at an image that
        cannot be read or has another size, and where an npz is cut short; of samples
        CheckpointError where they are not finite, and DataError where conditions are
        too few.
      record: JSON-like dict: "name", "count", "images", a hash of the list of them, and
        of a folder of some files, too, and "preprocessing", as in
        `ReferenceStatistics.record`.
      describe: Function of the number of an image -> what it is called, as its path.
      tokens: Function of the numbers int [B] of a batch's images, negative ones of
        what fills it up -> token ids of their captions, a global array int32 [B, 77];
        None where there are no captions, see `captions.add_captions`.
    """

    def __init__(
        self,
        name: str,
        count: int,
        size: tuple[int, int],
        batches: Callable[[int], Iterator[tuple[int, Batch]]],
        record: Mapping[str, Any],
    ) -> None:
        """Keeps what all sets have in common.

        Args:
          name: What it is, in words.
          count: Number of images.
          size: (height, width) in pixels.
          batches: What is to be the attribute.
          record: What `record` has beside name, count and size.

        Raises:
          ConfigError: If there are fewer than two images.
        """
        if count < 2:
            raise ConfigError(
                f"{name} has {count} image{'s' * (count != 1)}: a distance between "
                "sets needs two or more"
            )
        self.name, self.count, self.size = name, count, size
        self.batches, self.tokens = batches, None
        self.describe = "image {}".format
        cut = {"size": list(size)} | record.get("preprocessing", AS_THEY_ARE)
        self.record = {"name": name, "count": count, **record, "preprocessing": cut}


def open_images(
    place: str | os.PathLike,
    mesh: Mesh,
    batch_size: int,
    *,
    image_size: int | None = None,
    count: int | None = None,
    skip_unreadable: bool = False,
    flag: str = "--images",
) -> ImageSet:
    """Opens a folder of images, with all below it, or an npz of them.

    Args:
      place: Its path.
      mesh: Mesh over the devices of all processes.
      batch_size: Global batch size; rounded up to a multiple of the devices.
      image_size: Side to which images of a folder are brought, cropped at the centre;
        None takes them as they are.
      count: How many of the first ones to take; all by default.
      skip_unreadable: Whether images that cannot be read are left out, and named;
        otherwise nothing is measured then.
      flag: What names the place, for messages.

    Returns:
      An ImageSet. Nothing is read of it yet but an npz's header, or a folder's list of
      files and its first image.

    Raises:
      ConfigError: If it cannot be opened, has fewer than two images, or they cannot be
        taken so.
      DataError: If the first image of a folder cannot be read, or with
        `skip_unreadable` none can.
    """
    path = os.fspath(local_copy(place))
    options = mesh, batch_size, image_size, count, skip_unreadable, flag
    images = _open_copy(place, path, pixels_beside(place), *options)
    if os.path.isdir(path):
        images.record["images"] += _contents(images)
    if is_remote(place):
        # Not that of the copy.
        images.name = images.record["name"] = os.fspath(place)
    return images


def _open_copy(
    place, path, pixels, mesh, batch_size, image_size, count, skip_unreadable, flag
):
    if not os.path.exists(path):
        raise ConfigError(
            f"{flag}={place} does not exist: give a folder of images or an npz"
        )
    if not os.path.isdir(path):
        if pixels not in (None, RGB):
            raise ConfigError(
                f"{flag}={place} holds samples of other channels, bits or ranges than "
                "photos, as the settings of their run say: measure their image files, "
                "the folder samples of a run with --output=png"
            )
        return _open_npz(path, mesh, batch_size, image_size, count, flag)
    if os.path.isfile(os.path.join(path, "settings.json")):
        # Beside the samples lie a grid and what they were drawn from.
        raise ConfigError(
            f"{flag}={place} is a folder of ldm-sample: give its samples, "
            f"{os.path.join(place, 'samples')}"
        )
    if image_size is not None:
        section = {"on_error": "skip" if skip_unreadable else "raise"}
        section |= (pixels or RGB).record()
        images = Images(
            section,
            mesh,
            batch_size,
            name=path,
            image_size=image_size,
            num_images=count,
        )
        values = values_of(pixels, images.encoded(0), images.describe(0), flag)
        return from_data(images, values)
    return _open_folder(path, pixels, mesh, batch_size, count, skip_unreadable, flag)


def _contents(images):
    """Hash of some files: samples of another model often have the same names."""
    digest = hashlib.blake2b(digest_size=8)
    for number in evenly_spaced(images.count, _HASHED).tolist():
        # What cannot be read is dealt with where it is measured.
        with contextlib.suppress(OSError), open(images.describe(number), "rb") as file:
            digest.update(file.read(_HASHED_BYTES))
    return digest.hexdigest()


def _source_of(path, flag):
    try:
        return FolderSource(path, "all", label_key="")
    except ValueError as error:
        raise ConfigError(f"{flag}: {error}") from error


def from_data(images: Images, values: str | None = None) -> ImageSet:
    """Makes a set of the images of a data set, cropped and resized as in training.

    Args:
      images: Opened data, of squares of one size.
      values: Which values are black and white, in words; what the data say by default.

    Returns:
      An ImageSet; images that cannot be read are left out where the data say so.

    Raises:
      ConfigError: If there are fewer than two images.
    """
    side = images.image_size
    name = f"{images.record['data']}, split {images.record['split']}"
    record = {
        "images": images.fingerprint,
        "preprocessing": CUT
        | record_of_values(values or images.pixels.describe_range()),
    }

    def batches(start):
        for batch in images.shown_batches(start):
            start = min(start + images.batch_size, images.count)
            yield start, batch

    found = ImageSet(name, images.count, (side, side), batches, record)
    found.describe = images.describe
    return found


def record_of_values(values: str | None) -> dict[str, str]:
    """Records which values of files are black and white, as part of preprocessing.

    Args:
      values: Words; None of RGB of 8 bits.

    Returns:
      Dict of "values", or an empty one.
    """
    return {} if values is None else {"values": values}


def _open_npz(path, mesh, batch_size, image_size, count, flag):
    stored = StoredImages(path, flag)
    size = stored.shape[1:3]
    if image_size not in (None, *set(size)) or (image_size and size[0] != size[1]):
        raise ConfigError(
            f"{flag}: {path} holds images of {size[0]} x {size[1]} pixels, which are "
            "measured as they are: leave --image_size out"
        )
    total = min(stored.shape[0], stored.shape[0] if count is None else count)
    unit = -(-min(batch_size, max(total, 1)) // mesh.size) * mesh.size

    def batches(start):
        mine = sharding.own_rows(mesh, unit)
        for block in stored.blocks(unit, start):
            block = block[: total - start]
            start += len(block)
            own = block[mine[mine < len(block)]]
            yield start, _put(own, None, len(mine), mesh)
            # The rest of a large file shall not be read for nothing.
            if start >= total:
                return

    record = {"images": stored.fingerprint}
    return ImageSet(os.fspath(path), total, size, lambda n: _ahead(batches(n)), record)


def _open_folder(path, pixels, mesh, batch_size, count, skip_unreadable, flag):
    source = _source_of(path, flag)
    total = len(source) if count is None else min(count, len(source))
    unit = -(-min(batch_size, total) // mesh.size) * mesh.size
    reader = _FolderReader(source, total, skip_unreadable, pixels, flag)
    cut = AS_THEY_ARE | record_of_values(reader.values)
    images = ImageSet(
        os.fspath(path),
        total,
        reader.size,
        lambda start: _ahead(reader.batches(unit, mesh, start)),
        {"images": source.fingerprint(), "preprocessing": cut},
    )
    images.describe = source.describe
    return images


class _FolderReader:
    """Reads the images of a folder as they are."""

    def __init__(self, source, count, skip_unreadable, pixels, flag):
        self._source, self._count, self._skip = source, count, skip_unreadable
        self._pixels, self._flag, self.values = pixels, flag, None
        # All have the size of the first one that can be read.
        self._first, self.size = 0, None
        found = (self._read(index) for index in range(count))
        for self._first, image in enumerate(found):
            if image is not None:
                self.size = image.shape[:2]
                break
        if self.size is None:
            raise DataError(
                f"none of the {count} images can be read; the first is "
                f"{source.describe(0)}"
            )

    def _read(self, index):
        """uint8 [H, W, 3], or None where it cannot be read and that is allowed."""
        path = self._source.describe(index)
        try:
            data = self._source[index]["image"]
            found = values_of(self._pixels, data, path, self._flag, self.values)
            self.values = self.values or found
            pixels = self._pixels or RGB
            image = pixels.shown(read_image(data, pixels))
        except ConfigError:
            raise
        except (OSError, ValueError) as error:
            raise_if_silent(path, error)
            reason = getattr(error, "strerror", None) or error
            if not self._skip:
                raise DataError(
                    f"{path} cannot be read ({reason}): mend it or take it away, or "
                    "leave such images out with --skip_unreadable"
                ) from error
            logging.warning("left out: %s cannot be read (%s)", path, reason)
            return None
        if self.size is not None and image.shape[:2] != self.size:
            height, width = image.shape[:2]
            raise DataError(
                f"{path} is {height} x {width} pixels and "
                f"{self._source.describe(self._first)} {self.size[0]} x "
                f"{self.size[1]}: take it away, or bring all to one size with "
                "--image_size"
            )
        return image

    def batches(self, unit, mesh, start):
        mine = sharding.own_rows(mesh, unit)
        with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
            for first in range(start, self._count, unit):
                rows = [row for row in first + mine if row < self._count]
                found = list(pool.map(self._read, rows))
                blank = np.zeros((*self.size, 3), np.uint8)
                images = [blank if image is None else image for image in found]
                mask = np.array([image is not None for image in found], bool)
                images = np.stack(images) if images else np.zeros((0, *blank.shape))
                batch = _put(images, mask, len(mine), mesh)
                yield min(first + unit, self._count), batch


def _put(
    images: UInt8[np.ndarray, "rows h w 3"],
    mask: Bool[np.ndarray, " rows"] | None,
    rows: int,
    mesh: Mesh,
) -> Batch:
    """A global batch of this process's rows, filled up with rows that do not count."""
    count = len(images)
    filled = np.zeros((rows, *images.shape[1:]), np.uint8)
    real = np.zeros(rows, bool)
    filled[:count], real[:count] = images, True if mask is None else mask
    return sharding.put_batch({"image": filled, "mask": real}, mesh)


def _ahead(batches):
    """Loads the next batch while the last one is worked on."""
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, batches, None)
        while (batch := coming.result()) is not None:
            coming = pool.submit(next, batches, None)
            yield batch


def open_training_set(
    section: Section,
    mesh: Mesh,
    batch_size: int,
    *,
    split: str | None = None,
    count: int | None = None,
    image_size: int | None = None,
) -> ImageSet:
    """Opens the images that a run was trained on, cut at the centre, not mirrored.

    Args:
      section: Config section `data` of the run.
      mesh: Mesh over the devices of all processes.
      batch_size: Global batch size; rounded up to a multiple of the devices.
      split: Another split of the same data.
      count: How many of the first ones to take; all by default.
      image_size: Side in pixels; that of training by default.

    Returns:
      An ImageSet, whose record says whether it is the "whole_training_set".

    Raises:
      ConfigError: If the run names no data, they cannot be opened, or have fewer than
        two images.
    """
    if not section.get("source"):
        raise ConfigError(
            "the run names no data, as converted ones do: give the training images as "
            "a folder or an npz, with --reference (ldm-reference takes --images)"
        )
    options = {"split": split or section["split"], "image_size": image_size}
    images = from_data(Images(section, mesh, batch_size, num_images=count, **options))
    is_whole = count is None and options["split"] == section["split"]
    images.record["whole_training_set"] = is_whole
    return images
