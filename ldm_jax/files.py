"""Writes files atomically, and explains write errors in one line."""

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

# Errors of a full disk, a quota, or a limit on the size of files.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

_FORBIDDEN = (errno.EROFS, errno.EACCES, errno.EPERM)


def check_outdir(path: Path) -> None:
    """Checks, without creating anything, that a folder can be written to.

    Args:
      path: Value of `--outdir`; the folder need not exist.

    Raises:
      ConfigError: If the path, or a part of it, is a file.
      DiskError: If the folder is not writable.
    """
    place = as_path(path)
    if is_remote(place):
        # Whether a store is writable shows only at the first write.
        if place.is_file():
            raise ConfigError(f"--outdir={path} is an object: give another one")
        return
    _check_folder(place, f"--outdir={path}")


def check_outfile(path: Path, flag: str) -> None:
    """Checks, without creating anything, that a file can be written.

    Args:
      path: Path of the file; neither it nor its folder need exist.
      flag: Flag with this value, for the message.

    Raises:
      ConfigError: If the path exists but is not a file, or a part of it is a file.
      DiskError: If the folder is not writable.
    """
    place = as_path(path)
    # Whether a store is writable shows only at the first write.
    if is_remote(place):
        return
    if place.exists() and not place.is_file():
        what = "a folder" if place.is_dir() else "no ordinary file"
        raise ConfigError(f"--{flag}={path} is {what}: give the name of a file")
    _check_folder(place.parent, f"--{flag}={path}")


def _check_folder(place, given):
    """Raises if a folder cannot be created or is not writable."""
    # A broken link counts as existing: no folder can be created in its place.
    while not os.path.lexists(place):
        place = place.parent
    if not place.is_dir():
        raise ConfigError(f"{given}: {place} is no folder: give another one")
    if not os.access(place, os.W_OK | os.X_OK):
        raise DiskError(f"{given}: {place} may not be written to: give another")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[pathlib.Path]:
    """Yields a temporary file to write, which replaces `path` at the end.

    So a reader sees the old file or the new one, never a partial one, and a failure
    leaves nothing behind that would hinder another attempt.

    Args:
      path: Path of the file; missing folders are created.

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
    # A name that no other process uses, on this host or another.
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
    """Writes a file atomically.

    Args:
      path: Path of the file; missing folders are created.
      data: Its content.

    Raises:
      DiskError: If it cannot be written.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file, indented, atomically.

    Args:
      path: Path of the file; missing folders are created.
      value: Its content.

    Raises:
      DiskError: If it cannot be written.
    """
    write_bytes(path, (json.dumps(value, indent=2) + "\n").encode())


@contextlib.contextmanager
def drafted(target: Path) -> Iterator[pathlib.Path]:
    """Yields a path in a draft folder, whose files move to the target at the end.

    The draft folder is beside the target, on the same disk; it is removed if something
    fails, so that the same command can be run again.

    Args:
      target: File or folder to write; other files may be written beside it.

    Yields:
      Path of the same name, in the draft folder.

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
            # The target last: if it exists, everything is complete.
            paths = sorted(folder.iterdir(), key=lambda path: path.name == target.name)
            for path in paths:
                os.replace(path, target.parent / path.name)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _sent(target):
    """Yields a path on the local disk, where all files are uploaded at the end."""
    with writing(target), tempfile.TemporaryDirectory(prefix="ldm_jax") as name:
        folder = pathlib.Path(name)
        yield folder / target.name
        # Within a folder the top-level files go last, such as a checkpoint's marker.
        found = [path.relative_to(folder) for path in files_below(folder)]
        inside = lambda path: path.parts[0] == target.name  # noqa: E731
        for path in sorted(found, key=lambda path: (inside(path), -len(path.parts))):
            send(folder / path, target.parent / path)


@contextlib.contextmanager
def _alone(folder, target):
    """Makes an empty folder, locked against other commands meanwhile."""
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        # The lock is released when its process ends, however it ends.
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
    place: Path, kept: str = "what was written before is intact"
) -> Iterator[None]:
    """Turns write errors within the block into a DiskError of one line.

    Args:
      place: File or folder that is written.
      kept: What is not lost, for the message.

    Yields:
      Nothing.

    Raises:
      DiskError: If the file system or store refuses to write.
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
                "bucket is there and may be written to, and the same command continues"
            ) from error
        if number is None:
            raise
        raise DiskError(
            f"cannot write {place}: {os.strerror(number)}; {kept}: {_advice(number)}"
        ) from error


def disk_errno(error: BaseException) -> int | None:
    """Returns the errno of an error that comes from a file system.

    Args:
      error: Any error; of C++ libraries the message is searched.

    Returns:
      The errno, or None for other errors.
    """
    if isinstance(error, OSError):
        return error.errno
    found = re.search(r"os_error_code='(\d+)'", str(error))
    if found:
        return int(found[1])
    text = str(error)
    return next((n for n in (*_FULL, *_FORBIDDEN) if os.strerror(n) in text), None)


def _advice(number):
    """Advice on an error of a file system."""
    if number in _FULL:
        return "make room, and the same command continues"
    if number in _FORBIDDEN:
        return "see that it may be written to, and the same command continues"
    return "give another place"


def move(source: Path, target: Path) -> None:
    """Renames a file, replacing the target if it exists.

    Args:
      source: Path of the file.
      target: Its new path, on the same disk or store.
    """
    if is_remote(target):
        system, names = file_system(target), (os.fspath(source), os.fspath(target))
        system.copy(*names)
        # If a response is lost, the library retries, and the file is already gone.
        with contextlib.suppress(FileNotFoundError):
            system.rm_file(names[0])
    else:
        os.replace(source, target)


def remove_folder(folder: Path) -> None:
    """Removes a folder and its contents; on a local disk errors are ignored.

    Args:
      folder: Its path; it need not exist.
    """
    if is_remote(folder):
        remove = lambda path: path.unlink(missing_ok=True)  # noqa: E731
        for _ in for_each(remove, files_below(folder), folder):
            pass
    else:
        shutil.rmtree(folder, ignore_errors=True)


def open_log(path: Path, part: int | None = None) -> "LogFile | StoreLog":
    """Opens a file for appending.

    Args:
      path: Path of the file.
      part: In a store, bytes after which a new file is started, see `StoreLog`.

    Returns:
      A LogFile; for a store a StoreLog.
    """
    path = as_path(path)
    return StoreLog(path, part) if is_remote(path) else LogFile(path)


class LogFile:
    """A file to append to that never raises, as a log must not end a run.

    What cannot be written is buffered, and written once there is room again.

    Attributes:
      path: Path of the file.
      failure: Why the last attempt to write failed, or None.
    """

    def __init__(self, path: Path, most: int = 2**24) -> None:
        """Creates the log without writing yet.

        Args:
          path: Path of the file; missing folders are created.
          most: Size of the buffer in bytes; once it is full, new data are dropped.
        """
        self.path, self.failure = pathlib.Path(path), None
        self._pending, self._most = bytearray(), most

    def write(self, data: bytes) -> None:
        """Buffers data to append.

        Args:
          data: Bytes.
        """
        if len(self._pending) < self._most:
            self._pending += data

    def flush(self, now: bool = True) -> None:
        """Appends the buffered data, as far as there is room.

        Args:
          now: Unused; it only matters in a store.
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
    """Returns how many files may be held open for one purpose.

    Args:
      most: How many are useful.

    Returns:
      `most`, capped at a quarter of the process's limit of open files, but not below 8.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return most if soft < 0 else min(most, max(8, soft // 4))
