"""What is at a path and in a folder, and what of it may be meant as data."""

import os
import stat
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from absl import logging

from ldm_jax.errors import DataError, Unreachable
from ldm_jax.reading.faults import answering
from ldm_jax.store import look

# Shadows of all files in unpacked archives of macOS, and what file systems have for
# themselves, which mostly nobody may list.
_OTHERS = ("__MACOSX", "lost+found", "$RECYCLE.BIN", "System Volume Information")

# Files that have no suffix by custom.
_FILES = frozenset(
    "authors changelog citation copying license licence makefile notice readme".split()
)

_Found = TypeVar("_Found")


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


def folders_below(
    folder: str, look: Callable[[str], tuple[Iterable[str], _Found]]
) -> Iterator[tuple[str, _Found]]:
    """Goes through a folder and all below it; links are followed, but not for ever.

    Args:
      folder: Its path.
      look: Path of a folder -> (names of the folders in it, what else was found);
        called once for each.

    Yields:
      (path, what else was found), each before those in it. Of two paths that lead to
      one folder it is the first by name.
    """
    seen, waiting = set(), [folder]
    while waiting:
        path = waiting.pop()
        real = os.path.realpath(path)
        # A link that leads back up would be walked for ever.
        if real in seen:
            continue
        seen.add(real)
        names, found = look(path)
        waiting += [os.path.join(path, name) for name in sorted(names, reverse=True)]
        yield path, found
