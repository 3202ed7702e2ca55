"""Tells a store, disk or mount (NFS, FUSE) that does not answer from a damaged file.

An input/output error may be either: of a lost disk, or of some sectors of a file on an
intact one. So files beside that file are read before this is decided.
"""

import contextlib
import errno
import itertools
import os
import stat
from collections.abc import Iterator

from ldm_jax.errors import DiskError, Unreachable

# Error numbers of the system if a disk or a mount does not answer.
SILENT = frozenset(
    getattr(errno, name)
    for name in (
        *("EIO", "ESTALE", "ETIMEDOUT", "ENOTCONN", "EHOSTDOWN", "EHOSTUNREACH"),
        *("ECONNABORTED", "ESHUTDOWN", "EREMOTEIO", "ENODEV"),
    )
    # Not all systems have all of them.
    if hasattr(errno, name)
)

# Libraries in C++ only report the text.
_WORDS = {os.strerror(number): number for number in sorted(SILENT)}

# The text for a missing device, as of a special file, which contains that of ENODEV.
_OTHER_WORDS = os.strerror(errno.ENXIO)

# Maximum number of errors in a chain of causes.
_MOST_CAUSES = 16

# Size in bytes above which other parts of a file are tried, and bytes of one read.
_LARGE, _BLOCK = 2**26, 2**20

# (device, file, time of its last change) -> byte that could not be read, so that a
# large file is not read up to it for each of its examples.
_bad_places = {}

# Maximum entries of a folder to search for files beside one, and files to try.
_MOST_ENTRIES, _MOST_FILES = 256, 8


def raise_if_silent(what: str | os.PathLike, error: BaseException) -> None:
    """Raises Unreachable if an error means that a store, disk or mount does not answer.

    Files on it do not count as damaged then. An input/output error is taken for damage
    of one file if its path is known, it cannot be read again, and files beside it can.

    Args:
      what: What was read, for the message: its path if it has one.
      error: The error; libraries in C++ only report the system's text.

    Raises:
      Unreachable: If it means that.
    """
    for each in causes_of(error):
        if isinstance(each, Unreachable):
            raise each
    cause, number = _silence_in(error)
    if number is None:
        return
    path = getattr(cause, "filename", None)
    path = what if path is None or isinstance(path, int) else path
    if number == errno.EIO and isinstance(path, str | bytes | os.PathLike):
        if _is_damaged(os.fsdecode(path)):
            # Later callers need not check again, nor know the path.
            cause.is_of_one_file = True
            return
    raise Unreachable(
        f"{what}: {os.strerror(number)}: what it lies on does not answer; once it "
        "does, the same command continues"
    ) from error


def is_silent(error: BaseException) -> bool:
    """Returns whether an error may mean that a store, disk or mount does not answer.

    Args:
      error: The error.

    Returns:
      Whether it may; other files are not checked.
    """
    return _silence_in(error)[1] is not None


def is_of_one_file(error: BaseException) -> bool:
    """Returns whether an error was found to be damage of one file on a working disk.

    Args:
      error: An error for which `raise_if_silent` did not raise, or one caused by it.

    Returns:
      Whether it was.
    """
    return any(getattr(each, "is_of_one_file", False) for each in causes_of(error))


def causes_of(error: BaseException | None) -> Iterator[BaseException]:
    """Iterates over an error and the chain of its causes, up to a limit.

    Args:
      error: The error, or None.

    Yields:
      Errors.
    """
    for _ in range(_MOST_CAUSES):
        if error is None:
            return
        yield error
        error = error.__cause__


def _silence_in(error):
    """(the error which means that a disk does not answer, its number), or Nones."""
    chain = list(causes_of(error))
    if is_of_one_file(error) or any(isinstance(each, DiskError) for each in chain):
        return None, None
    for error in chain:
        if isinstance(error, OSError) and error.errno is not None:
            if error.errno in SILENT:
                return error, error.errno
            continue
        text = str(error).replace(_OTHER_WORDS, "")
        found = next((number for words, number in _WORDS.items() if words in text), 0)
        if found:
            return error, found
    return None, None


def _is_damaged(path):
    """Whether a file cannot be read while others on the same disk can."""
    path = os.path.realpath(path)
    try:
        state = os.lstat(path)
        if _can_be_read(path, state):
            # The disk had failed, and works again.
            return False
        beside = _beside(path, state)
        return any(map(_answers, itertools.islice(beside, _MOST_FILES)))
    except (OSError, ValueError):
        # Not a path, or nothing around it answers.
        return False


def _can_be_read(path, state):
    """Whether a file can be read completely, or a folder listed."""
    key, start = (state.st_dev, state.st_ino, state.st_mtime_ns), None
    try:
        if stat.S_ISDIR(state.st_mode):
            with os.scandir(path) as entries:
                for _ in entries:
                    pass
            return True
        if not stat.S_ISREG(state.st_mode):
            return False
        with _opened(path) as number:
            starts = range(0, state.st_size, _BLOCK)
            for start in itertools.chain([_bad_places.get(key, 0)], starts):
                os.pread(number, _BLOCK, start)
        return True
    except OSError:
        if start is not None:
            _bad_places[key] = start
        return False


def _beside(path, state):
    """Yields (path, byte) of other parts of a file, of files beside it, and nearby."""
    if stat.S_ISREG(state.st_mode) and state.st_size > _LARGE:
        for place in (0, state.st_size // 2, state.st_size - 1):
            yield path, place
    folder = os.path.dirname(path)
    above = [os.path.dirname(folder)]
    if stat.S_ISDIR(state.st_mode):
        above.insert(0, folder)
    folders = [near for one in above for near in _entries(one, state, folders=True)]
    for near in (folder, *(near for near in folders if near not in (path, folder))):
        # One file of each neighbouring folder is enough.
        most = _MOST_FILES // 2 if near == folder else 1
        names = (name for name in _entries(near, state, folders=False) if name != path)
        for name in itertools.islice(names, most):
            yield name, 0


def _entries(folder, state, folders):
    """Paths of files, or of folders, in a folder, on the same disk, without links."""
    try:
        with os.scandir(folder) as entries:
            for entry in itertools.islice(entries, _MOST_ENTRIES):
                kind = entry.is_dir if folders else entry.is_file
                if kind(follow_symlinks=False):
                    own = entry.stat(follow_symlinks=False)
                    if own.st_dev == state.st_dev and own.st_size:
                        yield entry.path
    except OSError:
        return


def _answers(where):
    """Whether a byte of a file can be read."""
    path, place = where
    try:
        with _opened(path) as number:
            return len(os.pread(number, 1, place)) == 1
    except OSError:
        return False


@contextlib.contextmanager
def _opened(path):
    """Opens a file to be read from its disk, not from the page cache."""
    number = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    try:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(number, 0, 0, os.POSIX_FADV_DONTNEED)
        yield number
    finally:
        os.close(number)
