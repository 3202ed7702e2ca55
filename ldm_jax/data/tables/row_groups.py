"""The rows of Parquet files by number, through a bounded cache of row groups.

Parquet reads a row group at once: reading a row reads its whole group, unless that is
in the cache. Only the requested columns are read.
"""

import collections
import contextlib
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from ldm_jax.data.tables.footers import ParquetFile, unpacked_sizes
from ldm_jax.data.tables.kinds import NULL, join_columns, kind_of
from ldm_jax.data.tables.ranged_file import RangedFile
from ldm_jax.data.tar.byte_ranges import Files, side_by_side
from ldm_jax.errors import Unreachable

# Footers in the cache: one of a large file has some megabytes.
_FOOTERS = 64

# Rows that are unpacked before each check of whether they are too large.
_ROWS = 64


class ParquetTable:
    """Rows of Parquet files, one file after the other; can be pickled.

    Threads that need the same row group wait for the one that reads it, and if there is
    no room for a row group, its thread waits until others have been read.

    Attributes:
      schema: The columns of the first file, and those that only others have.
    """

    def __init__(
        self, files: Sequence[ParquetFile], columns: Sequence[str], most: float
    ) -> None:
        """Computes where the rows are.

        Args:
          files: The readable files among the results of `open_files`.
          columns: Columns to read.
          most: Size of the cache of row groups in bytes, in each process.
        """
        self.schema = join_schemas(files)
        self._shards = [file.shard for file in files]
        self._starts = [file.starts for file in files]
        self._digests = b"".join(file.digest for file in files)
        self._first = np.cumsum([0, *(file.starts[-1] for file in files)])
        self._columns, self._most = list(columns), most
        self._clear()

    def _clear(self):
        self._files, self._room = Files(), threading.Condition()
        self._held = self._pending = 0
        self._groups = collections.OrderedDict()
        self._footers = collections.OrderedDict()

    def __getstate__(self):
        # The caches belong to their process.
        gone = ("_files", "_room", "_held", "_pending", "_groups", "_footers")
        return {k: v for k, v in self.__dict__.items() if k not in gone}

    def __setstate__(self, state):
        self.__dict__.update(state)
        self._clear()

    def __len__(self) -> int:
        return int(self._first[-1])

    def row(self, index: int) -> dict[str, Any]:
        """Reads a row.

        Args:
          index: Its number.

        Returns:
          Column -> value.

        Raises:
          ValueError: If its row group cannot be read.
          Unreachable: If it is in a store that does not answer.
        """
        file, row = self._locate(index)
        starts = self._starts[file]
        group = int(np.searchsorted(starts, row, "right")) - 1
        table, at = self._group(file, group), row - int(starts[group])
        return {name: table.column(name)[at].as_py() for name in self._columns}

    def where(self, index: int) -> str:
        """Describes where a row is.

        Args:
          index: Its number.

        Returns:
          Path of its file and the row's number in it.
        """
        file, row = self._locate(index)
        return f"{self._shards[file].path} row {row}"

    def column(self, name: str) -> Any:
        """Reads a single column of all files, several files at once.

        Args:
          name: Its name.

        Returns:
          A pyarrow ChunkedArray, null for files that lack the column.

        Raises:
          ValueError: If a file cannot be read, or its type is not compatible with that
            of another.
          Unreachable: If it is in a store that does not answer.
        """
        parts = side_by_side(
            lambda file: self._part_of(file, name), range(len(self._shards))
        )
        return join_columns([shard.path for shard in self._shards], parts, name)

    def _part_of(self, file, name):
        """A column of one file."""
        import pyarrow as pa

        path = self._shards[file].path
        try:
            with self._open(file) as opened:
                if name not in opened.schema_arrow.names:
                    return pa.chunked_array([pa.nulls(int(self._starts[file][-1]))])
                return opened.read(columns=[name]).column(0)
        except Unreachable:
            raise
        # A damaged file may make pyarrow raise anything.
        except Exception as error:
            text = " ".join(str(error).split()) or type(error).__name__
            raise ValueError(f"column {name} of {path}: {text}") from error

    def parts(self) -> list[tuple[str, int, int]]:
        """Lists the files.

        Returns:
          (path, number of rows, bytes of the file) of each.
        """
        rows = np.diff(self._first).tolist()
        return [
            (shard.path, count, shard.size)
            for shard, count in zip(self._shards, rows, strict=True)
        ]

    def digest(self) -> bytes:
        """Identifies the contents of the files.

        Returns:
          Hashes of their footers: sizes, extremes and null counts of all columns.
        """
        return self._digests

    def _locate(self, index):
        file = int(np.searchsorted(self._first, index, "right")) - 1
        return file, int(index - self._first[file])

    def _group(self, file, group):
        key = file, group
        with self._room:
            slot = self._groups.get(key)
            if slot is None:
                slot = self._groups[key] = _Slot()
            self._groups.move_to_end(key)
        with slot.lock:
            if slot.table is not None:
                return slot.table
            try:
                slot.table = table = self._read(file, group)
            except Exception:
                with self._room:
                    if self._groups.get(key) is slot:
                        del self._groups[key]
                raise
        with self._room:
            if self._groups.get(key) is slot:
                slot.bytes = table.nbytes
                self._held += slot.bytes
                self._let_go(self._most, key)
        return table

    def _open(self, file):
        """Opens a file; caches the footers of those used most recently."""
        import pyarrow.parquet

        with self._room:
            footer = self._footers.get(file)
        source = RangedFile(self._shards[file], self._files)
        opened = pyarrow.parquet.ParquetFile(source, metadata=footer)
        with self._room:
            self._footers[file] = opened.metadata
            self._footers.move_to_end(file)
            while len(self._footers) > _FOOTERS:
                self._footers.popitem(last=False)
        return opened

    def _read(self, file, group):
        try:
            with self._open(file) as opened:
                sizes = unpacked_sizes(opened.metadata.row_group(group))
                size = sum(sizes[name] for name in self._columns)
                with self._reserved(size):
                    return self._unpack(opened, group, size)
        except Unreachable:
            raise
        except Exception as error:
            text = " ".join(str(error).split()) or type(error).__name__
            raise ValueError(f"row group {group} cannot be read: {text}") from error

    def _unpack(self, opened, group, size):
        import pyarrow as pa

        batches, held = [], 0
        rows = opened.iter_batches(
            _ROWS, row_groups=[group], columns=self._columns, use_threads=False
        )
        for batch in rows:
            batches.append(batch)
            held += batch.nbytes
            # One stored value may be that of a million rows.
            if held > size + self._most:
                raise ValueError(
                    f"it unpacks to more than {held / 1e9:.1f} GB, and the file says "
                    f"{size / 1e9:.1f}: raise data.cache_gb, or write the file with a "
                    "smaller row_group_size"
                )
        return pa.Table.from_batches(batches)

    @contextlib.contextmanager
    def _reserved(self, size):
        """Waits until there is room for a row group, or no other is being read."""
        with self._room:
            while True:
                self._let_go(self._most - self._pending - size)
                full = self._held + self._pending + size > self._most
                if not full or not self._pending:
                    break
                self._room.wait()
            self._pending += size
        try:
            yield
        finally:
            with self._room:
                self._pending -= size
                self._room.notify_all()

    def _let_go(self, most, keep=None):
        """Evicts the least recently used row groups."""
        for other in list(self._groups):
            if self._held <= most:
                break
            # One that is still being read does not count yet.
            if other != keep and self._groups[other].bytes:
                self._held -= self._groups.pop(other).bytes


def join_schemas(files: Sequence[ParquetFile]) -> Any:
    """Joins the columns of files.

    Args:
      files: The readable files among the results of `open_files`.

    Returns:
      A pyarrow Schema: each column as in the first file where its type is not null,
      with the metadata of the first file.
    """
    import pyarrow as pa

    fields = {}
    for file in files:
        for field in file.schema:
            known = fields.get(field.name)
            if known is None or kind_of(known.type) == NULL:
                fields[field.name] = field
    return pa.schema(list(fields.values()), files[0].schema.metadata)


class _Slot:
    """A row group in the cache, or one that is being read."""

    def __init__(self):
        self.lock, self.table, self.bytes = threading.Lock(), None, 0
