"""Writes files whole or not at all, and says in one line why one cannot be written."""

import contextlib
import errno
import json
import os
import pathlib
import re
import uuid
from collections.abc import Iterator
from typing import Any

from ldm_jax.errors import DiskError

Path = str | os.PathLike

# What a disk that is full says, or a quota, or a limit on the size of files.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

_FORBIDDEN = (errno.EROFS, errno.EACCES, errno.EPERM)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[pathlib.Path]:
    """Gives a file to write, which takes its place once all is written.

    So a reader sees the old file or the new one, never a half, and what fails leaves
    nothing in the way of another attempt.

    Args:
      path: Where the file is to be; missing folders are made.

    Yields:
      Path of a temporary file beside it, with the same suffix.

    Raises:
      DiskError: If it cannot be written.
    """
    path = pathlib.Path(path)
    # A name that no other process takes, on this host or another.
    temporary = path.with_name(f"{path.stem}.{uuid.uuid4().hex[:8]}.tmp{path.suffix}")
    with writing(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise


def write_bytes(path: Path, data: bytes) -> None:
    """Writes a file in one move.

    Args:
      path: Where to; missing folders are made.
      data: What it is to hold.

    Raises:
      DiskError: If it cannot be written.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file, indented, in one move.

    Args:
      path: Where to; missing folders are made.
      value: What it is to hold.

    Raises:
      DiskError: If it cannot be written.
    """
    write_bytes(path, (json.dumps(value, indent=2) + "\n").encode())


@contextlib.contextmanager
def writing(place: Path, kept: str = "") -> Iterator[None]:
    """Turns what a disk refuses, in the block, into one line.

    Args:
      place: File or folder that is written.
      kept: What is not lost, and how to go on; "run the same command again" by default.

    Yields:
      Nothing.

    Raises:
      DiskError: If the system refuses to write.
    """
    try:
        yield
    except DiskError:
        raise
    except Exception as error:
        number = disk_errno(error)
        if number is None:
            raise
        raise DiskError(
            f"cannot write {place}: {os.strerror(number)}; "
            + advice(number, kept or "run the same command again")
        ) from error


def disk_errno(error: BaseException) -> int | None:
    """Finds out whether an error comes from a file system.

    Args:
      error: Any error; libraries in C++ say it in words.

    Returns:
      The system's number of the error, or None.
    """
    if isinstance(error, OSError):
        return error.errno
    found = re.search(r"os_error_code='(\d+)'", str(error))
    if found:
        return int(found[1])
    text = str(error)
    return next((n for n in (*_FULL, *_FORBIDDEN) if os.strerror(n) in text), None)


def advice(number: int, then: str) -> str:
    """Says what to do about an error of a file system.

    Args:
      number: The system's number of the error.
      then: What to do after that.

    Returns:
      The end of a sentence.
    """
    if number in _FULL:
        return f"make room, and {then}"
    if number in _FORBIDDEN:
        return f"see that it may be written to, and {then}"
    return f"mend that or give another place, and {then}"
