"""Common base of table sources: rows to examples, classes, splits, columns, sizes."""

import hashlib
import itertools
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import logging

from ldm_jax.annotations import Int, Shaped
from ldm_jax.data.filters.tables import tidy
from ldm_jax.data.splits import in_split, place_of
from ldm_jax.data.tables.fields import (
    Fields,
    image_bytes,
    make_example,
    names_of_classes,
)
from ldm_jax.data.tables.kinds import SCALARS, TEXT, kind_of
from ldm_jax.errors import DataError
from ldm_jax.images import find_size
from ldm_jax.store import raise_if_silent

# Columns that hold the sizes of images, in upper or lower case.
_SIDES = ("height", "width")

# Rows whose headers are read between two log lines.
_LOG_EVERY = 100_000

# Constants of SplitMix64, which hashes row numbers to 64 bits.
_STEP, _MIX = 0x9E3779B97F4A7C15, (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)


class TableSource:
    """Examples in a table, by position; can be pickled.

    Attributes:
      num_classes: Number of classes, or None.
      class_names: Their names, or None.
      skipped: List of (file, what is wrong with it) of files that were left out.
    """

    def __init__(
        self,
        table: Any,
        fields: Fields,
        classes: tuple[tuple[str, ...] | None, int | None],
        split: tuple[str, float | None] = ("all", 0.5),
        skipped: Sequence[tuple[str, str]] = (),
    ) -> None:
        """Chooses the rows of a split.

        Args:
          table: The rows, a ParquetTable or ArrowTable.
          fields: The columns that make an example.
          classes: Result of `find_classes`.
          split: (name, held-out fraction); see `splits.py`.
          skipped: See above.

        Raises:
          ValueError: If the split has no examples.
        """
        self._table, self._fields, self.skipped = table, fields, list(skipped)
        self.class_names, self.num_classes = classes
        name, fraction = split
        self._kept = None
        if name != "all":
            kept = np.flatnonzero(in_split(_places(table.parts()), name, fraction))
            self._kept = kept.astype(np.uint32 if len(table) < 2**32 else np.uint64)
        if not len(self):
            raise ValueError(f'no examples for split "{name}"')

    def __len__(self) -> int:
        return len(self._table) if self._kept is None else len(self._kept)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns {"image": encoded bytes, "label": int if known, further keys}."""
        row = self._table.row(self._locate(index))
        return make_example(row, self._fields, self.class_names, self.num_classes)

    def _locate(self, index):
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        return int(index if self._kept is None else self._kept[index])

    def describe(self, index: int) -> str:
        """Describes an example, for messages.

        Args:
          index: Its position.

        Returns:
          Path of its file and the row's number in it.
        """
        return self._table.where(self._locate(index))

    def fingerprint(self) -> str:
        """Identifies the examples.

        Returns:
          Hash of the files' names, rows, sizes and footers, of the classes, of the
          label of every row, and of which rows are in the split.

        Raises:
          ValueError: If a file cannot be read.
        """
        digest = hashlib.blake2b(self._table.digest(), digest_size=16)
        for path, count, size in self._table.parts():
            digest.update(f"{os.path.basename(path)} {count} {size}\n".encode())
        digest.update(repr(self.class_names).encode())
        if self._fields.label:
            # Swapped labels may leave the size and footer of a file unchanged.
            for codes in _codes(self._table.column(self._fields.label)):
                digest.update(codes)
        if self._kept is not None:
            digest.update(self._kept.astype("<u8").tobytes())
        return digest.hexdigest()

    @property
    def column_names(self) -> tuple[str, ...]:
        """Names of the columns of numbers, bools and text, and "width" and "height"."""
        names = {
            field.name for field in self._table.schema if kind_of(field.type) in SCALARS
        }
        return tuple(sorted(names | {*_SIDES}))

    def columns(self, names: Sequence[str]) -> dict[str, Shaped[np.ndarray, " N"]]:
        """Reads some columns only.

        Args:
          names: Some of `column_names`.

        Returns:
          Name -> array [N] of float64 (NaN where null), bool, or objects (None where
          null).

        Raises:
          ValueError: If a file cannot be read.
        """
        sizes = None
        result = {}
        for name in names:
            if name in _SIDES and name not in self._table.schema.names:
                sizes = self.sizes() if sizes is None else sizes
                result[name] = sizes[:, _SIDES.index(name)].astype(np.float64)
            else:
                result[name] = self._taken(_to_numpy(self._table.column(name)))
        return result

    def _taken(self, column):
        return column if self._kept is None else column[self._kept]

    def sizes(self) -> Int[np.ndarray, "N 2"]:
        """Returns the sizes of the images, from their columns or the images' headers.

        Returns:
          int32 [N, 2], (height, width) in pixels; zeros where a header is damaged.

        Raises:
          ValueError: If a file cannot be read.
        """
        known = {name.lower(): name for name in self._table.schema.names}
        if all(side in known for side in _SIDES):
            found = self.columns([known[side] for side in _SIDES])
            sides = [found[known[side]] for side in _SIDES]
            if all(side.dtype.kind == "f" for side in sides):
                sides = np.stack(sides, axis=1)
                good = np.isfinite(sides) & (sides > 0) & (sides < 2**31)
                result = np.where(good.all(1)[:, None], sides, 0).astype(np.int32)
                self._measure(result, np.flatnonzero(result[:, 0] == 0))
                return result
        logging.info(
            "no columns give width and height: the headers of %d images are read, "
            "and with them the images",
            len(self),
        )
        result = np.zeros((len(self), 2), np.int32)
        self._measure(result, range(len(self)))
        return result

    def _measure(self, sizes, indices):
        """Fills in the sizes of some images from their headers."""
        column = self._fields.image
        for count, index in enumerate(indices, 1):
            try:
                value = self._table.row(self._locate(index))[column]
                data = image_bytes(value, column)
                width, height = find_size(
                    lambda at, n, data=data: data[at : at + n], len(data)
                )
                sizes[index] = height, width
            # A damaged image or row may raise anything: it is logged and counted when
            # it is loaded.
            except Exception as error:
                raise_if_silent(self.describe(index), error)
                continue
            finally:
                if count % _LOG_EVERY == 0:
                    logging.info("read the headers of %d images", count)


def find_classes(
    table: Any, column: str | None
) -> tuple[tuple[str, ...] | None, int | None]:
    """Finds the classes of a table.

    Args:
      table: The training table.
      column: Column of the classes, or None.

    Returns:
      (names or None, number of classes or None): from Hugging Face's metadata of the
      table, else the sorted texts, or up to the largest number.

    Raises:
      ValueError: If the column has no valid class, or a file cannot be read.
    """
    if column is None:
        return None, None
    names = names_of_classes(table.schema, column)
    if names is not None:
        return names, len(names)
    found = table.column(column).unique().to_pylist()
    found = [value for value in found if value is not None]
    if found and isinstance(found[0], str):
        names = tuple(sorted(found))
        return names, len(names)
    most = max(map(int, found), default=-1)
    if most < 0:
        raise ValueError(
            f'column {column} has no class; give label_key="" for no labels'
        )
    if most >= 2**31 - 1:
        raise ValueError(
            f"column {column} holds {most}; classes are whole numbers of 31 bits"
        )
    return None, most + 1


def leave_out(path: str, reason: str, on_error: str) -> tuple[str, str]:
    """Leaves out a file, or raises if `on_error` is "raise".

    Args:
      path: The file.
      reason: What is wrong with it.
      on_error: "skip" or "raise".

    Returns:
      (path, reason).

    Raises:
      DataError: If `on_error` is "raise".
    """
    if on_error == "raise":
        raise DataError(
            f"cannot read {path}: {reason}; repair or remove it, or set "
            'data.on_error="skip"'
        )
    return path, reason


def _places(parts):
    """A 64-bit hash of each row, from the name of its file and its number."""
    places = []
    for path, count, _ in parts:
        seed = np.uint64(place_of(os.path.basename(path).encode()))
        with np.errstate(over="ignore"):
            z = seed + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(_STEP)
            for shift, factor in zip((30, 27), _MIX, strict=True):
                z = (z ^ (z >> np.uint64(shift))) * np.uint64(factor)
            places.append(z ^ (z >> np.uint64(31)))
    return np.concatenate(places)


def _codes(column):
    """Yields the bytes of a column of classes, the same for all types that store it."""
    for chunk in column.chunks:
        if kind_of(column.type) == TEXT:
            yield repr(chunk.to_pylist()).encode()
        else:
            yield chunk.cast("int64").fill_null(-1).to_numpy().astype("<i8").tobytes()


def _to_numpy(column):
    """Converts a ChunkedArray of numbers, bools or text to NumPy."""
    import pyarrow.types as is_

    if is_.is_integer(column.type) or is_.is_floating(column.type):
        column = column.cast("float64", safe=False)
        parts = [
            chunk.to_numpy(zero_copy_only=False).astype(np.float64)
            for chunk in column.chunks
        ]
        return np.concatenate(parts) if parts else np.empty(0)
    values = np.empty(len(column), object)
    values[:] = list(
        itertools.chain.from_iterable(c.to_pylist() for c in column.chunks)
    )
    return tidy(values)
