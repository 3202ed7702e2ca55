"""Sets of images to measure: folders, npz files and data sets, as streams of batches.

Images of a folder or an npz are measured unchanged and must have one size. Only if a
size is given are they cropped at the centre and resized, as in training. Samples with
other channels, bits or ranges than photos are read by the settings file beside them,
and mapped to RGB as their run displays them.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from jax.sharding import Mesh

from ldm_jax import sharding
from ldm_jax.batches import Batch, Images
from ldm_jax.config import Section
from ldm_jax.data.folder import FolderSource
from ldm_jax.data.sources import left_out
from ldm_jax.errors import ConfigError
from ldm_jax.evaluation.as_they_are.contents import contents_of
from ldm_jax.evaluation.as_they_are.first_image import look_at_first
from ldm_jax.evaluation.as_they_are.folder_reader import FolderReader
from ldm_jax.evaluation.as_they_are.host_rows import ahead, put_rows
from ldm_jax.evaluation.as_they_are.shards import explaining_shards
from ldm_jax.images import RGB, as_written
from ldm_jax.metrics.adm_npz import StoredImages
from ldm_jax.metrics.reference import CUT
from ldm_jax.reading import is_folder, state_of
from ldm_jax.sampling.sample_pixels import SetValues, is_run, pixels_beside
from ldm_jax.store import is_remote, local_copy

# The "preprocessing" of images that are measured unchanged.
AS_THEY_ARE = {"crop": None, "resize": None, "values": None}


class ImageSet:
    """A set of images in a fixed order.

    Attributes:
      name: Description of the set.
      count: Number of images. Fewer samples are drawn if conditions of examples cannot
        be read and such examples are left out.
      end: One above the largest possible number of an image: `count`, or for samples
        the number of examples.
      left_out: What was left out when the set was opened, see `sources.left_out`; not
        in `count`.
      size: (height, width) in pixels.
      batches: Function of a position, the number of images before it (0, or a position
        that it yielded) -> iterator over the remaining images in order. Every process
        must iterate in the same way; a few batches are in memory. It yields (position
        after the batch, batch): a dict of arrays on the mesh, split along axis 0, all
        batches of one size B: "image" uint8 [B, H, W, 3] in [0, 255], "mask" bool [B],
        the rows that count, and, if the images are not numbered consecutively, "index"
        int32 [B], their numbers. It raises DataError at an image that cannot be read or
        has another size, and at the end of a truncated npz; for samples
        CheckpointError if they are not finite.
      record: JSON-like dict: "name", "count", "images", a hash of the list of images
        and, for a folder, of the contents of some files, and "preprocessing", as in
        `ReferenceStatistics.record`.
      describe: Function of the number of an image -> its name, for example its path.
      tokens: Function of the numbers int [B] of a batch's images, negative for padding
        -> token ids of their captions, a global array int32 [B, 77]; None if there are
        no captions, see `captions.add_captions`.
    """

    def __init__(
        self,
        name: str,
        count: int,
        size: tuple[int, int],
        batches: Callable[[int], Iterator[tuple[int, Batch]]],
        record: Mapping[str, Any],
    ) -> None:
        """Sets the attributes that all sets have.

        Args:
          name: Description of the set.
          count: Number of images.
          size: (height, width) in pixels.
          batches: See the attribute.
          record: Entries of `record` beside name, count and size.

        Raises:
          ConfigError: If there are fewer than two images.
        """
        if count < 2:
            raise ConfigError(
                f"{name} has {count} image{'s' * (count != 1)}: a metric of "
                "sets needs two or more"
            )
        self.name, self.count, self.end, self.size = name, count, count, size
        self.batches, self.tokens, self.left_out = batches, None, []
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
      place: Path of the folder or npz.
      mesh: Mesh over the devices of all processes.
      batch_size: Global batch size; rounded up to a multiple of the devices.
      image_size: Side to which images of a folder are cropped at the centre and
        resized; None leaves them unchanged.
      count: Number of images to use, the first ones; all by default.
      skip_unreadable: Whether images that cannot be read are left out, and named;
        otherwise they are an error.
      flag: The flag that names the place, for messages.

    Returns:
      An ImageSet. So far only an npz's header, or a folder's list of files and its
      first image, has been read.

    Raises:
      ConfigError: If it cannot be opened, has fewer than two images, or these options
        do not fit it.
      DataError: If the first image of a folder cannot be read, or with
        `skip_unreadable` none of the first hundred can.
    """
    path = os.fspath(local_copy(place))
    options = mesh, batch_size, image_size, count, skip_unreadable, flag
    images = _open_copy(place, path, pixels_beside(place), *options)
    if is_folder(path):
        images.record["images"] += contents_of(images.count, images.describe)
    if is_remote(place):
        # Not the name of the local copy.
        images.name = images.record["name"] = os.fspath(place)
    return images


