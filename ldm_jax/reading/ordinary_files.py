"""Files opened, read whole or in parts: ordinary ones alone, and within a limit."""

import contextlib
import io
import os
import stat
from collections.abc import Callable, Iterator
from typing import BinaryIO

from ldm_jax.reading.faults import answering
from ldm_jax.store import as_path, is_remote, size_of

# Bytes that a file of text may have.
MAX_TEXT = 2**24

# Largest size in bytes, or a function of (bytes, what they are) that refuses too many,
# as `images.require_memory`.
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
        # A file may grow meanwhile.
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
        # Without O_NONBLOCK a pipe waits for someone to write to it.
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        with open(handle, "rb") as file:
            status, name = os.fstat(handle), os.path.basename(path)
            if not stat.S_ISREG(status.st_mode):
                raise ValueError(f"{name} is a pipe, a device or the like, not a file")
            _check_size(name, status.st_size, most)
            yield file


def parts_of(file: BinaryIO) -> tuple[Read, int]:
    """Makes a file one that is read in parts.

    Args:
      file: Opened file.

    Returns:
      (read, length): function of (first byte, number of bytes) -> bytes, fewer at the
      end, and the number of bytes that there are.
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
