"""Random access to TFRecord files without TensorFlow.

A record is its length (8 bytes, little endian), a checksum of it (4 bytes), the data
and a checksum of that (4 bytes); one pass over the lengths finds every record.
"""

import os
import struct

import numpy as np

_HEADER, _FOOTER = 12, 4


class TFRecords:
    """The records of some files, or of parts of them, by position."""

    def __init__(self, parts):
        """Finds the records.

        Args:
          parts: List of (path, skip, take); take -1 is all that follow.

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

    def __len__(self):
        return len(self._file)

    def __getitem__(self, index):
        """Returns the bytes of one record."""
        number = int(self._file[index])
        handle = self._handles.get(number)
        if handle is None:
            handle = os.open(self._paths[number], os.O_RDONLY)
            # Another thread may have been faster; then ours is one too many.
            if self._handles.setdefault(number, handle) != handle:
                os.close(handle)
                handle = self._handles[number]
        return os.pread(handle, int(self._length[index]), int(self._offset[index]))

    def __getstate__(self):
        # Open files stay with their process.
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
