"""The training and held-out data of a run, as global batches on the devices."""

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ldm_jax import sharding
from ldm_jax.batches.images_in_order import Batch, image_batches
from ldm_jax.batches.seen import Seen
from ldm_jax.config import to_dict
from ldm_jax.data.loader import make_loader
from ldm_jax.data.open_source import open_source
from ldm_jax.data.orders.describe import describe_order
from ldm_jax.data.orders.part_counts import count_parts
from ldm_jax.data.sources import make_record, part, require_images, spread
from ldm_jax.errors import ConfigError

# Changes of the section `data` that make all images squares of `image_size`.
SQUARES = {"buckets": {}}


class Data:
    """The training and held-out images of one run.

    Attributes:
      num_examples: Number of training images.
      num_classes: Number of classes, None if there are no labels.
      class_names: List of their names, None if they have none.
      header: `data.encoded.Header` of precomputed latents; None for images.
      null_states: Batch key -> text states [L, D] of the null input, if the data have
        states instead of token ids.
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
        self._skipped = Seen(where for where, _ in _left_out(self._source))
        self._shortened, self._cut, self._parts = Seen(), {}, None
        self._said = set()
        self.num_examples = len(self._source)
        self.num_classes = self._source.num_classes
        self.class_names = self._source.class_names
        self.header = getattr(self._source, "header", None)
        self.null_states = getattr(self._source, "null_states", {})
        if self.header is None and section.get("text_states"):
            raise ConfigError(
                f"data.text_states=True, but data.source={section.source} has images: "
                "set it to False, or train on latents that were encoded with "
                "--text_states"
            )
        if self.header is None:
            self.require_images(
                "sets of latents are no parts of a mixture; encode the mixture, with "
                "ldm-encode"
            )
        if self.has_held_out:
            # A missing split is an error now, not only at the first evaluation.
            self._open()
        self.example = self._first_example()

    def check_examples(self, check: Callable[[Mapping[str, Any]], None]) -> None:
        """From now on skips examples whose conditions do not fit the model.

        They count as examples that cannot be read, and so do examples whose features
        have another shape than those of the first example.

        Args:
          check: Function of a batch of one that raises a ValueError if its conditions
            do not fit.

        Raises:
          DataError: If no example fits.
        """
        self._check = check
        self.example = self._first_example()
        shapes = {key: value.shape[1:] for key, value in self.example.items()}
        # Workers get a copy of it.
        self._check = functools.partial(_check_batch, check, shapes)

    def record(self) -> dict[str, Any]:
        """Records what data the run is trained on, for checkpoints.

        Returns:
          JSON-like dict; see `data.sources.make_record`.
        """
        return make_record(self._source, self.example)

    def describe_order(self) -> list[str]:
        """Describes the order of a mixture or of buckets.

        Returns:
          Lines for the log.
        """
        return describe_order(self._source, self._section, self._seed, self._batch_size)

    def counts(self, step: int) -> dict[str, int]:
        """Counts examples, for the log; every process must call it.

        Args:
          step: Number of steps done.

        Returns:
          Dict: "data/skipped", number of examples that could not be read, also held-out
          ones, and "data/shortened", number of those of which a part was left out,
          since the run was started or resumed, each counted once over all processes;
          "data/cut", how often a truncated input was loaded for training; for a
          mixture also "data/images/PART", number of examples of each part in the run.
        """
        cut = np.int32(sum(self._cut.values()))
        if jax.process_count() > 1:
            cut = multihost_utils.process_allgather(cut).sum()
        found = {
            "data/skipped": self._skipped.count(),
            "data/shortened": self._shortened.count(),
            "data/cut": int(cut),
        }
        if self._parts is not None:
            found |= self._parts.at(step * self._batch_size)
        return found

    @property
    def has_held_out(self) -> bool:
        """Whether the config has a held-out split."""
        return bool(self._section.eval_split)

    def train_batches(self, start: int, count: int | None = None) -> Iterator[Batch]:
        """Yields training batches from a step on; the position is the step number.

        Args:
          start: Number of steps done.
          count: Number of batches; endless by default.

        Yields:
          Dict of global arrays [batch size, ...], uint8 images.
        """
        yield from self._batches(self._source, True, self._batch_size, start, count)

    def require_images(self, advice: str) -> None:
        """Raises an error if the data are precomputed latents.

        Args:
          advice: What to do instead, for the message.

        Raises:
          ConfigError: If the data have no images.
        """
        require_images(self._source, advice)

    @property
    def num_held_out(self) -> int:
        """Number of held-out examples, 0 if there is no held-out split."""
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
        """Describes the images of which `images_alone` yields all or some.

        Args:
          held_out: See `images_alone`.

        Returns:
          JSON-like dict of "data", "split", "listed", their number, and "fingerprint",
          None if the source has none.

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
          held_out: True for the first held-out images in order, False for training
            images evenly spaced over all.
          count: Number of images; None for all.
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
            rows=sharding.own_rows(self._mesh, self._even(batch_size)),
        )
        loader.said = self._said
        yield from image_batches(loader, self._mesh)

    def preview_batch(self, size: int) -> Batch:
        """Loads the first held-out images (training ones if none are held out).

        Args:
          size: Number of images; rounded up to a multiple of the devices.

        Returns:
          Dict of global arrays [size, ...], without "mask" and "index".
        """
        size = self._even(size)
        source = self._open() if self.has_held_out else self._source
        train = not self.has_held_out
        batch = next(self._batches(source, train, size, 0, 1, SQUARES))
        return {k: v for k, v in batch.items() if k not in ("mask", "index")}

    def _even(self, size):
        """Rounds a size up to a multiple of the devices."""
        return -(-size // self._mesh.size) * self._mesh.size

    def _open(self):
        if self._held_out is None:
            held_out = open_source(self._section, self._section.eval_split)
            if self.header is not None:
                key = f"data.eval_split={self._section.eval_split}"
                self.header.require_alike(held_out.header, key)
            self._held_out = held_out
            self._skipped.add(where for where, _ in _left_out(self._held_out))
        return self._held_out

    def _batches(self, source, train, batch_size, start, count, changes=None):
        loader = self._loader(source, train, batch_size, start, changes)
        if train and count is None:
            self._parts = count_parts(source, loader.order)
            self._cut = loader.cut
        noted = 0
        try:
            for step, batch in enumerate(itertools.islice(loader, count)):
                if len(loader.skipped) + len(loader.shortened) > noted:
                    noted = len(loader.skipped) + len(loader.shortened)
                    self._skipped.add(loader.skipped)
                    self._shortened.add(loader.shortened)
                if not train:
                    rows = sharding.own_rows(self._mesh, batch_size)
                    batch["index"] = (step * batch_size + rows).astype(np.int32)
                yield sharding.put_batch(batch, self._mesh)
        finally:
            loader.close()

    def _loader(self, source, train, batch_size, start, changes=None):
        loader = make_loader(
            source,
            to_dict(self._section) | (changes or {}),
            batch_size=batch_size,
            seed=self._seed,
            start_step=start,
            train=train,
            rows=sharding.own_rows(self._mesh, batch_size),
            check=self._check,
        )
        # Every evaluation loads the same images again.
        loader.said = self._said
        return loader

    def _first_example(self):
        # Of the config's size: weights do not depend on the shape of a batch.
        section = to_dict(self._section) | {"workers": 0} | SQUARES
        loader = make_loader(
            self._source, section, batch_size=1, seed=0, check=self._check
        )
        loader.said = self._said
        try:
            return {key: np.asarray(value) for key, value in next(loader).items()}
        finally:
            loader.close()


def _check_batch(check, shapes, batch):
    """Checks a batch, and that its features have the shape of the first example's."""
    check(batch)
    for key, value in batch.items():
        value = np.asarray(value)
        # Maps, of four axes, have other sizes in buckets; their kind fixes channels.
        is_feature = value.dtype.kind == "f" and value.ndim in (2, 3)
        if is_feature and value.shape[1:] != shapes.get(key, value.shape[1:]):
            ours, others = (
                " x ".join(map(str, s)) for s in (value.shape[1:], shapes[key])
            )
            raise ValueError(
                f"input {key!r} is of {ours} numbers, and that of others of {others}"
            )


def _left_out(source):
    """List of (where, why) of what was left out when a source was opened."""
    return getattr(source, "skipped", ())
