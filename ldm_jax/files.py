"""Writes files whole or not at all, and says in one line why one cannot be written."""

import contextlib
import errno
import fcntl
import json
import os
import pathlib
import re
import resource
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from typing import Any

from ldm_jax.errors import ConfigError, DiskError, UserError
from ldm_jax.store import (
    StoreLog,
    as_path,
    explain_fault,
    file_system,
    files_below,
    for_each,
    is_fault,
    is_remote,
    send,
)

Path = str | os.PathLike

# What a disk that is full says, or a quota, or a limit on the size of files.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

_FORBIDDEN = (errno.EROFS, errno.EACCES, errno.EPERM)


def check_outdir(path: Path) -> None:
    """Finds out, without making anything, whether a folder may be written.

    Args:
      path: What `--outdir` gives, which need not be there.

    Raises:
      ConfigError: If there is a file in its place, or on the way to it.
      DiskError: If nothing may be written there.
    """
    place = as_path(path)
    if is_remote(place):
        # What may be written there shows at the first file.
        if place.is_file():
            raise ConfigError(f"--outdir={path} is an object: give another one")
        return
    _check_folder(place, f"--outdir={path}")


def check_outfile(path: Path, flag: str) -> None:
    """Finds out, without making anything, whether a file may be written.

    Args:
      path: Where it is to be; it need not be there, nor its folder.
      flag: Flag that gives it, for the message.

    Raises:
      ConfigError: If there is something else in its place, or a file on the way to it.
      DiskError: If nothing may be written there.
    """
    place = as_path(path)
    # What may be written to a store shows at the first file.
    if is_remote(place):
        return
    if place.exists() and not place.is_file():
        what = "a folder" if place.is_dir() else "no ordinary file"
        raise ConfigError(f"--{flag}={path} is {what}: give the name of a file")
    _check_folder(place.parent, f"--{flag}={path}")


def _check_folder(place, given):
    """Refuses a folder that cannot be made, or in which nothing may be written."""
    # What a link leads to need not be there, but the link is in the way.
    while not os.path.lexists(place):
        place = place.parent
    if not place.is_dir():
        raise ConfigError(f"{given}: {place} is no folder: give another one")
    if not os.access(place, os.W_OK | os.X_OK):
        raise DiskError(f"{given}: {place} may not be written to: give another")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[pathlib.Path]:
    """Gives a file to write, which takes its place once all is written.

    So a reader sees the old file or the new one, never a half, and what fails leaves
    nothing in the way of another attempt.

    Args:
      path: Where the file is to be; missing folders are made.

    Yields:
      Path of a temporary file beside it, with the same suffix; for a file in a store,
      on the local disk.

    Raises:
      DiskError: If it cannot be written.
    """
    path = as_path(path)
    if is_remote(path):
        with writing(path), tempfile.TemporaryDirectory(prefix="ldm_jax") as folder:
            temporary = pathlib.Path(folder) / path.name
            yield temporary
            send(temporary, path)
        return
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
def drafted(target: Path) -> Iterator[pathlib.Path]:
    """Gives a place to write to, whose files move to the target at the end.

    What is written lies in a folder beside the target, on the same disk; it goes away
    if something fails, so that the same command can be tried again.

    Args:
      target: File or folder that is to be; other files may be written beside it.

    Yields:
      Path of the same name, in the folder of the draft.

    Raises:
      DiskError: If it cannot be written.
    """
    target = as_path(target)
    if is_remote(target):
        with _sent(target) as draft:
            yield draft
        return
    folder = target.parent / f".{target.name}.partial"
    with writing(target), _alone(folder, target):
        try:
            yield folder / target.name
            # The target last: where it is, all of it is.
            paths = sorted(folder.iterdir(), key=lambda path: path.name == target.name)
            for path in paths:
                os.replace(path, target.parent / path.name)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _sent(target):
    """Gives a place on the local disk, all of which is sent to a store at the end."""
    with writing(target), tempfile.TemporaryDirectory(prefix="ldm_jax") as name:
        folder = pathlib.Path(name)
        yield folder / target.name
        # In a folder what stands highest comes last, as the mark of a checkpoint does.
        found = [path.relative_to(folder) for path in files_below(folder)]
        inside = lambda path: path.parts[0] == target.name  # noqa: E731
        for path in sorted(found, key=lambda path: (inside(path), -len(path.parts))):
            send(folder / path, target.parent / path)


