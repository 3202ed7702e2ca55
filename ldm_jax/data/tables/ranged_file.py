"""A file for pyarrow that reads byte ranges, local or in a store."""

import io
import os

from ldm_jax.data.tar.byte_ranges import Files
from ldm_jax.data.tar.shards import Shard


class RangedFile(io.RawIOBase):
    """A file that is read by one request per call of `read`, at the current position.

    It does not need to be closed. It does not read ahead: pyarrow requests all of a
    column of a row group at once.
    """

    def __init__(self, shard: Shard, files: Files) -> None:
        """Starts at the first byte, without reading anything.

        Args:
          shard: The file.
          files: Reader of its bytes.
        """
        self._shard, self._files, self._at = shard, files, 0

    def readable(self) -> bool:
        """Returns whether the file can be read.

        Returns:
          True.
        """
        return True

    def seekable(self) -> bool:
        """Returns whether the file supports `seek`.

        Returns:
          True.
        """
        return True

    def tell(self) -> int:
        """Returns the current position.

        Returns:
          Offset of the next byte.
        """
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Sets the current position.

        Args:
          offset: Offset of the byte, relative to `whence`.
          whence: As for `io.IOBase.seek`.

        Returns:
          Its offset from the beginning.
        """
        starts = {os.SEEK_CUR: self._at, os.SEEK_END: self._shard.size}
        self._at = starts.get(whence, 0) + offset
        return self._at

    def read(self, size: int = -1) -> bytes:
        """Reads some bytes.

        Args:
          size: How many; all that follow if negative.

        Returns:
          The bytes, fewer at the end of the file.

        Raises:
          OSError: If they cannot be read.
          Unreachable: If they are in a store that does not answer.
        """
        left = max(0, self._shard.size - self._at)
        size = left if size is None or size < 0 else min(size, left)
        data = self._files.read_up_to(self._shard.path, self._at, size)
        self._at += len(data)
        return data
