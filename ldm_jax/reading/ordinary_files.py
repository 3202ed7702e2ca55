"""Opens and reads files, whole or in parts: only regular files, within a size limit."""

import contextlib
import io
import os
import stat
from collections.abc import Callable, Iterator
from typing import BinaryIO

from ldm_jax.reading.faults import answering
from ldm_jax.store import as_path, is_remote, size_of

# Maximum size of a text file in bytes.
MAX_TEXT = 2**24

# Largest size in bytes, or a function of (bytes, what they are) that raises if they are
# too many, e.g. `images.require_memory`.
Limit = int | Callable[[int, str], None]

# (first byte, number of bytes) -> bytes of a file, fewer at its end.
Read = Callable[[int, int], bytes]


def read_file(path: str | os.PathLike, most: Limit) -> bytes:
    """Reads a file.

    Args:
      path: Its path.
      most: Largest size.

    Returns:
      Its bytes.

    Raises:
      OSError: If it cannot be opened or read.
      ValueError: If it is larger, or a pipe or a device, which may never end.
      Unreachable: If the disk does not answer.
    """
    with open_file(path, most) as file:
        # Only its current size: a file may grow meanwhile.
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        return file.read(size)


@contextlib.contextmanager
def open_file(path: str | os.PathLike, most: Limit) -> Iterator[BinaryIO]:
    """Opens a file to read.

    Args:
      path: Its path.
      most: Largest size.

    Yields:
      The file.

    Raises:
      OSError: If it cannot be opened.
      ValueError: If it is larger, or a pipe or a device, which may never end.
      Unreachable: If the disk does not answer, here or in the block.
    """
    if is_remote(path):
        path = as_path(path)
        with answering(path):
            _check_size(path.name, size_of(path), most)
            data = path.read_bytes()
        with io.BytesIO(data) as file:
            yield file
        return
    with answering(path):
        # Without O_NONBLOCK, opening a pipe waits for a writer.
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        with open(handle, "rb") as file:
            status, name = os.fstat(handle), os.path.basename(path)
            if not stat.S_ISREG(status.st_mode):
                raise ValueError(f"{name} is a pipe, a device or the like, not a file")
            _check_size(name, status.st_size, most)
            yield file


def parts_of(file: BinaryIO) -> tuple[Read, int]:
    """Makes a function that reads parts of a file.

    Args:
      file: Opened file.

    Returns:
      (read, length): function of (first byte, number of bytes) -> bytes, fewer at the
      end; and the size of the file in bytes.
    """

    def read(start, count):
        file.seek(start)
        return file.read(count)

    return read, file.seek(0, os.SEEK_END)


def _check_size(name, size, most):
    if callable(most):
        most(size, f"the bytes of {name}")
    elif size > most:
        raise ValueError(f"{name} has {size:,} bytes, and at most {most:,} are read")