@contextlib.contextmanager
def _alone(folder, target):
    """Makes an empty folder that no other command writes to meanwhile."""
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        # The lock ends with its process, however that ends.
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(handle)
        raise DiskError(
            f"{target} is being written by another command: wait for it, or give "
            "another place"
        ) from error
    try:
        for left in folder.iterdir():
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        yield
    finally:
        os.close(handle)


@contextlib.contextmanager
def writing(
    place: Path, kept: str = "what was written before is whole"
) -> Iterator[None]:
    """Turns what a disk refuses, in the block, into one line.

    Args:
      place: File or folder that is written.
      kept: What is not lost.

    Yields:
      Nothing.

    Raises:
      DiskError: If the system refuses to write.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        number = disk_errno(error)
        refused = isinstance(error, OSError) or is_fault(error)
        if number is None and refused and is_remote(place):
            raise DiskError(
                f"cannot write {place}: {explain_fault(error)}; {kept}: see that the "
                "bucket is there and may be written to, and the same command goes on"
            ) from error
        if number is None:
            raise
        raise DiskError(
            f"cannot write {place}: {os.strerror(number)}; {kept}: {_advice(number)}"
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


def _advice(number):
    """Says what to do about an error of a file system."""
    if number in _FULL:
        return "make room, and the same command goes on"
    if number in _FORBIDDEN:
        return "see that it may be written to, and the same command goes on"
    return "give another place"


def move(source: Path, target: Path) -> None:
    """Gives a file another name beside it, in place of the file that has it.

    Args:
      source: Path of the file.
      target: Its new path, of the same disk or store.
    """
    if is_remote(target):
        system, names = file_system(target), (os.fspath(source), os.fspath(target))
        system.copy(*names)
        # Where an answer is lost, the library asks again, and it is gone.
        with contextlib.suppress(FileNotFoundError):
            system.rm_file(names[0])
    else:
        os.replace(source, target)


def remove_folder(folder: Path) -> None:
    """Removes a folder and all that is in it, as far as that can be done.

    Args:
      folder: Its path; it need not be there.
    """
    if is_remote(folder):
        remove = lambda path: path.unlink(missing_ok=True)  # noqa: E731
        for _ in for_each(remove, files_below(folder), folder):
            pass
    else:
        shutil.rmtree(folder, ignore_errors=True)


def open_log(path: Path, part: int | None = None) -> "LogFile | StoreLog":
    """Opens a file that is appended to.

    Args:
      path: Where it is to be.
      part: In a store, bytes after which it goes on in another file, see `StoreLog`.

    Returns:
      A LogFile, or what takes its place in a store.
    """
    path = as_path(path)
    return StoreLog(path, part) if is_remote(path) else LogFile(path)


class LogFile:
    """A file that is appended to and never raises: a log is not worth a run.

    What cannot be written waits for room, so that the file is whole again once there is
    some.

    Attributes:
      path: Where it is.
      failure: Why the last attempt to write failed, or None.
    """

    def __init__(self, path: Path, most: int = 2**24) -> None:
        """Writes nothing yet.

        Args:
          path: Where it is to be; missing folders are made.
          most: Bytes that wait at most; what comes beyond is dropped.
        """
        self.path, self.failure = pathlib.Path(path), None
        self._pending, self._most = bytearray(), most

    def write(self, data: bytes) -> None:
        """Takes what is to be appended.

        Args:
          data: Bytes.
        """
        if len(self._pending) < self._most:
            self._pending += data

    def flush(self, now: bool = True) -> None:
        """Appends what waits, as far as there is room.

        Args:
          now: Unused: on a disk nothing waits for another time.
        """
        del now
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "ab", buffering=0) as file:
                while self._pending:
                    del self._pending[: file.write(self._pending)]
            self.failure = None
        except OSError as error:
            self.failure = error.strerror

    def close(self) -> None:
        """Flushes."""
        self.flush()


def most_open_files(most: int) -> int:
    """Says how many files may be held open for one purpose.

    Args:
      most: How many are of use.

    Returns:
      So many, or a quarter of what the system allows a process, but 8 at least.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return most if soft < 0 else min(most, max(8, soft // 4))
