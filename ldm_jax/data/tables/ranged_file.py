"""A file for pyarrow that reads by byte ranges, local or in a store."""

import io
import os

from ldm_jax.data.tar.byte_ranges import Files
from ldm_jax.data.tar.shards import Shard


class RangedFile(io.RawIOBase):
    """A file that is read from where it is asked for, each time by one request.

    Nothing of it needs to be closed. What a store answers is not read ahead: pyarrow
    asks for all of a column of a row group at once.
    """

    def __init__(self, shard: Shard, files: Files) -> None:
        """Reads nothing yet.

        Args:
          shard: The file.
          files: What reads it.
        """
        self._shard, self._files, self._at = shard, files, 0

    def readable(self) -> bool:
        """Says whether it can be read.

        Returns:
          True.
        """
        return True

    def seekable(self) -> bool:
        """Says whether any byte can be read next.

        Returns:
          True.
        """
        return True

    def tell(self) -> int:
        """Says where the next byte is read.

        Returns:
          Its number.
        """
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Goes to a byte.

        Args:
          offset: Number of it, from where `whence` says.
          whence: As for `io.IOBase.seek`.

        Returns:
          Its number from the beginning.
        """
        starts = {os.SEEK_CUR: self._at, os.SEEK_END: self._shard.size}
        self._at = starts.get(whence, 0) + offset
        return self._at

    def read(self, size: int = -1) -> bytes:
        """Reads some bytes.

        Args:
          size: How many; all that follow where it is negative.

        Returns:
          The bytes, fewer at the end of the file.

        Raises:
          OSError: If they cannot be read.
          Unreachable: If they lie in a store that does not answer.
        """
        left = max(0, self._shard.size - self._at)
        size = left if size is None or size < 0 else min(size, left)
        data = self._files.read_up_to(self._shard.path, self._at, size)
        self._at += len(data)
        return data
