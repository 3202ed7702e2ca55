"""The status of paths, the names in folders, and which of them may be data."""

import os
import stat
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from absl import logging

from ldm_jax.errors import DataError, Unreachable
from ldm_jax.reading.faults import answering
from ldm_jax.store import look

# Shadows of all files in unpacked archives of macOS, and folders that belong to file
# systems, which users mostly may not list.
_OTHERS = ("__MACOSX", "lost+found", "$RECYCLE.BIN", "System Volume Information")

# Names of files that usually have no suffix.
_FILES = frozenset(
    "authors changelog citation copying license licence makefile notice readme".split()
)

_Found = TypeVar("_Found")


def state_of(path: str | os.PathLike) -> os.stat_result | None:
    """Returns the status of a path; unlike `os.path.exists`, raises errors of its disk.

    Args:
      path: Path on a disk.

    Returns:
      Its status, as of `os.stat`; None if nothing is there.

    Raises:
      DataError: If access is denied, or it is damaged.
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
    """Returns whether a path is a folder; unlike `os.path.isdir`, raises disk errors.

    Args:
      path: Path on a disk.

    Returns:
      Whether it is.

    Raises:
      DataError: If access is denied, or it is damaged.
      Unreachable: If the disk does not answer.
    """
    state = state_of(path)
    return state is not None and stat.S_ISDIR(state.st_mode)


def is_kept(name: str) -> bool:
    """Returns whether a file or folder may contain the user's data.

    Args:
      name: Its name.

    Returns:
      Whether it is neither hidden nor one of the system.
    """
    return not name.startswith(".") and name not in _OTHERS


def may_be_folder(name: str) -> bool:
    """Returns whether a broken link may have led to a folder, by its name.

    Args:
      name: Name of the link.

    Returns:
      Whether it has no suffix and is not a usual name of a file, such as README.
    """
    return not os.path.splitext(name)[1] and name.lower() not in _FILES


def warn_if_lost(path: str) -> None:
    """Warns of a broken link that may have led to a folder.

    Args:
      path: Path that is not a folder.
    """
    name = os.path.basename(path)
    if os.path.islink(path) and may_be_folder(name) and state_of(path) is None:
        logging.warning("%s is passed over: it is a link to what is not there", path)


def names_in(folder: str | os.PathLike, folders: bool = False) -> list[str]:
    """Lists a folder; unlike `glob`, raises an error if it cannot be listed.

    Args:
      folder: Its path, on a disk.
      folders: Whether to list only the folders in it, and links to folders, and warn of
        broken links.

    Returns:
      Names of files and folders in it, sorted.

    Raises:
      DataError: If it cannot be listed, or access to the target of a link is denied.
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
    # Outside of the block, so that the error of a link names the link, not the folder.
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
    """Walks through a folder and all folders below it; follows links, without cycles.

    Args:
      folder: Its path.
      look: Path of a folder -> (names of its sub-folders, any other result); called
        once for each.

    Yields:
      (path, the other result), each before its sub-folders. Of two paths to the same
      folder only the first by name.
    """
    seen, waiting = set(), [folder]
    while waiting:
        path = waiting.pop()
        real = os.path.realpath(path)
        # A link to a parent folder would be followed endlessly.
        if real in seen:
            continue
        seen.add(real)
        names, found = look(path)
        waiting += [os.path.join(path, name) for name in sorted(names, reverse=True)]
        yield path, found
