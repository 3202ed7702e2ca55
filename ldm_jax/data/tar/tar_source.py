"""The source "tar": shards in the layout of WebDataset, by position."""

import dataclasses
import hashlib
import struct
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ldm_jax.annotations import Int, Shaped
from ldm_jax.data.filters.tables import join, with_sizes
from ldm_jax.data.sidecars import parse_sidecar
from ldm_jax.data.splits import check_split, in_split
from ldm_jax.data.tar.byte_ranges import Files
from ldm_jax.data.tar.index_store import open_indexes
from ldm_jax.data.tar.metadata import (
    count_examples,
    label_bytes,
    name_columns,
    read_column,
    read_labels,
    read_sizes,
)
from ldm_jax.data.tar.plan import (
    CLASS,
    JSON,
    class_of,
    find_classes,
    find_complete,
    find_strays,
    make_plan,
)
from ldm_jax.data.tar.scan import LABELS, printable
from ldm_jax.data.tar.shards import find_shards
from ldm_jax.images import require_memory
from ldm_jax.reading import MAX_TEXT, parse_json
from ldm_jax.store import is_remote, raise_if_silent

# A row of the index's "members": offset, size, height, width, number of the suffix.
_ROW = struct.Struct("<QQIIH")

# Number of examples of a shard that are named among those that lack the same member.
_NAMED = 20

# Bytes between members up to which they are read at once, with the bytes between.
_GAP, _REMOTE_GAP = 2**15, 2**20


