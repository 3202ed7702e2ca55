"""The source "latents": a set of latents written by `ldm-encode`, by position."""

import collections
import os
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ldm_jax.annotations import Int, Shaped
from ldm_jax.config import entries_of
from ldm_jax.data.encoded.header import EMPTY, FILE, Header
from ldm_jax.data.encoded.record import MEAN, STATES, STD, TYPES
from ldm_jax.files import most_open_files
from ldm_jax.reading import naming
from ldm_jax.store import as_path, is_dir, is_file, is_silent, local_copy

# Most shards open at a time, if the system allows that many: each has an open file, a
# buffer of 32 KB and its index, 8 bytes per record.
_MOST_OPEN = 512


class LatentSource:
    """Examples of one set; can be pickled, and read by several threads.

    Attributes:
      encoded: True: its examples already have the form of batches.
      header: Header of the set.
      num_classes: Number of classes, or None.
      class_names: Their names, or None.
      null_states: Batch key -> text states [L, D] of the null input, if text states
        replace token ids.
      empty_states: The same of the empty caption, which replaces dropped ones.
    """

    encoded = True

    def __init__(
        self,
        name: str | os.PathLike,
        split: str,
        image_size: int | None = None,
        flip: bool = False,
        inputs: Mapping[str, Any] | None = None,
        filter: str | None = None,  # noqa: A002
        keys: Sequence[str] = (),
        text_states: bool = False,
    ) -> None:
        """Opens a set; only its header is read.

        Args:
          name: Folder written by `ldm-encode`, its `--outdir`.
          split: "train" or "validation", the sub-folder of the set.
          image_size: Required side of the encoded images in pixels; None for any.
          flip: Whether mirrored images are needed.
          inputs: Config section `data.inputs`, whose inputs must have been encoded.
          filter: Condition on metadata; if set, it must be that of the encoding, where
            it was applied.
          keys: Not used: inputs are already encoded.
          text_states: Whether to return the states of frozen text towers instead of
            token ids.

        Raises:
          ValueError: If there is no such set, or it does not meet these requirements.
        """
        del keys
        self._folder = as_path(name).absolute() / (split or "")
        _require_set(self._folder, name)
        self.header = header = Header.read(self._folder)
        _require_size(header, image_size)
        if flip and not header.mirrored:
            raise ValueError(
                f"{self._folder} holds no mirrored copies: encode with --mirrored, or "
                "set data.flip=False"
            )
        if filter and filter != header.data.get("filter"):
            raise ValueError(
                f"filter={filter}, but the latents were encoded with filter="
                f"{header.data.get('filter') or None}: leave it out, or encode again"
            )
        wanted = _plain_inputs(inputs)
        _require_inputs(_plain_inputs(header.inputs), wanted)
        self._format = header.record_format
        states = wanted.keys() & header.text_states.keys() if text_states else ()
        if text_states and not states:
            raise ValueError(
                f"text_states=True, but {self._folder} holds none: encode with "
                "--text_states, or leave it out"
            )
        self._states = {STATES.format(key): key for key in sorted(states)}
        self._names = {MEAN, STD, "label", *(wanted.keys() - states), *self._states}
        self._copies = 2 if header.mirrored else 1
        self._ends = np.cumsum([shard["records"] for shard in header.shards])
        self.num_classes = header.num_classes
        names = header.class_names
        self.class_names = None if names is None else tuple(names)
        problem = header.problem_with_files(self._folder)
        if problem:
            raise ValueError(f"{problem}: bring it back, or encode the data again")
        self.null_states, self.empty_states = self._read_empty()
        self._begin()

    def _read_empty(self):
        """Reads the text states of null inputs and of empty captions, each by key."""
        if not self._states:
            return {}, {}
        format_ = {field.name: field.dtype for field in self._format.fields}
        with np.load(local_copy(self._folder / EMPTY), allow_pickle=False) as stored:
            null, empty = (
                {
                    key: stored[f"{key}/{what}"].astype(TYPES[format_[name]])
                    for name, key in self._states.items()
                }
                for what in ("null", "empty")
            )
        return null, empty

    def _begin(self):
        self._open, self._lock = collections.OrderedDict(), threading.Lock()
        self._most_open = most_open_files(_MOST_OPEN)

    def __len__(self) -> int:
        return self.header.count

    def __getitem__(self, index: int) -> dict[str, Shaped[np.ndarray, "..."]]:
        """Returns the latents' moments as stored, the label and the inputs, by key."""
        return self._example(int(index) * self._copies)

    def draw(
        self, index: int, rng: np.random.Generator, flip: bool
    ) -> dict[str, Shaped[np.ndarray, "..."]]:
        """Reads an example or, at random, its mirrored copy.

        The generator is used as for images with a centre crop, so that the same ones
        are mirrored.

        Args:
          index: Position of the example.
          rng: NumPy generator.
          flip: Whether to take the copy with probability 1/2.

        Returns:
          Batch key -> array, the latents' moments [h, w, c] among them.

        Raises:
          ValueError: If a copy is needed and the set has none.
        """
        mirror = flip and rng.random() < 0.5
        return self.mirrored(index) if mirror else self[index]

    def draw_batch(
        self,
        indices: Sequence[int] | Int[np.ndarray, " batch"],
        rngs: Sequence[np.random.Generator],
        flip: bool,
    ) -> dict[str, Shaped[np.ndarray, "batch ..."]]:
        """Reads the examples of a batch at once, each as `draw` would.

        Args:
          indices: Positions of the examples, B of them.
          rngs: NumPy generators, B of them; none is needed without `flip`.
          flip: Whether to take the mirrored copy of each with probability 1/2.

        Returns:
          Batch key -> array [B, ...].

        Raises:
          ValueError: If a copy is needed and the set has none.
        """
        numbers = np.asarray(indices, np.int64) * self._copies
        if flip:
            mirror = np.array([rng.random() < 0.5 for rng in rngs])
            self._require_copies(mirror.any())
            numbers = numbers + mirror
        records = self._records(numbers)
        return self._by_key(self._format.unpack_batch(records, self._names))

    def mirrored(self, index: int) -> dict[str, Shaped[np.ndarray, "..."]]:
        """Reads the mirrored copy of an example.

        Args:
          index: Position of the example.

        Returns:
          Batch key -> array, as for `source[index]`.

        Raises:
          ValueError: If the set has none.
        """
        self._require_copies(True)
        return self._example(int(index) * self._copies + 1)

    def _require_copies(self, asked):
        if asked and self._copies == 1:
            raise ValueError(f"{self._folder} holds no mirrored copies")

    def _example(self, number):
        return self._by_key(self._format.unpack(self._record(number), self._names))

    def _by_key(self, found):
        """Renames text states to the keys of their conditions."""
        return {self._states.get(name, name): value for name, value in found.items()}

    def _record(self, number):
        return self._records(np.array([number]))[0]

    def _records(self, numbers):
        """Reads the bytes of records, those of the same shard together."""
        shards = np.searchsorted(self._ends, numbers, side="right")
        if numbers.min() < 0 or shards.max() == len(self._ends):
            wrong = numbers[(numbers < 0) | (shards == len(self._ends))][0]
            raise IndexError(f"{self._folder} has no record {wrong}")
        found = [b""] * len(numbers)
        for shard in np.unique(shards).tolist():
            rows = np.flatnonzero(shards == shard)
            first = int(self._ends[shard - 1]) if shard else 0
            places = (numbers[rows] - first).tolist()
            read = self._read(shard, places)
            for row, record in zip(rows.tolist(), read, strict=True):
                found[row] = record
        return found

    def _read(self, shard, places):
        """Reads records of a shard; reopens its file if it may have been lost."""
        with naming(self._folder / self.header.shards[shard]["file"]):
            try:
                return self._reader(shard).read(places)
            except Exception as error:
                if not is_silent(error):
                    raise
            with self._lock:
                self._open.pop(shard, None)
            return self._reader(shard).read(places)

    def _reader(self, shard):
        """Returns the reader of a shard; closes the least recently used if too many."""
        with self._lock:
            reader = self._open.get(shard)
            if reader is not None:
                self._open.move_to_end(shard)
                return reader
        # Opened without the lock, so that other threads can read meanwhile; if two open
        # the same shard, the first is kept.
        reader, gone = self._open_shard(shard), []
        with self._lock:
            reader = self._open.setdefault(shard, reader)
            self._open.move_to_end(shard)
            while len(self._open) > self._most_open:
                # Threads that still read from it keep it open.
                gone.append(self._open.popitem(last=False))
        return reader

    def _open_shard(self, shard):
        from array_record.python import array_record_module

        return array_record_module.ArrayRecordReader(
            str(local_copy(self._folder / self.header.shards[shard]["file"])),
            "readahead_buffer_size:0",
            file_reader_buffer_size=2**15,
        )

    def __getstate__(self):
        # Open files and locks belong to their process.
        return self.__dict__ | {"_open": None, "_lock": None}

    def __setstate__(self, state):
        self.__dict__ |= state
        self._begin()

    def fingerprint(self) -> str:
        """Identifies the set.

        Returns:
          Hash of its header, in which every shard has a checksum.
        """
        return self.header.fingerprint()

    def describe(self, index: int) -> str:
        """Names an example, for messages.

        Args:
          index: Its position.

        Returns:
          Folder, position and, if it can be read, the key of the image.
        """
        where = f"{self._folder} example {index}"
        try:
            record = self._record(int(index) * self._copies)
            return f"{where} ({self._format.key_of(record)})"
        # Damaged records are described, too.
        except Exception:
            return where