def _open_copy(
    place, path, beside, mesh, batch_size, image_size, count, skip_unreadable, flag
):
    if state_of(path) is None:
        raise ConfigError(
            f"{flag}={place} does not exist: give a folder of images or an npz"
        )
    if not is_folder(path):
        if not (beside.pixels or RGB).is_rgb:
            raise ConfigError(
                f"{flag}={place} holds samples of other channels, bits or ranges than "
                "photos, as the settings of their run say: measure their image files, "
                "the folder samples of a run with --output=png, or with --output=tar "
                "and --image_size"
            )
        return _open_npz(path, mesh, batch_size, image_size, count, flag)
    if is_run(path):
        # Beside the samples are a grid and the inputs that they were drawn from.
        raise ConfigError(
            f"{flag}={place} is a folder of ldm-sample: give its samples, "
            f"{os.path.join(place, 'samples')}"
        )
    values, pixels = SetValues(beside, flag), beside.pixels or RGB
    if image_size is None:
        with explaining_shards(path, pixels, flag, image_size):
            source = FolderSource(path, "all", label_key="")
        options = mesh, batch_size, count, skip_unreadable
        return _open_folder(path, source, values, pixels, *options)
    section = {"on_error": "skip" if skip_unreadable else "raise"}
    with explaining_shards(path, pixels, flag, image_size):
        images = Images(
            section | as_written(pixels).record(),
            mesh,
            batch_size,
            name=path,
            image_size=image_size,
            num_images=count,
        )
    images.look = values.look
    look_at_first(images, values, skip_unreadable)
    return from_data(images, values.words)


def from_data(images: Images, values: str | None = None) -> ImageSet:
    """Makes a set of the images of a data set, cropped and resized as in training.

    Args:
      images: Opened data, square images of one size.
      values: Which values are black and white, in words; those of the data by default.

    Returns:
      An ImageSet; images that cannot be read are left out if the data skip them.

    Raises:
      ConfigError: If there are fewer than two images.
    """
    side = images.image_size
    name = f"{images.record['data']}, split {images.record['split']}"
    record = {
        "images": images.fingerprint,
        "preprocessing": CUT | {"values": values or images.pixels.describe_range()},
    }

    def batches(start):
        for batch in images.shown_batches(start):
            start = min(start + images.batch_size, images.count)
            yield start, batch

    found = ImageSet(name, images.count, (side, side), batches, record)
    found.describe, found.left_out = images.describe, images.left_out
    return found


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
        """Yields (number of the images so far, batch of global arrays) from `start`."""
        mine = sharding.own_rows(mesh, unit)
        for block in stored.blocks(unit, start):
            block = block[: total - start]
            start += len(block)
            own = block[mine[mine < len(block)]]
            yield start, put_rows(own, None, len(mine), mesh)
            # Avoids reading the rest of a large file for nothing.
            if start >= total:
                return

    record = {"images": stored.fingerprint}
    return ImageSet(os.fspath(path), total, size, lambda n: ahead(batches(n)), record)


def _open_folder(
    path, source, values, pixels, mesh, batch_size, count, skip_unreadable
):
    total = len(source) if count is None else min(count, len(source))
    unit = -(-min(batch_size, total) // mesh.size) * mesh.size
    reader = FolderReader(source, total, skip_unreadable, values, pixels)
    cut = AS_THEY_ARE | {"values": values.words}
    images = ImageSet(
        os.fspath(path),
        total,
        reader.size,
        lambda start: ahead(reader.batches(unit, mesh, start)),
        {"images": source.fingerprint(), "preprocessing": cut},
    )
    images.describe, images.left_out = source.describe, left_out(source)
    return images


def open_training_set(
    section: Section,
    mesh: Mesh,
    batch_size: int,
    *,
    split: str | None = None,
    count: int | None = None,
    image_size: int | None = None,
) -> ImageSet:
    """Opens the training images of a run, cropped at the centre, not mirrored.

    Args:
      section: Config section `data` of the run.
      mesh: Mesh over the devices of all processes.
      batch_size: Global batch size; rounded up to a multiple of the devices.
      split: Another split of the same data.
      count: Number of images to use, the first ones; all by default.
      image_size: Side in pixels; that of training by default.

    Returns:
      An ImageSet with the entry "whole_training_set", a bool, in its record.

    Raises:
      ConfigError: If the run names no data, or these cannot be opened or have fewer
        than two images.
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