@dataclasses.dataclass(eq=False, repr=False)
class TarSource:
    """Examples in tar shards, by position; can be pickled.

    An example is all members with the same name up to its first dot: an image, `.txt`
    with its captions, `.json` with its metadata or boxes, `.cls` with its class (a
    number or a name), `.depth.png` and so on as the rows of MODALITIES define,
    `.<key>.npy` and `.<key>.txt` for custom keys.

    "validation" (and "test") is `validation_fraction` of the examples by a hash of
    their keys, "train" the others, "all" everything. Only the numbers of the examples
    of the split, of four bytes each, are kept in memory.

    Attributes:
      name: Tar files; see `shards.find_shards`.
      split: "train", "validation", "test" or "all".
      data_dir: Folder that names are relative to; None for the current one.
      image_key: Suffix of the images; None for the usual ones.
      label_key: "cls", or the field of `.json` that holds the class; None takes `.cls`
        if there is one, "" takes none.
      validation_fraction: Held-out fraction of the examples, in (0, 1); None to hold
        nothing out.
      keys: Keys that examples should have besides image and label; for a key without a
        member, the field of `.json` of that name is taken.
      box_names: Names of the classes of boxes in the order of their numbers.
      optional: Those of `keys` that an example may lack.
      caption_field: Field of `.json` that holds the caption; None takes `.txt`, or the
        field "caption" if there is none.
      index_dir: Folder for the indexes; None stores each beside its shard.
      workers: Processes that make indexes; 0 makes them in threads.

    Raises:
      ValueError: If there are no such shards, they hold no examples, or an option is
        out of range.
    """

    name: str | Sequence[str]
    split: str
    data_dir: str | None = None
    image_key: str | None = None
    label_key: str | None = None
    validation_fraction: float | None = 0.05
    keys: Sequence[str] = ()
    box_names: Sequence[str] = ()
    optional: Sequence[str] = ()
    caption_field: str | None = None
    index_dir: str | None = None
    workers: int = 0

    def __post_init__(self):
        check_split(self.split, self.validation_fraction, "a set of tar files")
        self._files = Files()
        self._shards = find_shards(self.name, self.data_dir)
        self.remote = any(is_remote(shard.path) for shard in self._shards)
        self._indexes = open_indexes(
            self._shards, self.index_dir, self.workers, self._files
        )
        try:
            self._open()
        # An index from elsewhere may cause any of these.
        except (LookupError, TypeError, AttributeError, OSError) as error:
            raise_if_silent(self.name, error)
            raise ValueError(
                f"an index of the shards of {self.name} is damaged ({error!r}): remove "
                "the .index files, which are then made again"
            ) from error

    def _open(self):
        headers = [index.header for index in self._indexes]
        self.skipped = self._problems()
        if not any(header["counts"] for header in headers):
            where, reason = self.skipped[0] if self.skipped else (self.name, "empty")
            raise ValueError(f"no examples in {where}: {reason}")
        self._plan = make_plan(
            headers, self.keys, self.image_key, self.label_key, self.caption_field
        )
        self._plan = dataclasses.replace(self._plan, optional=frozenset(self.optional))
        self.class_names, self.num_classes = self._find_classes()
        counts = [count_examples(index) for index in self._indexes]
        # Number of the first example of each shard, and the number of all examples.
        self._starts = np.cumsum([0, *counts])
        self._kept = self._choose()
        if not len(self):
            raise ValueError(f'no examples for split "{self.split}" in {self.name}')

    def __getstate__(self):
        # Workers do not need the list of what was left out.
        return self.__dict__ | {"skipped": []}

    def _problems(self):
        return [
            (f"{shard.path}: {name}" if name else shard.path, reason)
            for shard, index in zip(self._shards, self._indexes, strict=True)
            for name, reason in index.header["problems"]
        ]

    def _find_classes(self):
        if self._plan.label is None:
            return None, None
        label = self._plan.label
        return find_classes(v for i in self._indexes for v in read_labels(i, label))

    def _choose(self):
        """Numbers of the complete examples of the split; None if these are all."""
        masks, places = [], []
        for shard, index in enumerate(self._indexes):
            mask, lacking = find_complete(index, self._plan)
            for what, rows in lacking:
                self._leave_out(shard, rows, what)
            for what, rows in self._find_strays(index):
                self._leave_out(shard, rows[mask[rows]], what)
                mask[rows] = False
            masks.append(mask)
            if self.split != "all":
                places.append(index.read("places")[mask])
        whole = np.concatenate(masks)
        if self.split == "all" and whole.all():
            return None
        kind = np.uint32 if len(whole) < 2**32 else np.uint64
        kept = np.flatnonzero(whole).astype(kind)
        if self.split == "all":
            return kept
        places = np.concatenate(places)
        return kept[in_split(places, self.split, self.validation_fraction)]

    def _find_strays(self, index):
        """Yields (what is wrong, examples of a shard) of labels that are no classes."""
        label = self._plan.label
        if label is None or self.class_names is not None:
            return
        strays = find_strays(read_labels(index, label), self.num_classes)
        if strays:
            column = read_column(index, label, slice(None)).tolist()
            rows = [row for row, value in enumerate(column) if value in strays]
            first = str(column[rows[0]])[:40]
            what = f"its label, as {first}, is none of the {self.num_classes:,} classes"
            yield what, np.array(rows)

    def _leave_out(self, shard, rows, what):
        """Adds some examples of a shard to `skipped` by name, and counts the others."""
        named = [(self._name(shard, row), what) for row in rows[:_NAMED].tolist()]
        if len(rows) > _NAMED:
            more = f"{self._shards[shard].path}: {len(rows) - _NAMED:,} more examples"
            named.append((more, what))
        self.skipped += named

    def __len__(self) -> int:
        return int(self._starts[-1]) if self._kept is None else len(self._kept)

    def _locate(self, index):
        """(shard, row in it) of an example."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        number = int(index if self._kept is None else self._kept[index])
        shard = int(np.searchsorted(self._starts, number, "right")) - 1
        return shard, number - int(self._starts[shard])

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns {"image": encoded bytes, "label": int if known, further keys}."""
        shard, row = self._locate(int(index))
        found = self._read(shard, self._members(shard, row))
        plan, image = self._plan, None
        for suffix in plan.images:
            if suffix in found:
                image = found[suffix]
                break
        example = {"image": image}
        fields = self._fields(found) if JSON in found else {}
        if plan.label is not None:
            value = fields.get(plan.label)
            if plan.label == LABELS:
                value = found[CLASS].decode("utf-8", "replace").strip()
            example["label"] = class_of(value, self.class_names, self.num_classes)
        for suffix, sidecar in plan.members.items():
            if suffix not in found:
                continue
            example |= parse_sidecar(
                found[suffix], sidecar, self.box_names, f"its .{suffix}"
            )
        for key, field in plan.fields.items():
            if fields.get(field) is None:
                if key in plan.optional:
                    continue
                raise ValueError(f'its .json has no "{field}"')
            example[key] = fields[field]
        return example

    def _members(self, shard, row):
        """Suffix -> (offset, size) of the members to read of an example."""
        index = self._indexes[shard]
        first, last = index.read("starts", row, 2).tolist()
        rows = index.read("members", first, last - first).tobytes()
        names = index.header["suffixes"]
        there = {names[n]: (at, size) for at, size, _, _, n in _ROW.iter_unpack(rows)}
        images = [suffix for suffix in self._plan.images if suffix in there][:1]
        read = (*images, *self._plan.read)
        return {suffix: there[suffix] for suffix in read if suffix in there}

    def _read(self, shard, members):
        """Suffix -> bytes; members that are close together are read at once."""
        path = self._shards[shard].path
        for suffix, (_, size) in members.items():
            require_memory(size, f"the bytes of its .{suffix}")
        begin = min(at for at, _ in members.values())
        end = max(at + size for at, size in members.values())
        gap = _REMOTE_GAP if is_remote(path) else _GAP
        if end - begin <= sum(size for _, size in members.values()) + gap:
            data = memoryview(self._files.read(path, begin, end - begin))
            return {
                suffix: bytes(data[at - begin : at - begin + size])
                for suffix, (at, size) in members.items()
            }
        return {s: self._files.read(path, *where) for s, where in members.items()}

    def _fields(self, found):
        if len(found[JSON]) > MAX_TEXT:
            raise ValueError(f"its .json has {len(found[JSON]):,} bytes")
        try:
            fields = parse_json(found[JSON])
        except ValueError as error:
            raise ValueError(f"its .json: {error}") from error
        return fields if isinstance(fields, dict) else {}

    def describe(self, index: int) -> str:
        """Describes an example, for messages.

        Args:
          index: Its position.

        Returns:
          The shard's path and the key in it.
        """
        return self._name(*self._locate(int(index)))

    def _name(self, shard, row):
        index = self._indexes[shard]
        first, last = index.read("key_starts", row, 2).tolist()
        key = index.read("keys", first, last - first).tobytes().decode()
        return f"{self._shards[shard].path} key {printable(key)}"

    def fingerprint(self) -> str:
        """Identifies the examples.

        Returns:
          Hash of all keys, suffixes, sizes and labels, and of which are in the split.
        """
        digest = hashlib.blake2b(digest_size=16)
        for index in self._indexes:
            digest.update(index.header["digest"].encode())
            if self._plan.label is not None:
                digest.update(label_bytes(index, self._plan.label))
        if self._kept is not None:
            digest.update(self._kept.astype("<u8").tobytes())
        return digest.hexdigest()

    def sizes(self) -> Int[np.ndarray, "N 2"]:
        """Reads the sizes of the images from the index.

        Returns:
          int32 [N, 2], (height, width) in pixels; zeros where a header is damaged.
        """
        parts = [read_sizes(index, self._plan, rows) for index, rows in self._parts()]
        return np.concatenate(parts)

    @property
    def column_names(self) -> tuple[str, ...]:
        """Names of the columns: those of the index, "width" and "height"."""
        return name_columns(self._indexes)

    def columns(self, names: Sequence[str]) -> dict[str, Shaped[np.ndarray, " N"]]:
        """Reads metadata from the index: scalar fields of `.json`, and "cls".

        Args:
          names: Some of `column_names`.

        Returns:
          Name -> array [N] of float64 (NaN where missing), bool, or objects.
        """
        return with_sizes(self.sizes, self._column, names)

    def _column(self, name):
        column = join([read_column(i, name, rows) for i, rows in self._parts()])
        if name == CLASS and self.num_classes and self.class_names is None:
            return column.astype(np.float64)
        return column

    def _parts(self) -> Iterator[tuple[Any, Any]]:
        """Yields (index, its rows that are in the split)."""
        if self._kept is None:
            yield from ((index, slice(None)) for index in self._indexes)
            return
        # Of the same type: otherwise NumPy converts the whole of `_kept`.
        cuts = np.searchsorted(self._kept, self._starts.astype(self._kept.dtype))
        for shard, index in enumerate(self._indexes):
            rows = self._kept[cuts[shard] : cuts[shard + 1]].astype(np.int64)
            yield index, rows - self._starts[shard]
