"""What does not answer is not damaged: a store, a disk or a mount, as of NFS or FUSE.

An input/output error may be either: of a disk that has gone, or of some sectors of a
file on one that is well. So what lies beside the file is read before that is decided.
"""

import contextlib
import errno
import itertools
import os
import stat
from collections.abc import Iterator

from ldm_jax.errors import DiskError, Unreachable

# What the system says where a disk does not answer, or a mount.
SILENT = frozenset(
    getattr(errno, name)
    for name in (
        *("EIO", "ESTALE", "ETIMEDOUT", "ENOTCONN", "EHOSTDOWN", "EHOSTUNREACH"),
        *("ECONNABORTED", "ESHUTDOWN", "EREMOTEIO", "ENODEV"),
    )
    # Not all systems know all of them.
    if hasattr(errno, name)
)

# Libraries in C++ give the words alone.
_WORDS = {os.strerror(number): number for number in sorted(SILENT)}

# A device that is not there, as of a special file; it has words of one that is silent.
_OTHER_WORDS = os.strerror(errno.ENXIO)

# Errors that one error may come of.
_MOST_CAUSES = 16

# Bytes of a file that has other parts to look at, and of one read.
_LARGE, _BLOCK = 2**26, 2**20

# (device, file, time of its last change) -> byte that could not be read, so that what
# is large is not read up to it for each of its examples.
_bad_places = {}

# Entries of a folder that are looked at for files beside one, and files that are tried.
_MOST_ENTRIES, _MOST_FILES = 256, 8


def raise_if_silent(what: str | os.PathLike, error: BaseException) -> None:
    """Raises an error of its own where a store, a disk or a mount does not answer.

    Nothing is said then of the files on it, which are not damaged. An input/output
    error is a file's own where what is named is its path, it cannot be read once more,
    and files beside it can.

    Args:
      what: What was read, for the message: its path where it has one.
      error: What was raised; libraries in C++ say it in words.

    Raises:
      Unreachable: If it comes of that.
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
            # Whoever is told of it next need not look again, nor know the path.
            cause.is_of_one_file = True
            return
    raise Unreachable(
        f"{what}: {os.strerror(number)}: what it lies on does not answer; once it "
        "does, the same command goes on"
    ) from error


def is_silent(error: BaseException) -> bool:
    """Says whether an error may be of what does not answer, without looking further.

    Args:
      error: What was raised.

    Returns:
      Whether it may.
    """
    return _silence_in(error)[1] is not None


def is_of_one_file(error: BaseException) -> bool:
    """Says whether an error was found to be a file's own, whose disk answers.

    Args:
      error: What `raise_if_silent` has let pass, or came of that.

    Returns:
      Whether it was.
    """
    return any(getattr(each, "is_of_one_file", False) for each in causes_of(error))


def causes_of(error: BaseException | None) -> Iterator[BaseException]:
    """Goes through an error and those that it comes of, as far as is sensible.

    Args:
      error: What was raised; None for nothing.

    Yields:
      Errors.
    """
    for _ in range(_MOST_CAUSES):
        if error is None:
            return
        yield error
        error = error.__cause__


def _silence_in(error):
    """(the error that says of a disk that it does not answer, number), or Nones."""
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
    """Whether a file cannot be read, and others can on the same disk."""
    path = os.path.realpath(path)
    try:
        state = os.lstat(path)
        if _can_be_read(path, state):
            # It was the disk, and that is back.
            return False
        beside = _beside(path, state)
        return any(map(_answers, itertools.islice(beside, _MOST_FILES)))
    except (OSError, ValueError):
        # Neither a path, nor anything around it that answers.
        return False


def _can_be_read(path, state):
    """Whether all of a file can be read, up to the first error, or a folder listed."""
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
    """(path, byte) of a file's other parts, of files of its folder, of folders near."""
    if stat.S_ISREG(state.st_mode) and state.st_size > _LARGE:
        for place in (0, state.st_size // 2, state.st_size - 1):
            yield path, place
    folder = os.path.dirname(path)
    above = [os.path.dirname(folder)]
    if stat.S_ISDIR(state.st_mode):
        above.insert(0, folder)
    folders = [near for one in above for near in _entries(one, state, folders=True)]
    for near in (folder, *(near for near in folders if near not in (path, folder))):
        # One of each is enough of the folders beside that of the file.
        most = _MOST_FILES // 2 if near == folder else 1
        names = (name for name in _entries(near, state, folders=False) if name != path)
        for name in itertools.islice(names, most):
            yield name, 0


def _entries(folder, state, folders):
    """Paths of the files of a folder, or of its folders, of the same disk; no links."""
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
    """Opens a file to be read from its disk, not from memory."""
    number = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    try:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(number, 0, 0, os.POSIX_FADV_DONTNEED)
        yield number
    finally:
        os.close(number)
