"""Files from strangers, read whole: ordinary files alone, and within a limit."""

import contextlib
import io
import json
import os
import stat
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import numpy as np
from absl import logging

from ldm_jax.annotations import Shaped
from ldm_jax.errors import DataError, Unreachable
from ldm_jax.store import (
    as_path,
    explain_fault,
    is_fault,
    is_remote,
    local_copy,
    look,
    raise_if_silent,
    size_of,
)

# Bytes that a file of text may have.
MAX_TEXT = 2**24

# Largest size in bytes, or a function of (bytes, what they are) that refuses too many,
# as `images.require_memory`.
Limit = int | Callable[[int, str], None]

# (first byte, number of bytes) -> bytes of a file, fewer at its end.
Read = Callable[[int, int], bytes]

# Shadows of all files in unpacked archives of macOS, and what file systems have for
# themselves, which mostly nobody may list.
_OTHERS = ("__MACOSX", "lost+found", "$RECYCLE.BIN", "System Volume Information")

# Files that have no suffix by custom.
_FILES = frozenset(
    "authors changelog citation copying license licence makefile notice readme".split()
)

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


@contextlib.contextmanager
def naming(path: str | os.PathLike) -> Iterator[None]:
    """Has what goes wrong in the block name the file: libraries in C++ do not.

    Args:
      path: The file that is read.

    Yields:
      Nothing.

    Raises:
      ValueError: If it cannot be read.
      Unreachable: If what it lies on does not answer.
    """
    try:
        with answering(path):
            yield
    except (Unreachable, MemoryError):
        raise
    # Of a damaged file libraries raise nearly anything.
    except Exception as error:
        text = getattr(error, "strerror", None) or " ".join(str(error).split())
        if os.fspath(path) in text:
            raise
        raise ValueError(f"{path}: {text or type(error).__name__}") from error


def state_of(path: str | os.PathLike) -> os.stat_result | None:
    """Looks at what a path leads to, as `os.path.exists` does, which hides silence.

    Args:
      path: Its path, on a disk.

    Returns:
      What the system says of it; None where nothing is there.

    Raises:
      DataError: If it may not be looked at, or is damaged.
      Unreachable: If the disk does not answer.
    """
    try:
        with answering(path):
            return look(path)
    except Unreachable:
        raise
    except OSError as error:
        raise DataError(
            f"{path} cannot be looked at: {error.strerror}: see that it may be read"
        ) from error


def is_folder(path: str | os.PathLike) -> bool:
    """Says whether a folder is at a path, as `os.path.isdir`, which hides silence.

    Args:
      path: Its path, on a disk.

    Returns:
      Whether one is.

    Raises:
      DataError: If it may not be looked at, or is damaged.
      Unreachable: If the disk does not answer.
    """
    state = state_of(path)
    return state is not None and stat.S_ISDIR(state.st_mode)


def is_kept(name: str) -> bool:
    """Says whether a file or folder may be one that a user keeps data in.

    Args:
      name: Its name.

    Returns:
      Whether it is neither hidden nor what a system has for itself.
    """
    return not name.startswith(".") and name not in _OTHERS


def may_be_folder(name: str) -> bool:
    """Says whether a name may be a folder's, of a link to what is not there.

    Args:
      name: Name of the link.

    Returns:
      Whether it has neither a suffix, nor is that of a file by custom, as README.
    """
    return not os.path.splitext(name)[1] and name.lower() not in _FILES


def warn_if_lost(path: str) -> None:
    """Names a link that leads nowhere and may have led to a folder.

    Args:
      path: What is no folder.
    """
    name = os.path.basename(path)
    if os.path.islink(path) and may_be_folder(name) and state_of(path) is None:
        logging.warning("%s is passed over: it is a link to what is not there", path)


def names_in(folder: str | os.PathLike, folders: bool = False) -> list[str]:
    """Lists a folder, as `glob` does, which takes one that is silent for empty.

    Args:
      folder: Its path, on a disk.
      folders: Whether only the folders in it are wanted, and links to such; links
        that lead nowhere are named by a warning.

    Returns:
      Names of files and folders in it, sorted.

    Raises:
      DataError: If it cannot be listed, or a link in it may not be looked at.
      Unreachable: If the disk does not answer.
    """
    try:
        with answering(folder), os.scandir(folder) as entries:
            found = list(entries)
    except Unreachable:
        raise
    except OSError as error:
        raise DataError(
            f"{folder} cannot be listed: {error.strerror}: see that it is a folder and "
            "may be read"
        ) from error
    # A link is looked at by itself: what is wrong is said of it, not of the folder.
    return sorted(e.name for e in found if not folders or _is_folder(e))


def _is_folder(entry):
    try:
        found = entry.is_dir()
    except OSError:
        found = is_folder(entry.path)
    if not found and entry.is_symlink():
        warn_if_lost(entry.path)
    return found


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
