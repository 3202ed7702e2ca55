"""Records of prepared data sets, by position, and the files that contain them."""

import os
import struct
from collections.abc import Sequence

import numpy as np

from ldm_jax.images import require_memory
from ldm_jax.reading import answering, naming

# Bytes beside a record in a file of TFRecords: its length and checksums.
_HEADER, _FOOTER = 12, 4


class NamedRecords:
    """Records of several files, by position; errors name the file that was read."""

    def __init__(
        self,
        records: "Sequence[bytes] | TFRecords",
        parts: Sequence[tuple[str | os.PathLike, int, int]],
    ) -> None:
        """Computes which file contains which records.

        Args:
          records: The records by position; can be pickled.
          parts: List of (path, skip, take) of the files in order.
        """
        self._records, self._paths = records, [os.fspath(path) for path, _, _ in parts]
        self._ends = np.cumsum([take for _, _, take in parts])

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> bytes:
        """Returns the bytes of one record."""
        number = int(np.searchsorted(self._ends, index, side="right"))
        with naming(self._paths[min(number, len(self._paths) - 1)]):
            return self._records[index]


class TFRecords:
    """The records of some files, or of parts of them, by position."""

    def __init__(self, parts: Sequence[tuple[str | os.PathLike, int, int]]) -> None:
        """Indexes the records.

        Args:
          parts: List of (path, skip, take); take -1 for all that follow.

        Raises:
          ValueError: If a file is missing, is not a TFRecord file or is cut short.
        """
        self._paths = [os.fspath(path) for path, _, _ in parts]
        files, offsets, lengths = [], [], []
        for number, (path, (_, skip, take)) in enumerate(
            zip(self._paths, parts, strict=True)
        ):
            found = _index(path)[skip : None if take < 0 else skip + take]
            files.append(np.full(len(found), number, np.int32))
            offsets.append(found[:, 0])
            lengths.append(found[:, 1])
        self._file = np.concatenate(files)
        self._offset, self._length = np.concatenate(offsets), np.concatenate(lengths)
        self._handles = {}

    def __len__(self) -> int:
        return len(self._file)

    def __getitem__(self, index: int) -> bytes:
        """Returns the bytes of one record."""
        number, length = int(self._file[index]), int(self._length[index])
        require_memory(length, f"{length:,} bytes of a record")
        with answering(self._paths[number]):
            data = self._read(number, length, int(self._offset[index]))
        if len(data) < length:
            raise ValueError(f"{self._paths[number]} has been cut short")
        return data

    def _read(self, number, length, offset):
        handle = self._handles.get(number)
        if handle is None:
            handle = os.open(self._paths[number], os.O_RDONLY)
            # Another thread may have been faster; then this handle is not needed.
            if self._handles.setdefault(number, handle) != handle:
                os.close(handle)
                handle = self._handles[number]
        return os.pread(handle, length, offset)

    def __getstate__(self):
        # Open files belong to their process.
        return self.__dict__ | {"_handles": {}}

    def __del__(self):
        for handle in self.__dict__.get("_handles", {}).values():
            os.close(handle)


def _index(path):
    """Offsets and lengths of a file's records, int64 [N, 2]."""
    try:
        size = os.path.getsize(path)
        rows, at = [], 0
        with open(path, "rb", buffering=0) as file:
            while at < size:
                file.seek(at)
                header = file.read(8)
                length = struct.unpack("<Q", header)[0] if len(header) == 8 else size
                if at + _HEADER + length + _FOOTER > size:
                    raise ValueError(
                        f"{path} is damaged or cut short: its record {len(rows)} runs "
                        "beyond the end of the file; prepare the data set again"
                    )
                rows.append((at + _HEADER, length))
                at += _HEADER + length + _FOOTER
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from error
    return np.array(rows, np.int64).reshape(-1, 2)
