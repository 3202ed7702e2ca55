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
from ldm_jax.store import as_path, is_remote, local_copy, size_of

# Bytes that a file of text may have.
MAX_TEXT = 2**24

# Largest size in bytes, or a function of (bytes, what they are) that refuses too many,
# as `images.require_memory`.
Limit = int | Callable[[int, str], None]

# Numbers, truth values and text; no objects, which would be unpickled, no records.
_KINDS = "biufSU"


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
    """
    if is_remote(path):
        path = as_path(path)
        _check_size(path.name, size_of(path), most)
        with io.BytesIO(path.read_bytes()) as file:
            yield file
        return
    # Without O_NONBLOCK a pipe waits for someone to write to it.
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    with open(handle, "rb") as file:
        status, name = os.fstat(handle), os.path.basename(path)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{name} is a pipe, a device or the like, not a file")
        _check_size(name, status.st_size, most)
        yield file


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
    """
    path = local_copy(path)
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
