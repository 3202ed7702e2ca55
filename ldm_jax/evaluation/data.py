"""The images that an evaluation goes over: a split of the run's or of other data."""

import os

import jax

from ldm_jax import sharding
from ldm_jax.config import ConfigError, to_dict
from ldm_jax.data.loader import make_loader, open_source


class First:
    """The first examples of a source; a source itself."""

    def __init__(self, source, count):
        """Takes `count` examples, or all if there are fewer or `count` is None."""
        self._source = source
        self._count = len(source) if count is None else min(count, len(source))

    def __len__(self):
        return self._count

    def __getitem__(self, index):
        return self._source[index]

    def describe(self, index):
        """Names example `index`."""
        return self._source.describe(index)


class Images:
    """Images of one size, cropped at the centre, in order.

    Attributes:
      image_size: Their side in pixels.
      record: Dict that says what they are.
    """

    def __init__(
        self,
        section,
        mesh,
        batch_size,
        *,
        name=None,
        data_dir=None,
        split=None,
        image_size=None,
        num_images=None,
    ):
        """Opens the data set.

        Args:
          section: Config section `data` of the run; the rest replaces keys of it.
          mesh: Mesh over the devices of all processes.
          batch_size: Global batch size; rounded up to a multiple of the devices.
          name: Folder of images, of which all are taken, or name of a TensorFlow data
            set.
          data_dir: Where prepared data sets lie.
          split: Split; by default the run's held-out one.
          image_size: Side of the images in pixels.
          num_images: How many of the first ones to take; all by default.

        Raises:
          ConfigError: If the data set is not named or cannot be read.
        """
        # The images alone are looked at: what goes with them need not be there.
        section = to_dict(section) | {"inputs": {}, "keys": ()}
        if name:
            is_folder = os.path.isdir(os.path.expanduser(name))
            section |= {"source": "folder" if is_folder else "tfds", "name": name}
            # What the run said of its own data's features does not hold for others.
            section |= {"image_key": None, "label_key": "" if is_folder else None}
            if is_folder:
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
        self._source = First(open_source(section, split), num_images)
        size = min(batch_size, len(self._source))
        self._batch_size = -(-size // mesh.size) * mesh.size
        self.image_size = section["image_size"]
        self.record = {
            "data": section["name"],
            "split": split,
            "image_size": self.image_size,
        }

    def batches(self):
        """Yields dicts of global arrays "image" and "mask", once through."""
        loader = make_loader(
            self._source,
            self._section,
            batch_size=self._batch_size,
            seed=0,
            train=False,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        try:
            for batch in loader:
                batch = {key: batch[key] for key in ("image", "mask")}
                yield sharding.put_batch(batch, self._mesh)
        finally:
            loader.close()
