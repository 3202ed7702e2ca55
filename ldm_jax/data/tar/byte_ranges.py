"""Reads byte ranges of local files and, through fsspec, of remote ones."""

import collections
import concurrent.futures
import os
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from absl import logging

from ldm_jax.errors import Unreachable
from ldm_jax.files import most_open_files
from ldm_jax.reading import answering
from ldm_jax.store import SILENT, is_remote

# Most files kept open; fewer if the system allows fewer.
_MOST_OPEN = 512

# Seconds before each retry if a store did not answer.
_WAITS = (0.5, 2.0, 8.0)

# Files whose state or footer is requested at once.
_THREADS = 16

_Given, _Found = TypeVar("_Given"), TypeVar("_Found")


def file_system(path: str) -> tuple[Any, str]:
    """Opens the file system of an address.

    Args:
      path: Address, e.g. gs://bucket/file.

    Returns:
      (fsspec file system, the path in it).

    Raises:
      ValueError: If the kind of store is unknown, or its library is not installed.
      Unreachable: If it does not answer, or denies access.
    """
    import fsspec

    kind = path.partition("://")[0]
    try:
        return fsspec.core.url_to_fs(path)
    except ImportError as error:
        library = {"gs": "gcsfs", "gcs": "gcsfs", "s3": "s3fs"}.get(kind, kind)
        raise ValueError(f"{path} needs a library: pip install {library}") from error
    except ValueError as error:
        raise ValueError(f"cannot open {path}: {_in_a_line(error)}") from error
    # Each file system has its own errors of credentials and networks.
    except Exception as error:
        raise _unreachable(path, error) from error


def reach(path: str, ask: Callable[[], _Found]) -> _Found:
    """Sends a request to a store, with retries if it does not answer.

    Args:
      path: Address of the requested file.
      ask: Sends the request; raises FileNotFoundError if there is no such file.

    Returns:
      Result of `ask`.

    Raises:
      FileNotFoundError: If the store has no such file.
      Unreachable: If it does not answer, or denies access.
    """
    for wait in (*_WAITS, None):
        try:
            return ask()
        except FileNotFoundError:
            raise
        # Each file system has its own errors.
        except Exception as error:
            if wait is None or isinstance(error, PermissionError):
                raise _unreachable(path, error) from error
            logging.warning("%s: %s; it is asked again", path, _in_a_line(error))
        time.sleep(wait)


def _unreachable(path, error):
    return Unreachable(
        f"{path} cannot be reached: {_in_a_line(error)}; once the network and the "
        "credentials are there, the same command continues"
    )


def _in_a_line(error):
    return " ".join(str(error).split()) or type(error).__name__


def side_by_side(
    work: Callable[[_Given], _Found], items: Iterable[_Given]
) -> list[_Found]:
    """Maps a function over many files, several at once.

    Args:
      work: Function of one item.
      items: The items.

    Returns:
      Its results, in order. The first error stops all.
    """
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        try:
            return list(pool.map(work, items))
        except BaseException:
            # The rest would wait for the same store.
            pool.shutdown(wait=False, cancel_futures=True)
            raise


class Files:
    """Reads byte ranges of files, from several threads at once; can be pickled.

    The most recently used local files stay open; any other is closed once no thread
    reads it any more.
    """

    def __init__(self) -> None:
        """Starts without open files."""
        self._clear()

    def _clear(self):
        self._open, self._lock = collections.OrderedDict(), threading.Lock()

    def __getstate__(self):
        # Open files belong to their process.
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
        """Reads some bytes of a file, fewer at its end.

        Args:
          path: Path or address.
          offset: First byte.
          size: How many at most.

        Returns:
          The bytes.

        Raises:
          OSError: If they cannot be read.
          Unreachable: If the store or disk of the file does not answer.
        """
        if size <= 0:
            return b""
        if is_remote(path):
            system, inside = file_system(path)
            span = dict(start=offset, end=offset + size)
            return reach(path, lambda: system.cat_file(inside, **span))
        try:
            return _read_open(self._file(path), offset, size)
        except OSError as error:
            if error.errno not in SILENT:
                raise
        # Reopened: the file may have been replaced, or opened before its mount was lost
        # and came back. If it still cannot be read, that raises.
        self.forget(path)
        with answering(path):
            return _read_open(self._file(path), offset, size)

    def size(self, path: str) -> int:
        """Returns the size of a local file.

        Args:
          path: Its path.

        Returns:
          Number of bytes.

        Raises:
          OSError: If there is no such file.
          Unreachable: If the disk does not answer.
        """
        with answering(path):
            return os.fstat(self._file(path).number).st_size

    def forget(self, path: str) -> None:
        """Closes a file that was replaced by another.

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


def _read_open(file, offset, size):
    """Reads bytes of a file, which stays open as long as it is referenced here."""
    data = os.pread(file.number, size, offset)
    # Some systems read at most two gigabytes at a time.
    while len(data) < size:
        more = os.pread(file.number, size - len(data), offset + len(data))
        if not more:
            break
        data += more
    return data


class _File:
    """An open file, which is closed once nothing refers to it any more."""

    def __init__(self, path):
        self.number = None
        # Non-blocking: opening a pipe would wait for a writer.
        self.number = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))

    def __del__(self):
        if self.number is not None:
            os.close(self.number)
