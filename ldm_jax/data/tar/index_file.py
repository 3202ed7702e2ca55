"""The file of an index: a header in JSON and plain arrays.

Arrays are read on request, whole or some rows, and never through pickle. A file that
was cut short, or comes from another version, is rejected.
"""

import json
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np

from ldm_jax.annotations import Shaped
from ldm_jax.data.tar.byte_ranges import Files
from ldm_jax.files import replacing
from ldm_jax.reading import parse_json

MAGIC, VERSION = b"LDM-TAR\n", 3

# A member: where its data are in the shard; its size in pixels if it is an image, else
# zeros; and the number of its suffix.
MEMBER = np.dtype(
    [
        ("offset", "<u8"),
        ("size", "<u8"),
        ("height", "<u4"),
        ("width", "<u4"),
        ("suffix", "<u2"),
    ]
)
_TYPES = {
    name: np.dtype(name) for name in ("|u1", "<u4", "<i4", "<u8", "<i8", "<f8")
} | {"member": MEMBER}

_START = struct.Struct("<8sQ")
_ALIGN = 64


def encode_index(
    header: Mapping[str, Any], arrays: Mapping[str, Shaped[np.ndarray, "..."]]
) -> bytes:
    """Encodes an index as bytes.

    Args:
      header: JSON-like dict, to which "arrays" is added.
      arrays: Name -> array [n].

    Returns:
      The bytes of a file.
    """
    rows, parts, at = {}, [], 0
    for name, array in arrays.items():
        kind = "member" if array.dtype == MEMBER else array.dtype.str
        rows[name] = [kind, len(array), at]
        data = array.astype(_TYPES[kind]).tobytes()
        parts += [data, bytes(-len(data) % _ALIGN)]
        at += len(data) + -len(data) % _ALIGN
    text = json.dumps({"version": VERSION, **header, "arrays": rows}).encode()
    text += b" " * (-(len(text) + _START.size) % _ALIGN)
    return b"".join([_START.pack(MAGIC, len(text)), text, *parts])


def write_index(path: str, data: bytes) -> None:
    """Writes the file atomically, so that several processes may do so at once.

    Args:
      path: Path of the file.
      data: Result of `encode_index`.

    Raises:
      DiskError: If it cannot be written.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(data)


class IndexFile:
    """An index in a file; its arrays are read on request.

    Attributes:
      path: Path of the file.
      header: Its header, without "arrays".
    """

    def __init__(self, path: str, files: Files) -> None:
        """Reads the header.

        Args:
          path: Path of the file.
          files: Reader of the file.

        Raises:
          OSError: If it cannot be read.
          ValueError: If it is not an index of this version, or is cut short.
        """
        self.path, self._files = path, files
        size = files.size(path)
        magic, length = _START.unpack(files.read(path, 0, _START.size))
        if magic != MAGIC or length > size:
            raise ValueError("not an index")
        self.header = parse_json(files.read(path, _START.size, length))
        if not isinstance(self.header, dict) or self.header.get("version") != VERSION:
            raise ValueError("an index of another version")
        self._arrays = {}
        for name, (kind, count, at) in self.header.pop("arrays").items():
            start = _START.size + length + at
            if start + count * _TYPES[kind].itemsize > size or min(count, at) < 0:
                raise ValueError("cut short")
            self._arrays[name] = _TYPES[kind], count, start

    def read(
        self, name: str, start: int = 0, count: int | None = None
    ) -> Shaped[np.ndarray, " count"]:
        """Reads an array, or some rows of it.

        Args:
          name: Its name.
          start: First row.
          count: Number of rows; all by default.

        Returns:
          Array [count].

        Raises:
          OSError: If they cannot be read, or do not exist.
        """
        kind, length, at = self._arrays[name]
        count = length if count is None else count
        if not 0 <= start <= start + count <= length:
            raise OSError(f"{self.path} has no row {start + count} of {name}")
        data = self._files.read(
            self.path, at + start * kind.itemsize, count * kind.itemsize
        )
        return np.frombuffer(data, kind)
