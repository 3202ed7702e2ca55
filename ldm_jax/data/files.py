"""Files from strangers, read whole: ordinary files alone, and within a limit."""

import contextlib
import json
import os
import stat
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np

from ldm_jax.annotations import Shaped
from ldm_jax.images import require_memory

# Bytes that a file of text beside an image may have.
MAX_TEXT = 2**24

# Numbers, truth values and text; no objects, which would be unpickled, no records.
_KINDS = "biufSU"


def read_file(path: str | os.PathLike, most: int | None = None) -> bytes:
    """Reads a file.

    Args:
      path: Its path.
      most: Largest size in bytes; None is the memory that an image may take, see
        `images.memory_limit`.

    Returns:
      Its bytes.

    Raises:
      OSError: If it cannot be opened or read.
      ValueError: If it is larger, or a pipe or a device, which may never end.
    """
    with open_file(path, most) as file:
        # A file may grow meanwhile.
        return file.read(os.fstat(file.fileno()).st_size)


@contextlib.contextmanager
def open_file(path: str | os.PathLike, most: int | None = None) -> Iterator[BinaryIO]:
    """Opens a file to read.

    Args:
      path: Its path.
      most: As for `read_file`.

    Yields:
      The file.

    Raises:
      OSError: If it cannot be opened.
      ValueError: If it is larger, or a pipe or a device, which may never end.
    """
    # Without O_NONBLOCK a pipe waits for someone to write to it.
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    with open(handle, "rb") as file:
        status, name = os.fstat(handle), os.path.basename(path)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{name} is a pipe, a device or the like, not a file")
        if most is None:
            require_memory(status.st_size, f"the bytes of {name}")
        elif status.st_size > most:
            raise ValueError(
                f"{name} has {status.st_size:,} bytes, and at most {most:,} are read"
            )
        yield file


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
    if not os.path.isfile(path):
        os.stat(path)
        raise ValueError("not a file")
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
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
