"""A run's images as global batches on the devices."""

import itertools

import jax
import numpy as np
from ml_collections import ConfigDict

from ldm_jax import sharding
from ldm_jax.config import to_dict
from ldm_jax.data.loader import make_loader, open_source


class Data:
    """The training and held-out images of one run.

    Attributes:
      num_examples: Number of training images.
      num_classes: Number of classes, None where there are no labels.
      class_names: List of their names, None where they have none.
      example: One training example as a batch of one, NumPy: shapes and types.
    """

    def __init__(self, section, seed, batch_size, mesh):
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
        self._held_out = None
        self.num_examples = len(self._source)
        self.num_classes = self._source.num_classes
        self.class_names = self._source.class_names
        self.example = self._first_example()

    @property
    def has_held_out(self):
        """Whether the config names a split that is not trained on."""
        return bool(self._section.eval_split)

    def train_batches(self, start, count=None):
        """Yields training batches from a step on; the position is the step number.

        Args:
          start: Number of steps done.
          count: Number of batches; without end by default.

        Yields:
          Dict of global arrays [batch size, ...], uint8 images.
        """
        yield from self._batches(self._source, True, self._batch_size, start, count)

    def held_out_batches(self, count=None):
        """Yields the held-out images once, in order; "mask" marks real rows.

        Args:
          count: Largest number of batches; all by default.

        Yields:
          Dict of global arrays [batch size, ...].
        """
        yield from self._batches(self._open(), False, self._batch_size, 0, count)

    def preview_batch(self, size):
        """Returns the first held-out images (training ones where none are held out).

        Args:
          size: Number of images; rounded up to a multiple of the devices.

        Returns:
          Dict of global arrays, without "mask".
        """
        size = -(-size // self._mesh.size) * self._mesh.size
        source = self._open() if self.has_held_out else self._source
        batch = next(self._batches(source, not self.has_held_out, size, 0, 1))
        batch.pop("mask", None)
        return batch

    def _open(self):
        if self._held_out is None:
            self._held_out = open_source(self._section, self._section.eval_split)
        return self._held_out

    def _batches(self, source, train, batch_size, start, count):
        loader = self._loader(source, train, batch_size, start)
        try:
            for batch in itertools.islice(loader, count):
                yield sharding.put_batch(batch, self._mesh)
        finally:
            loader.close()

    def _loader(self, source, train, batch_size, start):
        return make_loader(
            source,
            self._section,
            batch_size=batch_size,
            seed=self._seed,
            start_step=start,
            train=train,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )

    def _first_example(self):
        section = ConfigDict(to_dict(self._section) | {"workers": 0})
        loader = make_loader(self._source, section, batch_size=1, seed=0)
        try:
            return {key: np.asarray(value) for key, value in next(loader).items()}
        finally:
            loader.close()