def _require_set(folder, name):
    if is_file(folder / FILE):
        return
    parent = as_path(name)
    there = sorted(path.parent.name for path in parent.glob(f"*/{FILE}"))
    if there:
        raise ValueError(
            f"{name} holds the sets {', '.join(there)}, but no {folder.name}: set "
            f"data.split and data.eval_split to those, or data.eval_split= for none"
        )
    if is_file(parent / FILE):
        raise ValueError(
            f"{name} is one split of a set of latents: set data.name to the folder "
            f"that holds it, {parent.absolute().parent}, and the split to {parent.name}"
        )
    if is_dir(folder):
        raise ValueError(
            f"{folder} holds no finished set of latents, as it has no {FILE}: give "
            "the same ldm-encode command again, which continues where it was cut"
        )
    raise ValueError(
        f"{name} holds no set of latents: make one with ldm-encode --outdir={name}"
    )


def _require_size(header, image_size):
    theirs = header.data["image_size"]
    if image_size is not None and image_size != theirs:
        raise ValueError(
            f"the latents are of images of {theirs} x {theirs} pixels and "
            f"image_size={image_size}: set data.image_size={theirs}, or encode again"
        )


def _plain_inputs(section):
    """Converts entries to their JSON form, without those that are off.

    And without "dropout", which is drawn again in each epoch of training.
    """
    return {
        key: {
            k: list(v) if isinstance(v, tuple) else v
            for k, v in entry.items()
            if k != "dropout"
        }
        for key, entry in entries_of(section).items()
    }


def _require_inputs(theirs, wanted):
    for key, entry in wanted.items():
        if key not in theirs:
            raise ValueError(
                f"data.inputs.{key} was not encoded with the latents, which have "
                f"{', '.join(sorted(theirs)) or 'no inputs'}: encode again"
            )
        options = {*entry, *theirs[key]}
        changed = [k for k in options if entry.get(k) != theirs[key].get(k)]
        if changed:
            k = min(changed)
            raise ValueError(
                f"data.inputs.{key}.{k} is {entry.get(k)}, but the latents were "
                f"encoded with {theirs[key].get(k)}: set that, or encode again"
            )
