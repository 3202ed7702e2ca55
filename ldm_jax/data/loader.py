"""Batches of examples: shuffled, sharded over processes, in the order of the steps.

Grain reshuffles the examples in each epoch, calls `load_batch.LoadBatch` on the steps
ahead of time, in threads or in worker processes (`workers.py`), and returns the batches
in order. So the position in the data is the step number: a run that resumes at step n
passes `start_step=n`, with any number of workers and processes.

With workers, the main module must be guarded by `if __name__ == "__main__"`: they are
spawned, which imports it again.
"""

import collections
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging
from ml_collections import ConfigDict

from ldm_jax.annotations import Int, Shaped
from ldm_jax.config import build, to_dict
from ldm_jax.data.inputs import (
    Input,
    held_out_inputs,
    make_inputs,
)
from ldm_jax.data.load_batch import (
    LOADER_OPTIONS,
    LoadBatch,
    LoaderOptions,
    require_whole,
)
from ldm_jax.data.orders.bucket_order import BucketOrder
from ldm_jax.data.orders.buckets import assign, bucket_shapes, make_buckets
from ldm_jax.data.orders.order import Shuffled
from ldm_jax.data.workers import BatchIterator, threads_in_each
from ldm_jax.errors import ConfigError, DataError, ProcessLost, Unreachable
from ldm_jax.seeds import to_32_bits

# Number of steps in training, which never ends.
ENDLESS = 2**40

Section = Mapping[str, Any] | ConfigDict


def make_loader(
    source: Any,
    data: Section,
    *,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    train: bool = True,
    rows: Sequence[int] | Int[np.ndarray, " rows"] | None = None,
    check: Callable[[Mapping[str, Any]], None] | None = None,
) -> "Loader":
    """Makes a loader from the config section `data`.

    Args:
      source: Opened source.
      data: Section with the fields of LoaderOptions, such as "image_size" and "crop",
        and "inputs", see `inputs/`. Other keys are options of the source.
      batch_size: Global batch size.
      seed: Seed of the order, the crops and the mirroring.
      start_step: First step in training.
      train: True for training, False for one pass in order.
      rows: Rows of each global batch that this process loads, [n]; None for all.
      check: See LoaderOptions.

    Returns:
      A Loader.

    Raises:
      ConfigError: If an option is wrong.
    """
    section = to_dict(data)
    options = {key: section[key] for key in LOADER_OPTIONS if key in section}
    inputs = make_inputs(section.get("inputs"))
    try:
        return Loader(
            source,
            build(
                LoaderOptions,
                options,
                "data",
                check=check,
                buckets=make_buckets(section),
            ),
            inputs if train else held_out_inputs(inputs),
            batch_size=batch_size,
            seed=seed,
            start_step=start_step,
            train=train,
            rows=rows,
        )
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"data: {error}") from error


