"""Finds files by a pattern, like `glob`, but raises if a folder cannot be listed."""

import fnmatch
import glob
import os

from ldm_jax.reading import (
    folders_below,
    is_folder,
    is_kept,
    names_in,
    state_of,
    warn_if_lost,
)

# Any number of nested folders.
_ANY = "**"


def find_files(pattern: str) -> list[str]:
    """Finds the paths that match a pattern; follows links, warns of broken ones.

    Args:
      pattern: Absolute path with `*`, `?` and `[...]` in the names of files and
        folders, and `**` for any number of folders, at its end for all files below.

    Returns:
      Paths, sorted. Names that begin with a dot only match patterns that do, too.

    Raises:
      DataError: If a folder on the way cannot be listed.
      Unreachable: If the disk does not answer.
    """
    parts = pattern.split(os.sep)
    named = 1
    while named < len(parts) - 1 and not _is_pattern(parts[named]):
        named += 1
    return find_below(os.sep.join(parts[:named]) or os.sep, *parts[named:])


def find_below(folder: str, *parts: str) -> list[str]:
    """Finds the paths that match a pattern below a folder; see `find_files`.

    Args:
      folder: Path, not a pattern.
      *parts: Patterns of the names of nested folders, the last one of files.

    Returns:
      Paths, sorted.

    Raises:
      DataError: If a folder cannot be listed.
      Unreachable: If the disk does not answer.
    """
    found = [folder]
    for part in parts:
        folders = list(filter(_leads_on, found))
        found = [path for folder in folders for path in _step(folder, part)]
    if parts and parts[-1] == _ANY:
        found = [path for folder in found for path in _files_in(folder)]
    return sorted(dict.fromkeys(found))


def _leads_on(path):
    if is_folder(path):
        return True
    warn_if_lost(path)
    return False


def _files_in(folder):
    inside = {*names_in(folder)} - {*names_in(folder, folders=True)}
    return [os.path.join(folder, name) for name in filter(is_kept, inside)]


def _is_pattern(part):
    return part == _ANY or glob.has_magic(part)


def _step(folder, part):
    """Paths in a folder that match one part of a pattern."""
    if part == _ANY:
        return _all_below(folder)
    if not _is_pattern(part):
        path = os.path.join(folder, part)
        return [path] if state_of(path) else []
    names = [n for n in names_in(folder) if part.startswith(".") or is_kept(n)]
    return [os.path.join(folder, name) for name in fnmatch.filter(names, part)]


def _all_below(folder):
    """A folder and all folders below it."""

    def look(path):
        return filter(is_kept, names_in(path, folders=True)), None

    return [path for path, _ in folders_below(folder, look)]
