"""The rows of Parquet files by their number, through a bounded cache of row groups.

A row group is what Parquet reads at once: a row costs its whole group where the group
is not in the cache. Only the columns that are asked for are read.
"""

import collections
import concurrent.futures
import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ldm_jax.data.tar.byte_ranges import file_system, is_remote
from ldm_jax.data.tar.shards import Shard

# Footers that are kept: one of a large file has some megabytes.
_FOOTERS = 64


class ParquetFile(NamedTuple):
    """What is kept of a file.

    Attributes:
      shard: Where it is.
      schema: Its columns, of pyarrow.
      starts: First row of each row group, and the number of rows, int64 [groups + 1].
      largest: Bytes of the largest row group by column, unpacked: name -> bytes.
    """

    shard: Shard
    schema: Any
    starts: np.ndarray
    largest: dict[str, int]


def open_files(shards: Sequence[Shard]) -> list[ParquetFile | str]:
    """Reads the footers of files, several at once.

    Args:
      shards: The files.

    Returns:
      For each file what is kept of it, or what is wrong with it.
    """
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        return list(pool.map(_look_into, shards))


def _look_into(shard):
    try:
        with _open(shard.path) as file:
            footer, schema = file.metadata, file.schema_arrow
            groups = [footer.row_group(k) for k in range(footer.num_row_groups)]
            starts = np.cumsum([0, *(group.num_rows for group in groups)])
            largest = collections.Counter()
            for group in groups:
                for column, size in _sizes_of(group).items():
                    largest[column] = max(largest[column], size)
    # Whatever a damaged file makes pyarrow raise, it is that file's fault.
    except Exception as error:
        text = " ".join(str(error).split()) or type(error).__name__
        return f"it cannot be read as Parquet: {text}"
    return ParquetFile(shard, schema, starts, dict(largest))


def _sizes_of(group):
    sizes = collections.Counter()
    for k in range(group.num_columns):
        column = group.column(k)
        sizes[column.path_in_schema.split(".")[0]] += column.total_uncompressed_size
    return sizes


def _open(path, footer=None):
    import pyarrow.parquet

    if is_remote(path):
        system, inside = file_system(path)
        # pyarrow closes it with the ParquetFile.
        path = system.open(inside)
    return pyarrow.parquet.ParquetFile(path, metadata=footer)


class ParquetTable:
    """Rows of Parquet files, one file after the other; can be pickled.

    Threads that want the same row group wait for the one that reads it.
    """

    def __init__(
        self, files: Sequence[ParquetFile], columns: Sequence[str], most: float
    ) -> None:
        """Keeps where the rows are.

        Args:
          files: What `open_files` gave.
          columns: Columns that rows have.
          most: Bytes of row groups that are kept, in each process.
        """
        self.schema = files[0].schema
        self._shards = [file.shard for file in files]
        self._starts = [file.starts for file in files]
        self._first = np.cumsum([0, *(file.starts[-1] for file in files)])
        self._columns, self._most = list(columns), most
        self._clear()

    def _clear(self):
        self._lock, self._held = threading.Lock(), 0
        self._groups = collections.OrderedDict()
        self._footers = collections.OrderedDict()

    def __getstate__(self):
        # What is in memory stays with its process.
        gone = ("_lock", "_held", "_groups", "_footers")
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
        """
        file, row = self._locate(index)
        starts = self._starts[file]
        group = int(np.searchsorted(starts, row, "right")) - 1
        table, at = self._group(file, group), row - int(starts[group])
        return {name: table.column(name)[at].as_py() for name in self._columns}

    def where(self, index: int) -> str:
        """Names a row.

        Args:
          index: Its number.

        Returns:
          Path of its file and the row's number in it.
        """
        file, row = self._locate(index)
        return f"{self._shards[file].path} row {row}"

    def column(self, name: str) -> Any:
        """Reads a column, and no other.

        Args:
          name: Its name; dots lead into structs.

        Returns:
          Chunked array of pyarrow.

        Raises:
          ValueError: If a file cannot be read.
        """
        import pyarrow as pa

        chunks = []
        for shard in self._shards:
            try:
                with _open(shard.path) as file:
                    table = file.read(columns=[name])
            except Exception as error:
                raise ValueError(f"{shard.path}: {error}") from error
            chunks += table.column(0).chunks
        return pa.chunked_array(chunks, self.schema.field(name).type)

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

    def _locate(self, index):
        file = int(np.searchsorted(self._first, index, "right")) - 1
        return file, int(index - self._first[file])

    def _group(self, file, group):
        key = file, group
        with self._lock:
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
                with self._lock:
                    if self._groups.get(key) is slot:
                        del self._groups[key]
                raise
        self._make_room(key, slot)
        return table

    def _read(self, file, group):
        path = self._shards[file].path
        try:
            with _open(path, self._footers.get(file)) as opened:
                with self._lock:
                    self._footers[file] = opened.metadata
                    while len(self._footers) > _FOOTERS:
                        self._footers.popitem(last=False)
                return opened.read_row_group(
                    group, columns=self._columns, use_threads=False
                )
        except Exception as error:
            text = " ".join(str(error).split()) or type(error).__name__
            raise ValueError(f"row group {group} cannot be read: {text}") from error

    def _make_room(self, key, slot):
        """Lets go of the row groups that were not used for longest."""
        with self._lock:
            if self._groups.get(key) is not slot:
                return
            slot.bytes = slot.table.nbytes
            self._held += slot.bytes
            for other in list(self._groups):
                if self._held <= self._most:
                    break
                # One that is still being read has no bytes yet.
                if other != key and self._groups[other].bytes:
                    self._held -= self._groups.pop(other).bytes


class _Slot:
    """A row group in the cache, or on its way there."""

    def __init__(self):
        self.lock, self.table, self.bytes = threading.Lock(), None, 0