class Loader:
    """Iterator over batches, dicts of NumPy arrays with this process's rows.

    Attributes:
      skipped: Dict of the examples skipped so far: where they are -> reason.
      shortened: Dict of incomplete examples: where they are -> what was left out.
      cut: Counter of the examples so far with a truncated input, by batch key.
      order: Index of the example at each position of the endless stream; None in an
        evaluation.
      said: Warnings logged so far; the loaders of a run may share one set, so that each
        is logged once.
    """

    def __init__(
        self,
        source: Any,
        options: LoaderOptions,
        inputs: Mapping[str, Input] | None = None,
        *,
        batch_size: int,
        seed: int = 0,
        start_step: int = 0,
        train: bool = True,
        rows: Sequence[int] | Int[np.ndarray, " rows"] | None = None,
    ) -> None:
        """Starts loading.

        In training the batches are endless, epoch after epoch; a data set smaller than
        a batch is repeated within it. In evaluation there is one pass in order, cropped
        at the centre; the last batch is padded, and "mask" is True for rows that count.

        An example that cannot be decoded is logged and replaced by another, which
        depends on its index alone (in evaluation its mask is False).

        Args:
          source: Opened source; see `sources.py`.
          options: How to load.
          inputs: Dict of batch key -> Input to make from each example; without any,
            examples are as the source and `transforms.transform` return them.
          batch_size: Global batch size.
          seed: Seed of the order, the crops and the mirroring.
          start_step: First step in training.
          train: True for training, False for one pass in order.
          rows: Rows of each global batch that this process loads, see
            `sharding.own_rows`; None for all.

        Raises:
          ValueError: If an argument is out of range.
        """
        require_whole("batch_size", batch_size, 1)
        require_whole("start_step", start_step, 0)
        options = options if train else options.held_out()
        _check_inputs(inputs or {}, options)
        count = len(source)
        rows = range(batch_size) if rows is None else [int(row) for row in rows]
        order = _make_order(source, options, seed, batch_size) if train else None
        load = LoadBatch(
            source,
            order,
            options,
            inputs,
            seed=seed,
            batch_size=batch_size,
            rows=rows,
        )
        # Reading encoded examples is less work than passing them between processes.
        self._workers = 0 if load.encoded else options.workers
        self._batches = BatchIterator(
            load,
            start_step if train else 0,
            ENDLESS if train else -(-count // batch_size),
            workers=self._workers,
            threads=threads_in_each(source, self._workers),
            batch_bytes=len(rows) * _most_bytes(options, len(inputs or ())),
            restarts=options.restart_workers,
        )
        self.order, self.skipped, self.shortened = order, {}, {}
        self.cut, self.said = collections.Counter(), set()
        # Padding repeats an example's place.
        places = options.places
        examples = count if places is None else len(np.unique(places))
        # It also runs at exit.
        self._closer = weakref.finalize(
            self, _close, self._batches, self.skipped, examples
        )

    def __iter__(self) -> "Loader":
        return self

    def __next__(self) -> dict[str, Shaped[np.ndarray, "..."]]:
        """Returns the next batch.

        Returns:
          Dict of "image" [b, S, S, C], by default uint8 of 3 channels, "label" int32
          [b] if the source has classes, the inputs, and in evaluation "mask" bool [b].
          Without inputs it also has the further keys of the source, as made by
          `transforms.transform`, with strings as arrays of objects.

        Raises:
          StopIteration: After the last batch of an evaluation, or after `close`.
          DataError: If `on_error` is "raise" and an example cannot be decoded, or if
            too many in a row cannot.
          Unreachable: If the storage of the examples does not answer.
          ProcessLost: If a worker process died and `restart_workers` is used up, or it
            could not start, as in a script without a guard of its main part.
        """
        if not self._closer.alive:
            raise StopIteration
        try:
            batch = next(self._batches)
        except ProcessLost:
            self.close()
            raise
        for where, reason in batch.pop("failures"):
            if where not in self.skipped:
                self.skipped[where] = reason
                self._say(f"skipped {where}: {reason}", _so_far(self.skipped))
        for where, what in batch.pop("notes"):
            if where is None:
                self._count_cut(what)
            elif where not in self.shortened:
                self.shortened[where] = what
                self._say(f"{where}: {what}", _so_far(self.shortened))
        error, silent = batch.pop("error", None), batch.pop("unreachable", False)
        if error:
            self.close()
            raise (Unreachable if silent else DataError)(error)
        if not self._workers:
            return batch
        # Copied out of the workers' shared memory, which must not outlive them.
        return {key: np.array(value) for key, value in batch.items()}

    def _say(self, text, so_far=""):
        if text not in self.said:
            self.said.add(text)
            logging.warning("%s%s", text, so_far)

    def _count_cut(self, key):
        self.cut[key] += 1
        self._say(
            f'of some examples only a part of "{key}" is kept, as they have more than '
            "max_length tokens or max_objects boxes; the log counts them"
        )

    def close(self) -> None:
        """Stops the threads and workers; logs how many examples were skipped."""
        self._closer()


def _so_far(found):
    return f" ({len(found)} so far)"


def _check_inputs(inputs, options):
    """Raises a ValueError if the inputs cannot be made from such images."""
    for key, make in inputs.items():
        for side in _sides(options):
            make.check_size(side)
        if make.rgb_alone and not options.pixels.is_rgb:
            raise ValueError(
                f"inputs.{key} is made of RGB of 8 bits alone, and data.channels="
                f"{options.pixels.channels or 'rgb'} are {options.pixels.dtype}: "
                "take another input"
            )


def _most_bytes(options, num_inputs):
    """Upper bound on the bytes of an example in a batch."""
    tiers = options.buckets.sizes if options.buckets else ()
    pixels = max([options.image_size, *tiers]) ** 2
    each = options.pixels.count * options.pixels.dtype.itemsize
    # An input is at most a map of four floats per pixel.
    return pixels * (each + 16 * num_inputs)


def _make_order(source, options, seed, batch_size):
    """Example index by position in the endless stream of training."""
    make = getattr(source, "make_order", None)
    order = make(seed) if make else None
    if options.buckets:
        return _in_buckets(source, order, options.buckets, seed, batch_size)
    if order is not None:
        return order
    import grain

    # Grain's seeds have 32 bits.
    order = grain.MapDataset.range(len(source)).seed(to_32_bits(seed))
    return order.shuffle().repeat()


def _in_buckets(source, order, options, seed, batch_size):
    if getattr(source, "encoded", False):
        raise ValueError(
            "buckets are of images, and this source has latents: leave data.buckets out"
        )
    if not hasattr(source, "sizes"):
        raise ValueError(
            "buckets need the sizes of all images, which this source does not know: "
            "take another source, or leave data.buckets out"
        )
    order = order or Shuffled(len(source), seed)
    return BucketOrder(order, assign(source.sizes(), options), batch_size)


def _sides(options):
    """All side lengths that images may have."""
    if not options.buckets:
        return [options.image_size]
    return sorted({int(side) for side in bucket_shapes(options.buckets).ravel()})


def _close(batches, skipped, count):
    batches.close()
    if skipped:
        logging.warning(
            "skipped %d of %d examples that cannot be read", len(skipped), count
        )
