"""Bytes by position from local files and, through fsspec, from remote ones."""

import collections
import os
import threading
from typing import Any

from ldm_jax.files import most_open_files

# Files that are held open at most; fewer where the system allows fewer.
_MOST_OPEN = 512


def is_remote(path: str) -> bool:
    """Says whether a path is an address, as gs://bucket/file.

    Args:
      path: Path or address.

    Returns:
      Whether fsspec must open it.
    """
    return "://" in path


def file_system(path: str) -> tuple[Any, str]:
    """Opens the file system of an address.

    Args:
      path: Address, as gs://bucket/file.

    Returns:
      (fsspec file system, the path in it).

    Raises:
      ValueError: If no library for it is installed, or it cannot be reached.
    """
    import fsspec

    kind = path.partition("://")[0]
    try:
        return fsspec.core.url_to_fs(path)
    except ImportError as error:
        library = {"gs": "gcsfs", "gcs": "gcsfs", "s3": "s3fs"}.get(kind, kind)
        raise ValueError(f"{path} needs a library: pip install {library}") from error
    # Each file system has its own errors, of credentials, of networks.
    except Exception as error:
        text = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"cannot open {path}: {text}") from error


class Files:
    """Reads files by position, by several threads at once; can be pickled.

    Local files stay open, the last used ones; a file that gives way to others is closed
    once no thread reads it any more.
    """

    def __init__(self) -> None:
        """Opens nothing yet."""
        self._clear()

    def _clear(self):
        self._open, self._lock = collections.OrderedDict(), threading.Lock()

    def __getstate__(self):
        # Open files stay with their process.
        return {}

    def __setstate__(self, state):
        self._clear()

    def read(self, path: str, offset: int, size: int) -> bytes:
        """Reads some bytes of a file.

        Args:
          path: Path or address.
          offset: First byte.
          size: How many.

        Returns:
          The bytes.

        Raises:
          OSError: If they cannot be read, or the file ends before them.
        """
        data = self.read_up_to(path, offset, size)
        if len(data) < size:
            raise OSError(
                f"{path} ends at byte {offset + len(data):,}, before {offset + size:,}"
            )
        return data

    def read_up_to(self, path: str, offset: int, size: int) -> bytes:
        """Reads some bytes of a file, or those that there are before its end.

        Args:
          path: Path or address.
          offset: First byte.
          size: How many at most.

        Returns:
          The bytes.

        Raises:
          OSError: If they cannot be read.
        """
        if size <= 0:
            return b""
        if is_remote(path):
            system, inside = file_system(path)
            return system.cat_file(inside, start=offset, end=offset + size)
        # While it is held here, it is open.
        file = self._file(path)
        data = os.pread(file.number, size, offset)
        # Some systems read two gigabytes at most.
        while len(data) < size:
            more = os.pread(file.number, size - len(data), offset + len(data))
            if not more:
                break
            data += more
        return data

    def size(self, path: str) -> int:
        """Says how many bytes a local file has.

        Args:
          path: Its path.

        Returns:
          Number of bytes.

        Raises:
          OSError: If there is no such file.
        """
        return os.fstat(self._file(path).number).st_size

    def forget(self, path: str) -> None:
        """Closes a file that another has taken the place of.

        Args:
          path: Its path.
        """
        with self._lock:
            self._open.pop(path, None)

    def _file(self, path):
        with self._lock:
            file = self._open.get(path)
            if file is not None:
                self._open.move_to_end(path)
                return file
        opened = _File(path)
        with self._lock:
            # Another thread may have been faster.
            file = self._open.setdefault(path, opened)
            while len(self._open) > most_open_files(_MOST_OPEN):
                self._open.popitem(last=False)
        return file


class _File:
    """An open file, until nothing refers to it any more."""

    def __init__(self, path):
        self.number = None
        # A pipe would wait for someone to write to it.
        self.number = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))

    def __del__(self):
        if self.number is not None:
            os.close(self.number)
