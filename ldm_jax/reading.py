"""Files from strangers, read whole: ordinary files alone, and within a limit."""

import contextlib
import io
import json
import os
import stat
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import numpy as np

from ldm_jax.annotations import Shaped
from ldm_jax.errors import Unreachable, raise_if_silent
from ldm_jax.store import (
    as_path,
    explain_fault,
    is_fault,
    is_remote,
    local_copy,
    size_of,
)

# Bytes that a file of text may have.
MAX_TEXT = 2**24

# Largest size in bytes, or a function of (bytes, what they are) that refuses too many,
# as `images.require_memory`.
Limit = int | Callable[[int, str], None]

# Numbers, truth values and text; no objects, which would be unpickled, no records.
_KINDS = "biufSU"


@contextlib.contextmanager
def answering(what: str | os.PathLike) -> Iterator[None]:
    """Turns the silence of a disk, a mount or a store, in the block, into one line.

    Args:
      what: What is read.

    Yields:
      Nothing.

    Raises:
      Unreachable: If it does not answer.
    """
    try:
        yield
    except Exception as error:
        raise_if_silent(what, error)
        if is_fault(error):
            raise Unreachable(
                f"{what}: {explain_fault(error)}; once the network and the credentials "
                "are there, the same command goes on"
            ) from error
        raise


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


def parts_of(file: BinaryIO) -> tuple[Callable[[int, int], bytes], int]:
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


def read_array(path: str | os.PathLike) -> Shaped[np.ndarray, "..."]:
    """Opens an array in a NumPy file; nothing is read or allocated before its use.

    Args:
      path: Path of a `.npy` file.

    Returns:
      Array [...] that is mapped into memory, of numbers, truth values or text.

    Raises:
      OSError: If the file cannot be opened.
      ValueError: If it holds something else, or less than it announces.
      Unreachable: If the disk does not answer.
    """
    path = local_copy(path)
    with answering(path):
        if not os.path.isfile(path):
            os.stat(path)
            raise ValueError("not a file")
        return _load_array(path, "r")


def parse_array(data: bytes) -> Shaped[np.ndarray, "..."]:
    """Reads an array in the bytes of a NumPy file.

    Args:
      data: Bytes of a `.npy` file.

    Returns:
      Array [...] of numbers, truth values or text.

    Raises:
      ValueError: If they hold something else, or less than they announce.
    """
    with io.BytesIO(data) as file:
        return _load_array(file)


def _load_array(file, mmap_mode=None):
    try:
        array = np.load(file, mmap_mode=mmap_mode, allow_pickle=False)
    except OSError:
        raise
    # A header is a Python literal: a hostile one raises nearly anything.
    except Exception as error:
        text = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"not a NumPy array: {text}") from error
    if not isinstance(array, np.ndarray):
        array.close()
        raise ValueError("not a NumPy array but an archive of several: give one .npy")
    if array.dtype.kind not in _KINDS:
        raise ValueError(f"an array of numbers is expected, got {array.dtype}")
    return array


def parse_json(data: bytes | str) -> Any:
    """Reads JSON.

    Args:
      data: Text.

    Returns:
      What it says.

    Raises:
      ValueError: If it is not JSON, or nested too deeply.
    """
    try:
        return json.loads(data)
    except RecursionError as error:
        raise ValueError("nested too deeply to be read") from error
