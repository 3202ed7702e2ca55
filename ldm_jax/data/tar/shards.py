"""Finds the shards that a name stands for, and their sizes and version stamps."""

import functools
import glob
import os
import re
import stat
from collections.abc import Sequence
from typing import NamedTuple

from absl import logging

from ldm_jax.data.tar.byte_ranges import file_system, reach, side_by_side
from ldm_jax.data.tar.patterns import find_files
from ldm_jax.reading import is_folder, is_kept, names_in, state_of
from ldm_jax.store import is_remote, raise_if_silent

SUFFIX, INDEX = ".tar", ".index"

# Maximum number of shards of one pattern.
_MOST = 10**6

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")

# Keys of a file's version in remote file systems, the most reliable first.
_STAMPS = "etag ETag md5Hash generation mtime LastModified updated created".split()


class Shard(NamedTuple):
    """A tar file.

    Attributes:
      path: Absolute path, or address.
      size: Its size in bytes.
      stamp: Text that changes when the file is rewritten.
    """

    path: str
    size: int
    stamp: str


def find_shards(
    name: str | Sequence[str],
    data_dir: str | os.PathLike | None = None,
    suffix: str = SUFFIX,
) -> list[Shard]:
    """Finds the shards that a name stands for.

    Args:
      name: A tar file, a folder of them, a pattern with `*`, with ranges {000..099} or
        lists {a,b}, or a list of these; local or an address, e.g.
        gs://bucket/{0..9}.tar.
      data_dir: Folder that names are relative to; None for the current one.
      suffix: Suffix of the files in folders.

    Returns:
      The shards, in the order of the names, those of a folder or a pattern sorted.

    Raises:
      ValueError: If there is none, or a named file is missing.
      Unreachable: If their store or disk does not answer.
    """
    names = [name] if isinstance(name, str) else list(name)
    if not names or not all(isinstance(n, str) and n for n in names):
        raise ValueError(
            f"name is empty; give data.name, the path of {suffix[1:]} files, as "
            f"shards/{{00000..00099}}{suffix}"
        )
    paths = []
    for given in names:
        for one in expand(given):
            paths += _listed(_absolute(one, os.fspath(data_dir or "")), suffix)
    # Without duplicates: a shard that is named twice would count twice.
    paths = list(dict.fromkeys(paths))
    return side_by_side(functools.partial(_look, suffix=suffix), paths)


def _absolute(name, data_dir):
    if is_remote(name):
        return name
    if is_remote(data_dir) and not os.path.isabs(name):
        return f"{data_dir.rstrip('/')}/{name}"
    folder = os.path.expanduser(data_dir)
    return os.path.abspath(os.path.join(folder, os.path.expanduser(name)))


def expand(name: str) -> list[str]:
    """Expands ranges and lists in braces, as a shell does.

    Args:
      name: Text such as "a/{000..002}.tar" or "{a,b}.tar".

    Returns:
      All names that it stands for, in order.

    Raises:
      ValueError: If there are too many.
    """
    match = _BRACES.search(name)
    if not match:
        return [name]
    found = _RANGE.fullmatch(match[1])
    if found:
        first, last = map(int, found.groups())
        if abs(last - first) >= _MOST:
            raise ValueError(f"{name} stands for more than {_MOST:,} shards")
        digits = len(found[1]) if found[1].startswith("0") else 0
        step = 1 if last >= first else -1
        words = [f"{n:0{digits}d}" for n in range(first, last + step, step)]
    else:
        words = match[1].split(",")
    ends = expand(name[match.end() :])
    if len(words) * len(ends) > _MOST:
        raise ValueError(f"{name} stands for more than {_MOST:,} shards")
    return [name[: match.start()] + word + end for word in words for end in ends]


def _listed(path, suffix):
    """The files of a folder or a pattern, or the one that is named."""
    if is_remote(path):
        return _listed_remote(path, suffix)
    if is_folder(path):
        there = list(filter(is_kept, names_in(path)))
        found = [os.path.join(path, name) for name in there if name.endswith(suffix)]
        # For example compressed ones, or parts of an interrupted upload.
        others = [n for n in there if f"{suffix}." in n and not n.endswith(INDEX)]
        if found and others:
            logging.warning(
                "%s: %d files do not end in %s and are not read, as %s",
                *(path, len(others), suffix, others[0]),
            )
        return found or _nothing(path, suffix)
    # An existing file of that name is taken, even if it contains pattern characters.
    if state_of(path) or not glob.has_magic(path):
        return [path]
    found = _without_indexes(find_files(path))
    return found or _nothing(path, suffix)


def _without_indexes(paths):
    """Sorts the paths that match a pattern, without indexes beside the shards."""
    return sorted(path for path in paths if not path.endswith(INDEX))


def _listed_remote(path, suffix):
    system, inside = file_system(path)
    scheme = path.partition("://")[0]
    if inside.endswith(suffix) and not glob.has_magic(inside):
        return [path]
    pattern = inside if glob.has_magic(inside) else f"{inside.rstrip('/')}/*{suffix}"
    try:
        found = reach(path, lambda: system.glob(pattern))
    except FileNotFoundError as error:
        raise ValueError(_unread(path, error, suffix)) from error
    found = [address(scheme, one) for one in _without_indexes(found)]
    return found or _nothing(path, suffix)


def address(scheme: str, path: str) -> str:
    """Returns the address of a path or address that a file system lists.

    Args:
      scheme: The part of the address before "://".
      path: Path or address, as listed.

    Returns:
      The address.
    """
    if is_remote(path):
        return path
    return f"{scheme}://{path if scheme == 'file' else path.lstrip('/')}"


def _nothing(path, suffix):
    raise ValueError(f"no {suffix} files in {path}; data.name names {suffix[1:]} files")


def _unread(path, error, suffix):
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, FileNotFoundError):
        text = "there is no such file"
    elif isinstance(error, OSError) and error.strerror:
        text = error.strerror
    return f"cannot read {path}: {text}; data.name names {suffix[1:]} files"


def _look(path, suffix):
    """Looks up the size and stamp of a shard."""
    if is_remote(path):
        system, inside = file_system(path)
        try:
            info = reach(path, lambda: system.info(inside))
        except FileNotFoundError as error:
            raise ValueError(_unread(path, error, suffix)) from error
        size = info.get("size")
        if info.get("type") == "directory" or size is None:
            raise ValueError(f"{path} is no file of which the store says the size")
        stamps = [f"{key} {info[key]}" for key in _STAMPS if info.get(key)]
        return Shard(path, int(size), stamps[0] if stamps else "")
    try:
        status = os.stat(path)
    except OSError as error:
        raise_if_silent(path, error)
        raise ValueError(_unread(path, error, suffix)) from error
    if stat.S_ISDIR(status.st_mode):
        raise ValueError(f"{path} is a folder; data.name names {suffix[1:]} files")
    return Shard(path, status.st_size, f"mtime {status.st_mtime_ns}")
