"""The batch of a step: a pure function of (source, seed, step).

An example that cannot be read is replaced by another, which depends on its index alone,
so that a batch keeps its shape and a run stays repeatable; failures are returned with
the batch, and so reach the main process from any worker.
"""

import contextlib
import dataclasses
import os
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ldm_jax.annotations import Int
from ldm_jax.config import suggest
from ldm_jax.data.crops import ALWAYS, CROPS
from ldm_jax.data.inputs import Input, SizeAndCrop, apply_inputs, truncated_inputs
from ldm_jax.data.modalities import notes_of
from ldm_jax.data.orders.buckets import BucketOptions
from ldm_jax.data.orders.order import Order
from ldm_jax.data.sidecars import MissingFile
from ldm_jax.data.transforms import transform
from ldm_jax.errors import DataError, Unreachable
from ldm_jax.images import DEFAULT_GB, Pixels, memory_limit, pixels_of
from ldm_jax.images.pixels import KEYS as PIXEL_KEYS
from ldm_jax.store import raise_if_silent

# This many unreadable examples in a row mean that something else is wrong.
MAX_FAILURES = 100


@dataclasses.dataclass(frozen=True)
class LoaderOptions:
    """Options of the config section `data` for loading, common to all sources.

    Attributes:
      image_size: Side of the images in pixels.
      crop: Row of CROPS, in training.
      min_crop: Smallest crop in training, as a fraction of the largest crop's sides,
        in (0, 1].
      flip: Whether to mirror training images with probability 1/2; ALWAYS mirrors all
        images, for mirrored copies, and is not a value of the config.
      workers: Worker processes; 0 loads in threads of this one.
      restart_workers: How often workers are restarted after one was killed.
      on_error: "skip" or "raise" if an example cannot be decoded.
      max_image_gb: Memory that reading one image may take, in 10^9 bytes.
      channels, pixel_type, value_range: The format of images; see `images.Pixels`.
      buckets: BucketOptions of training batches; None if all images are square.
      check: Raises a ValueError if the conditions of an example, as a batch of one, do
        not fit the model; None for no check. Not a key of the config.
      places: Seeds of the generators, by position, in place of the position itself, so
        that an example gets the same crop wherever it is in a list. Of consecutive
        positions with the same place, all but the first are padding. Not a key of the
        config.

    Raises:
      ValueError: If a field is out of range.
    """

    image_size: int
    crop: str = "center"
    min_crop: float = 1.0
    flip: bool | str = False
    workers: int = 0
    restart_workers: int = 0
    on_error: str = "skip"
    max_image_gb: float = DEFAULT_GB
    channels: str | int | None = None
    pixel_type: str | None = None
    value_range: Sequence[float] | None = None
    buckets: BucketOptions | None = None
    check: Callable[[Mapping[str, Any]], None] | None = None
    places: Sequence[int] | Int[np.ndarray, " positions"] | None = None

    def __post_init__(self):
        require_whole("image_size", self.image_size, 1)
        require_whole("workers", self.workers, 0)
        require_whole("restart_workers", self.restart_workers, 0)
        _check_choice("crop", self.crop, CROPS)
        _check_choice("on_error", self.on_error, ("skip", "raise"))
        if not 0 < self.min_crop <= 1:
            raise ValueError(f"min_crop must be in (0, 1], got {self.min_crop}")
        memory_limit(self.max_image_gb)
        _ = self.pixels

    @property
    def pixels(self) -> Pixels:
        """The format of images."""
        return pixels_of({key: getattr(self, key) for key in PIXEL_KEYS})

    def held_out(self) -> "LoaderOptions":
        """Makes the options of an evaluation: the largest centre crop, no random flip.

        Returns:
          LoaderOptions.
        """
        flip = ALWAYS if self.flip == ALWAYS else False
        return dataclasses.replace(
            self, crop="center", min_crop=1.0, flip=flip, buckets=None
        )


# Fields of LoaderOptions that are keys of the section.
LOADER_OPTIONS = tuple(
    field.name
    for field in dataclasses.fields(LoaderOptions)
    if field.name not in ("check", "buckets", "places")
)


def require_whole(name: str, value: Any, least: int) -> None:
    """Checks that a value is a whole number.

    Args:
      name: Its name, for the message.
      value: The value.
      least: Its smallest allowed value.

    Raises:
      ValueError: If it is not a whole number, or less than `least`.
    """
    if not isinstance(value, int | np.integer) or value < least:
        raise ValueError(f"{name} must be a whole number >= {least}, got {value}")


