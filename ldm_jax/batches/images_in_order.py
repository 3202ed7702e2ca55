"""Images only, in order, as global batches on the devices."""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import jax
from jax.sharding import Mesh

from ldm_jax import reading, sharding
from ldm_jax.config import Section, to_dict
from ldm_jax.data.loader import Loader, make_loader
from ldm_jax.data.open_source import open_source
from ldm_jax.data.sources import Subset, left_out, part, require_images
from ldm_jax.errors import ConfigError, DataError
from ldm_jax.images import pixels_of
from ldm_jax.store import is_remote, raise_if_silent

# Batch key -> global array [batch size, ...].
Batch = dict[str, Any]


def image_batches(loader: Loader, mesh: Mesh) -> Iterator[Batch]:
    """Yields global batches of images only; closes the loader.

    Args:
      loader: Loader of one pass.
      mesh: Mesh over the devices of all processes.

    Yields:
      Dict of "image" and "mask".
    """
    with contextlib.closing(loader):
        for batch in loader:
            batch = {key: batch[key] for key in ("image", "mask")}
            yield sharding.put_batch(batch, mesh)


def source_of(name: str) -> str:
    """Finds the row of SOURCES that reads the data named in a flag.

    Args:
      name: A folder, a tar shard, a Parquet file, or a TensorFlow data set.

    Returns:
      Name of the row.
    """
    if is_remote(name):
        # Any others have been copied to the disk before.
        return "parquet" if name.endswith(".parquet") else "tar"
    folder = os.path.expanduser(name)
    is_folder = reading.is_folder(folder)
    files = reading.names_in(folder) if is_folder else [name]
    for suffix, kind in ((".tar", "tar"), (".parquet", "parquet")):
        if any(file.endswith(suffix) for file in files):
            return kind
    return "folder" if is_folder else "tfds"


@contextlib.contextmanager
def _advising_flags():
    """Replaces the config's key by the flag in messages of errors in the block."""
    try:
        yield
    except DataError as error:
        key, flag = 'set data.on_error="skip"', "leave such out with --skip_unreadable"
        raise DataError(str(error).replace(key, flag)) from error


class _Watched(Subset):
    """A source that calls a function with each image before it is decoded."""

    def __init__(self, source, look):
        super().__init__(source, range(len(source)))
        self._look, self.refused = look, None

    def __getitem__(self, index):
        example = super().__getitem__(index)
        try:
            self._look(example["image"], self.describe(index))
        except ConfigError as error:
            # Stored, as the loader would take it for damage of this image.
            self.refused = error
            raise
        return example


class Images:
    """Images of one size, cropped at the centre, in order.

    Attributes:
      image_size: Their side in pixels.
      count: Their number.
      left_out: What was left out on opening, see `sources.left_out`; not in `count`.
      batch_size: Global batch size, a multiple of the number of devices.
      fingerprint: Hash of the whole split, of which they are the first ones, or None.
      record: Dict of data set, split and image size.
      pixels: Their channels, type and range.
      look: None, or a function that is called with each image, as the source returns
        it, and its name, before it is decoded; a ConfigError that it raises ends the
        run. It only works without worker processes.
    """

    def __init__(
        self,
        section: Section,
        mesh: Mesh,
        batch_size: int,
        *,
        name: str | None = None,
        data_dir: str | None = None,
        split: str | None = None,
        image_size: int | None = None,
        num_images: int | None = None,
    ) -> None:
        """Opens the data set.

        Args:
          section: Config section `data` of the run; the other arguments override it.
          mesh: Mesh over the devices of all processes.
          batch_size: Global batch size; rounded up to a multiple of the devices.
          name: Folder of images, tar shards or Parquet files, or one of these files, of
            which all images are taken; or name of a TensorFlow data set.
          data_dir: Folder of prepared data sets.
          split: Split; by default the run's held-out one.
          image_size: Side of the images in pixels.
          num_images: How many of the first ones to take; all by default.

        Raises:
          ConfigError: If there is no data set, or it cannot be read.
          DataError: If folders in it cannot be listed and `on_error` is "raise".
        """
        # Only the images are read: side information is not needed.
        section = to_dict(section) | {"inputs": {}, "keys": ()}
        if name:
            kind = source_of(name)
            are_files = kind != "tfds"
            section |= {"source": kind, "name": name}
            # The run's names of features do not apply to other data.
            section |= {"image_key": None, "label_key": "" if are_files else None}
            section |= {"filter": None, "eval_name": None}
            if are_files:
                section |= {"data_dir": None, "eval_split": "all"}
        if data_dir:
            section["data_dir"] = data_dir
        if image_size:
            section["image_size"] = image_size
        if not section.get("source"):
            raise ConfigError(
                "the workdir names no data, as converted ones do: give images with "
                "--data"
            )
        split = split or section.get("eval_split")
        if not split:
            raise ConfigError(
                "the run holds no images out; name a split with --split or other "
                "images with --data"
            )
        self._section, self._mesh, self.look = section, mesh, None
        self.pixels = pixels_of(section)
        with _advising_flags():
            source = open_source(section, split)
        require_images(source, "name images (--data or --reference)")
        fingerprint = getattr(source, "fingerprint", None)
        self.fingerprint = None if fingerprint is None else fingerprint()
        self.left_out = left_out(source)
        self._source = part(source, 0, num_images)
        self.count = len(self._source)
        size = min(batch_size, len(self._source))
        self.batch_size = -(-size // mesh.size) * mesh.size
        self.image_size = section["image_size"]
        self.record = {
            "data": section["name"],
            "split": split,
            "image_size": self.image_size,
        }

    def describe(self, index: int) -> str:
        """Names an image.

        Args:
          index: Its number.

        Returns:
          The source's name of it.
        """
        return self._source.describe(index)

    def encoded(self, index: int) -> Any:
        """Reads an image without decoding it.

        Args:
          index: Its number.

        Returns:
          The source's value: encoded bytes, or an array uint8 [H, W, C]; empty bytes if
          it cannot be read, which is reported when it is loaded.
        """
        try:
            return self._source[index]["image"]
        except Exception as error:
            raise_if_silent(self.describe(index), error)
            return b""

    def shown_batches(self, start: int = 0) -> Iterator[Batch]:
        """Yields the images as 8-bit RGB, from which features are computed.

        Args:
          start: Position of the first one.

        Yields:
          Dict as in `batches`, with "image" uint8 [batch size, H, W, 3].
        """
        show = self.pixels.shown
        show = show if self.pixels.is_rgb else jax.jit(show)
        for batch in self.batches(start):
            yield batch | {"image": show(batch["image"])}

    def batches(self, start: int = 0) -> Iterator[Batch]:
        """Yields the images once, in order; "mask" marks real rows.

        Args:
          start: Position of the first one.

        Yields:
          Dict of global arrays "image" [batch size, H, W, C] and "mask" [batch size].
        """
        source = part(self._source, start)
        if self.look is not None:
            source = _Watched(source, self.look)
        loader = make_loader(
            source,
            self._section,
            batch_size=self.batch_size,
            seed=0,
            train=False,
            rows=sharding.own_rows(self._mesh, self.batch_size),
        )
        try:
            with _advising_flags():
                for batch in image_batches(loader, self._mesh):
                    _raise_refused(source)
                    yield batch
        except DataError:
            _raise_refused(source)
            raise
        # In the last batch it may have been skipped as damaged.
        _raise_refused(source)


def _raise_refused(source):
    refused = getattr(source, "refused", None)
    if refused is not None:
        raise refused
