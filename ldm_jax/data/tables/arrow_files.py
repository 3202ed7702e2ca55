"""The rows of memory-mapped Arrow files, by number."""

import bisect
import os
from collections.abc import Sequence
from typing import Any


class ArrowTable:
    """Rows of Arrow files, one file after the other; can be pickled.

    The files are as `datasets` writes them: a stream of record batches, or Arrow's file
    format. They are memory-mapped: reading a row reads only its pages of the disk, and
    all processes share the pages that are in memory.
    """

    def __init__(self, paths: Sequence[str], columns: Sequence[str]) -> None:
        """Maps the files into memory.

        Args:
          paths: Their paths.
          columns: Columns to read.

        Raises:
          ValueError: If one cannot be read.
        """
        self._paths, self._columns = list(paths), list(columns)
        self._open()

    def _open(self):
        self._tables = [_map(path) for path in self._paths]
        self.schema = self._tables[0].schema
        # Files may lack columns, or have other ones.
        for path, table in zip(self._paths, self._tables, strict=True):
            if table.schema != self.schema:
                raise ValueError(f"{path} has other columns than {self._paths[0]}")
        self._batches, self._ends, self._owners = [], [], []
        end = 0
        for number, table in enumerate(self._tables):
            for batch in table.to_batches():
                end += batch.num_rows
                self._batches.append(batch)
                self._ends.append(end)
                self._owners.append(number)

    def __getstate__(self):
        # Each process maps the files itself.
        return {"_paths": self._paths, "_columns": self._columns}

    def __setstate__(self, state):
        self.__dict__.update(state)
        self._open()

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def row(self, index: int) -> dict[str, Any]:
        """Reads a row.

        Args:
          index: Its number.

        Returns:
          Column -> value.
        """
        number, at = self._locate(index)
        batch = self._batches[number]
        return {name: batch.column(name)[at].as_py() for name in self._columns}

    def where(self, index: int) -> str:
        """Describes where a row is.

        Args:
          index: Its number.

        Returns:
          Path of its file and the row's number in it.
        """
        number, _ = self._locate(index)
        owner = self._owners[number]
        before = self._owners.index(owner)
        first = self._ends[before - 1] if before else 0
        return f"{self._paths[owner]} row {index - first}"

    def column(self, name: str) -> Any:
        """Returns a column.

        Args:
          name: Its name.

        Returns:
          A pyarrow ChunkedArray.
        """
        import pyarrow as pa

        chunks = [chunk for table in self._tables for chunk in table[name].chunks]
        return pa.chunked_array(chunks, self.schema.field(name).type)

    def parts(self) -> list[tuple[str, int, int]]:
        """Lists the files.

        Returns:
          (path, number of rows, bytes of the file) of each.
        """
        return [
            (path, table.num_rows, os.path.getsize(path))
            for path, table in zip(self._paths, self._tables, strict=True)
        ]

    def digest(self) -> bytes:
        """Identifies the contents of the files, beyond `parts`.

        Returns:
          Empty bytes: Arrow files have no checksums of their columns.
        """
        return b""

    def _locate(self, index):
        number = bisect.bisect_right(self._ends, index)
        return number, index - (self._ends[number - 1] if number else 0)


def _map(path):
    import pyarrow as pa

    try:
        file = pa.memory_map(path)
        try:
            return pa.ipc.open_stream(file).read_all()
        except pa.ArrowInvalid:
            return pa.ipc.open_file(pa.memory_map(path)).read_all()
    # Whatever pyarrow raises, the file is damaged.
    except Exception as error:
        text = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"it cannot be read as Arrow: {text}") from error