def _check_choice(name, value, choices):
    if value not in choices:
        raise ValueError(f'{name}="{value}" is unknown; {suggest(value, choices)}')


class LoadBatch:
    """Loads this process's rows of a step's batch; a class, to be picklable."""

    def __init__(
        self,
        source: Any,
        order: Any,
        options: LoaderOptions,
        inputs: Mapping[str, Input] | None,
        *,
        seed: int,
        batch_size: int,
        rows: Sequence[int],
    ) -> None:
        """Stores what the batches depend on.

        Args:
          source: Opened source; see `sources.py`.
          order: Example index by position in the endless stream, an Order or any
            sequence, or None for one pass in order.
          options: How to crop images and handle errors.
          inputs: Dict of batch key -> Input; without any, examples are not changed.
          seed: Seed of the crops, the mirroring and the inputs.
          batch_size: Global batch size.
          rows: This process's rows in a batch.
        """
        self.source, self.order, self.inputs = source, order, inputs
        self.on_error, self.image_size = options.on_error, options.image_size
        self.max_image_gb, self.check = options.max_image_gb, options.check
        self.places, self.pixels = options.places, options.pixels
        self.cut = dict(crop=options.crop, min_crop=options.min_crop, flip=options.flip)
        self.seed, self.batch_size, self.rows = seed, batch_size, rows
        self.encoded = getattr(source, "encoded", False)
        self.at_once = self.encoded and hasattr(source, "draw_batch")
        self.empty = getattr(source, "empty_states", {})
        made = (inputs or {}).values()
        self.with_size = any(isinstance(make, SizeAndCrop) for make in made)

    def __call__(self, step: int) -> dict[str, Any]:
        """Loads a batch.

        Args:
          step: Step, >= 0.

        Returns:
          Dict of arrays [rows, ...]; without an order also "mask" bool [rows], False
          for rows beyond the end and for replacements. Besides, "failures" is a list of
          (where, why), and "notes" one of (where, what was left out of that example) or
          (None, key of a truncated input). If loading fails, only these two, with
          "error", a message, and "unreachable", whether the storage does not answer.
        """
        positions = [int(step) * self.batch_size + row for row in self.rows]
        if self.at_once:
            # If one is damaged or rejected, they are loaded one by one below.
            with contextlib.suppress(Exception):
                return self._batch_at_once(positions)
        with memory_limit(self.max_image_gb):
            return self._batch(positions)

    def _batch_at_once(self, positions):
        """Loads a batch of encoded examples at once; raises if one is damaged."""
        indices, rngs = [self._index(position) for position in positions], []
        inputs = sorted((self.inputs or {}).items())
        drop = [(key, make) for key, make in inputs if make.drops]
        if self.cut["flip"] or drop:
            rngs = [self._generator(self._place(position)) for position in positions]
        batch = dict(self.source.draw_batch(indices, rngs, self.cut["flip"]))
        for key, make in drop:
            rows, empty = zip(batch[key], rngs, strict=True), self.empty.get(key)
            batch[key] = np.stack([make.drop(row, rng, empty) for row, rng in rows])
        if self.check:
            self.check(batch)
        if self.order is None:
            batch["mask"] = np.array(positions) < len(self.source)
        return batch | {"failures": [], "notes": []}

    def _batch(self, positions):
        examples, mask, failures, notes = [], [], [], []
        size, last = self._size(positions[0]), None
        try:
            for position in positions:
                index = self._index(position)
                place = self._place(position)
                example, failed, noted = self._load(place, index, size)
                # In one pass, padding and replacements do not count.
                extra = place == last or (failed and self.order is None)
                notes, last = notes if extra else notes + noted, place
                examples.append(example)
                mask.append(position < len(self.source) and not failed)
                failures += failed
        except (DataError, Unreachable) as error:
            # Returned as data: an exception would bring the worker's traceback with it.
            silent = isinstance(error, Unreachable)
            found = {"error": str(error), "unreachable": silent}
            return {"failures": failures, "notes": notes} | found
        batch = {key: _stack([e[key] for e in examples]) for key in examples[0]}
        if self.order is None:
            batch["mask"] = np.array(mask)
        return batch | {"failures": failures, "notes": notes}

    def _index(self, position):
        """Index of the example at a position of the endless stream or of one pass."""
        if self.order is None:
            return min(position, len(self.source) - 1)
        return int(self.order[position])

    def _place(self, position):
        """Seed of the generator: new crops each epoch, the same on any process."""
        known = self.places is not None and position < len(self.places)
        return int(self.places[position]) if known else position

    def _generator(self, place):
        key = np.array([self.seed, place], np.uint64)
        return np.random.Generator(np.random.Philox(key=key))

    def _size(self, position):
        """The size of the images of a batch."""
        shape = None
        if isinstance(self.order, Order):
            shape = self.order.shape_at(position)
        return shape or self.image_size

    def _load(self, place, index, size):
        """Loads an example or its replacement; returns (example, failures, notes)."""
        failures, needed = [], ""
        while len(failures) < MAX_FAILURES:
            try:
                example, notes = self._example(index, size, self._generator(place))
                if self.check:
                    self.check({k: np.asarray(v)[None] for k, v in example.items()})
                return example, failures, notes
            except Unreachable:
                # With another example in its place, the run would not be repeatable.
                raise
            # Whatever a damaged record or file raises, it is that example's fault.
            except Exception as error:
                where, reason = self.source.describe(index), _reason(error)
                raise_if_silent(where, error)
                # Only for the first failure, which is the one in the message.
                needed = needed if failures else self._needed(where, error)
            if self.on_error == "raise":
                raise DataError(
                    f"cannot read {where}: {reason}; repair or remove it, or set "
                    f'data.on_error="skip"{needed}'
                )
            failures.append((where, reason))
            index = _replacement(index, len(failures), len(self.source))
        names = len({where for where, _ in failures})
        raise DataError(
            f"{MAX_FAILURES} attempts in a row to read an example failed, at {names} "
            f"different ones; the first: {failures[0][0]}: {failures[0][1]}{needed}"
        )

    def _needed(self, where, error):
        """Explains which input needs a missing sidecar file, and how it is called."""
        if not isinstance(error, MissingFile):
            return ""
        suffix, keys, modality = error.sidecar
        made = (self.inputs or {}).items()
        wanted = [f"the input `{key}`" for key, make in made if {*make.needs} & {*keys}]
        text = "" if modality else f" (captions from x.{keys[0]}.txt)"
        return (
            f"; {' and '.join(wanted) or 'data.keys'} must be read from "
            f"x{suffix}{text} beside x{os.path.splitext(where)[1]} (docs/data.md)"
        )

    def _example(self, index, size, rng):
        """Loads one example as a batch holds it; returns (example, notes)."""
        if self.encoded:
            return self._encoded_example(index, rng), []
        example = self.source[index]
        notes = [(self.source.describe(index), n) for n in notes_of(example)]
        example = transform(
            example,
            size,
            rng=rng,
            with_size=self.with_size,
            pixels=self.pixels,
            **self.cut,
        )
        if self.inputs:
            made = apply_inputs(self.inputs, example, rng)
            # Truncated inputs are only counted, so their example is not named.
            notes += [
                (None, key) for key in truncated_inputs(self.inputs, example, made)
            ]
            example = made
        return example, notes

    def _encoded_example(self, index, rng):
        """Loads an encoded example; its inputs may still drop conditions at random."""
        draw = getattr(self.source, "draw", None)
        if draw is None:
            example = dict(self.source[index])
        else:
            example = draw(index, rng, self.cut["flip"])
        inputs = sorted((self.inputs or {}).items())
        made = {
            key: make.drop(example[key], rng, self.empty.get(key))
            for key, make in inputs
        }
        return example | made


def _reason(error):
    text = " ".join(str(error).split())
    if isinstance(error, OSError) and error.strerror:
        text = error.strerror
    return text or type(error).__name__


def _replacement(index, attempt, count):
    """Another index, a function of this one and the attempt alone."""
    return zlib.crc32(f"{index} {attempt}".encode()) % count


def _stack(values):
    """Stacks the rows of one key; strings and ragged values become objects."""
    first = values[0]
    if isinstance(first, np.ndarray | np.generic | int | float):
        if len({np.shape(value) for value in values}) == 1:
            return np.stack(values)
    result = np.empty(len(values), object)
    result[:] = values
    return result
