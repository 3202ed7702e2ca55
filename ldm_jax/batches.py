"""A run's images as global batches on the devices."""

import contextlib
import itertools
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ldm_jax import sharding
from ldm_jax.config import Section, to_dict
from ldm_jax.data.loader import make_loader
from ldm_jax.data.open_source import open_source
from ldm_jax.data.orders.describe import describe_order
from ldm_jax.data.orders.part_counts import count_parts
from ldm_jax.data.sources import make_record, part, require_images, spread
from ldm_jax.errors import ConfigError

# Batch key -> global array [batch size, ...].
Batch = dict[str, Any]


class Data:
    """The training and held-out images of one run.

    Attributes:
      num_examples: Number of training images.
      num_classes: Number of classes, None where there are no labels.
      class_names: List of their names, None where they have none.
      header: `data.encoded.Header` of latents that were encoded before; None of images.
      example: One training example as a batch of one, NumPy: shapes and types.
    """

    def __init__(
        self, section: ConfigDict, seed: int, batch_size: int, mesh: Mesh
    ) -> None:
        """Opens the data set.

        Args:
          section: Config section `data`.
          seed: Seed of the order and of the augmentation.
          batch_size: Global batch size.
          mesh: Mesh of the run.

        Raises:
          ConfigError: If the data set cannot be read.
        """
        self._section = section
        self._seed = seed
        self._batch_size = batch_size
        self._mesh = mesh
        self._source = open_source(section, section.split)
        self._held_out, self._check = None, None
        self._skipped = dict(getattr(self._source, "skipped", ()))
        self._missed, self._shortened, self._parts = {}, {}, None
        self._cut = {}
        self.num_examples = len(self._source)
        self.num_classes = self._source.num_classes
        self.class_names = self._source.class_names
        self.header = getattr(self._source, "header", None)
        if self.header is None:
            self.require_images(
                "sets of latents are no parts of a mixture; encode the mixture, with "
                "ldm-encode"
            )
        if self.has_held_out:
            # A split that is not there shall not wait for the first evaluation.
            self._open()
        self.example = self._first_example()

    def check_examples(self, check: Callable[[Mapping[str, Any]], None]) -> None:
        """From now on takes only examples whose conditions the model takes.

        Others count as examples that cannot be read.

        Args:
          check: Raises a ValueError for a batch of one whose conditions it does not.

        Raises:
          DataError: If no example can be taken.
        """
        self._check = check
        self.example = self._first_example()

    def record(self) -> dict[str, Any]:
        """Says what is trained on, for checkpoints.

        Returns:
          JSON-like dict; see `data.sources.make_record`.
        """
        return make_record(self._source, self.example)

    def describe_order(self) -> list[str]:
        """Says what is special about the order: of a mixture or buckets.

        Returns:
          Lines for the log.
        """
        return describe_order(self._source, self._section, self._seed, self._batch_size)

    def counts(self, step: int) -> dict[str, int]:
        """Counts examples, for the log; every process must call it.

        Args:
          step: Number of steps done.

        Returns:
          Dict: "data/skipped", how many could not be read, and "data/shortened", of how
          many a part was left out, since this process began, over all processes;
          "data/cut", how often a caption that lost its end was loaded for training; for
          a mixture "data/images/PART" of each part, how many the run has taken.
        """
        cut = sum(self._cut.values())
        counts = np.array([len(self._missed), len(self._shortened), cut])
        if jax.process_count() > 1:
            counts = multihost_utils.process_allgather(counts).sum(axis=0)
        # What opening left out, every process knows of.
        found = {
            "data/skipped": len(self._skipped) + int(counts[0]),
            "data/shortened": int(counts[1]),
            "data/cut": int(counts[2]),
        }
        if self._parts is not None:
            found |= self._parts.at(step * self._batch_size)
        return found

    @property
    def has_held_out(self) -> bool:
        """Whether the config names a split that is not trained on."""
        return bool(self._section.eval_split)

    def train_batches(self, start: int, count: int | None = None) -> Iterator[Batch]:
        """Yields training batches from a step on; the position is the step number.

        Args:
          start: Number of steps done.
          count: Number of batches; without end by default.

        Yields:
          Dict of global arrays [batch size, ...], uint8 images.
        """
        yield from self._batches(self._source, True, self._batch_size, start, count)

    def require_images(self, advice: str) -> None:
        """Refuses data that were encoded before.

        Args:
          advice: What to do.

        Raises:
          ConfigError: If the data have no images.
        """
        require_images(self._source, advice)

    @property
    def num_held_out(self) -> int:
        """Number of examples that are held out, 0 where no split is named."""
        return len(self._open()) if self.has_held_out else 0

    def held_out_batches(
        self, count: int | None = None, batch_size: int | None = None
    ) -> Iterator[Batch]:
        """Yields the held-out examples once, in order.

        Args:
          count: Largest number of batches; all by default.
          batch_size: Global batch size, rounded up to a multiple of the devices; that
            of training by default.

        Yields:
          Dict of global arrays [batch size, ...]; "mask" marks real rows, "index" has
          the number of each example.
        """
        size = self._even(batch_size or self._batch_size)
        yield from self._batches(self._open(), False, size, 0, count)

    def describe_images(self, held_out: bool) -> dict[str, Any]:
        """Says of which images those of `images_alone` are some.

        Args:
          held_out: See there.

        Returns:
          JSON-like dict of "data", "split", "listed", how many they are, and
          "fingerprint", None where the source has none.

        Raises:
          ConfigError: If the data have no images.
        """
        source = self._open() if held_out else self._source
        self.require_images(
            "set eval.reference to a file that ldm-reference makes of the images"
        )
        fingerprint = getattr(source, "fingerprint", None)
        return {
            "data": self._section.name,
            "split": self._section.eval_split if held_out else self._section.split,
            "listed": len(source),
            "fingerprint": None if fingerprint is None else fingerprint(),
        }

    def images_alone(
        self, held_out: bool, count: int | None, batch_size: int
    ) -> Iterator[Batch]:
        """Yields images once, cropped at the centre and not mirrored.

        Args:
          held_out: Whether those that are held out, the first ones in order, or some of
            those that are trained on, evenly spaced over all.
          count: How many of them; None for all.
          batch_size: Global batch size, rounded up to a multiple of the devices.

        Yields:
          Dict of global arrays "image" uint8 [batch size, H, W, C] and "mask", which
          marks real rows.
        """
        source = (
            part(self._open(), 0, count) if held_out else spread(self._source, count)
        )
        section = to_dict(self._section) | {"inputs": {}, "keys": ()}
        loader = make_loader(
            source,
            section,
            batch_size=self._even(batch_size),
            seed=self._seed,
            train=False,
            process=(jax.process_index(), jax.process_count()),
        )
        yield from _image_batches(loader, self._mesh)

    def preview_batch(self, size: int) -> Batch:
        """Loads the first held-out images (training ones where none are held out).

        Args:
          size: Number of images; rounded up to a multiple of the devices.

        Returns:
          Dict of global arrays [size, ...], without "mask" and "index".
        """
        size = self._even(size)
        source = self._open() if self.has_held_out else self._source
        batch = next(self._batches(source, not self.has_held_out, size, 0, 1))
        return {k: v for k, v in batch.items() if k not in ("mask", "index")}

    def _even(self, size):
        """The next size that the devices divide."""
        return -(-size // self._mesh.size) * self._mesh.size

    def _open(self):
        if self._held_out is None:
            held_out = open_source(self._section, self._section.eval_split)
            if self.header is not None:
                key = f"data.eval_split={self._section.eval_split}"
                self.header.require_alike(held_out.header, key)
            self._held_out = held_out
        return self._held_out

    def _batches(self, source, train, batch_size, start, count):
        loader = self._loader(source, train, batch_size, start)
        if train and count is None:
            self._parts = count_parts(source, loader.order)
            self._cut = loader.cut
        try:
            for step, batch in enumerate(itertools.islice(loader, count)):
                self._note(loader)
                if not train:
                    rows = len(batch["mask"])
                    begin = step * batch_size + jax.process_index() * rows
                    batch["index"] = np.arange(begin, begin + rows, dtype=np.int32)
                yield sharding.put_batch(batch, self._mesh)
        finally:
            loader.close()

    def _note(self, loader):
        """Keeps what a loader could not read."""
        for ours, theirs in (
            (self._missed, loader.skipped),
            (self._shortened, loader.shortened),
        ):
            if not theirs.keys() <= ours.keys():
                ours.update(theirs)

    def _loader(self, source, train, batch_size, start):
        return make_loader(
            source,
            self._section,
            batch_size=batch_size,
            seed=self._seed,
            start_step=start,
            train=train,
            process=(jax.process_index(), jax.process_count()),
            check=self._check,
        )

    def _first_example(self):
        # The size of the config: batches of all shapes go through the same weights.
        section = to_dict(self._section) | {"workers": 0, "buckets": {}}
        loader = make_loader(
            self._source, section, batch_size=1, seed=0, check=self._check
        )
        try:
            return {key: np.asarray(value) for key, value in next(loader).items()}
        finally:
            loader.close()


def _image_batches(loader, mesh):
    """Global batches of the images alone; ends the loader."""
    with contextlib.closing(loader):
        for batch in loader:
            batch = {key: batch[key] for key in ("image", "mask")}
            yield sharding.put_batch(batch, mesh)


class Images:
    """Images of one size, cropped at the centre, in order.

    Attributes:
      image_size: Their side in pixels.
      count: Their number.
      batch_size: Global batch size, a multiple of the number of devices.
      fingerprint: Hash of the list that they are the first ones of, or None.
      record: Dict that says what they are.
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
          section: Config section `data` of the run; the rest replaces keys of it.
          mesh: Mesh over the devices of all processes.
          batch_size: Global batch size; rounded up to a multiple of the devices.
          name: Folder of images or tar shards, of which all are taken, or name of a
            TensorFlow data set.
          data_dir: Where prepared data sets lie.
          split: Split; by default the run's held-out one.
          image_size: Side of the images in pixels.
          num_images: How many of the first ones to take; all by default.

        Raises:
          ConfigError: If the data set is not named or cannot be read.
        """
        # Only the images are read: what goes with them need not be there.
        section = to_dict(section) | {"inputs": {}, "keys": ()}
        if name:
            is_folder = os.path.isdir(os.path.expanduser(name))
            kind = "folder" if is_folder else "tar" if name.endswith(".tar") else "tfds"
            are_files = kind != "tfds"
            section |= {"source": kind, "name": name}
            # The names of features in the run's own data do not hold for others.
            section |= {"image_key": None, "label_key": "" if are_files else None}
            section["filter"] = None
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
        self._section, self._mesh = section, mesh
        source = open_source(section, split)
        require_images(source, "name images (--data or --reference)")
        fingerprint = getattr(source, "fingerprint", None)
        self.fingerprint = None if fingerprint is None else fingerprint()
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
          What the source calls it.
        """
        return self._source.describe(index)

    def batches(self, start: int = 0) -> Iterator[Batch]:
        """Yields the images once, in order; "mask" marks real rows.

        Args:
          start: Position of the first one.

        Yields:
          Dict of global arrays "image" [batch size, H, W, C], uint8, and "mask"
          [batch size].
        """
        loader = make_loader(
            part(self._source, start),
            self._section,
            batch_size=self.batch_size,
            seed=0,
            train=False,
            process=(jax.process_index(), jax.process_count()),
        )
        yield from _image_batches(loader, self._mesh)
