"""Paths on a local disk or in an object store, made from what a user gives.

Local paths are those of `pathlib`, without overhead; etils, fsspec and gcsfs are only
imported for addresses. The store is accessed through epath's own file system, so that
Orbax and everything else here share one connection.
"""

import concurrent.futures
import functools
import itertools
import logging
import os
import pathlib
import shutil
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from ldm_jax.errors import ConfigError

# A path of either kind: `pathlib.Path`, or `epath.Path` for an address.
Place = Any

_SCHEME = "gs://"

# Concurrent requests; each takes a store some hundredths of a second.
_THREADS = 16

# Marks of a store's errors: their library, or words of TensorStore.
_LIBRARIES = ("gcsfs", "google", "aiohttp", "requests", "urllib3")
_WORDS = (
    "UNAUTHENTICATED",
    "PERMISSION_DENIED",
    "UNAVAILABLE",
    "DEADLINE_EXCEEDED",
    "CURL error",
)


def is_remote(path: str | os.PathLike) -> bool:
    """Returns whether a path is an address, e.g. gs://bucket/name.

    Args:
      path: Path from the user, or a Place.

    Returns:
      Whether it is.
    """
    return "://" in os.fspath(path)


def as_path(path: str | os.PathLike) -> Place:
    """Makes a path object from a user's path; `~` is expanded.

    Args:
      path: Path, or address that begins with gs://.

    Returns:
      `pathlib.Path`, or `epath.Path` for an address.

    Raises:
      ConfigError: If it is an address of another kind, or the library is missing.
    """
    text = os.fspath(path)
    if not is_remote(text):
        return pathlib.Path(os.path.expanduser(text))
    if not text.startswith(_SCHEME) or not text.removeprefix(_SCHEME).strip("/"):
        raise ConfigError(
            f"{text}: give a path, or an address of the kind {_SCHEME}bucket/name"
        )
    file_system(text)
    return _path_class()(text)


def local_only(path: str | os.PathLike, what: str, advice: str) -> Place:
    """Makes a path object of a path that must be on a local disk.

    Args:
      path: Path from the user.
      what: Its flag or config key, for the message.
      advice: What to do instead, for the message.

    Returns:
      `pathlib.Path`.

    Raises:
      ConfigError: If it is an address.
    """
    if is_remote(path):
        raise ConfigError(f"{what}={path} must lie on a local disk: {advice}")
    return as_path(path)


def file_system(path: str | os.PathLike) -> Any:
    """Returns the file system of an address, the one that epath and Orbax use.

    Args:
      path: Address.

    Returns:
      An fsspec file system.

    Raises:
      ConfigError: If the library for it is missing.
    """
    return _file_system(os.fspath(path).partition("://")[0])


@functools.cache
def _file_system(scheme):
    # Without this, epath would use TensorFlow if it is installed.
    os.environ.setdefault("EPATH_USE_TF", "false")
    import fsspec
    from fsspec.config import conf

    # It also raises its errors, which are reported in one line.
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)

    # Listings are not cached, as another process may have written since.
    for name in ("gs", "gcs"):
        conf.setdefault(name, {}).setdefault("use_listings_cache", False)
    try:
        return fsspec.filesystem("gcs", finalize_on_close=True)
    except ImportError as error:
        raise ConfigError(
            f"{scheme}:// needs the package gcsfs: pip install 'ldm-jax[gcs]'"
        ) from error


@functools.cache
def _path_class():
    """Epath's class for addresses, with the methods of `pathlib` that it lacks."""
    from etils import epath

    class StorePath(type(epath.Path(f"{_SCHEME}bucket"))):
        """Address in a store, which is always absolute."""

        def absolute(self) -> "StorePath":
            """Returns itself."""
            return self

        def expanduser(self) -> "StorePath":
            """Returns itself."""
            return self

        def resolve(self, strict: bool = False) -> "StorePath":
            """Returns itself."""
            del strict
            return self

        def is_file(self) -> bool:
            """Returns whether there is an object of this name."""
            return file_system(self).isfile(os.fspath(self))

        def write_bytes(self, data: bytes) -> int:
            """Writes an object atomically; an interrupted file would appear cut short.

            Args:
              data: Its bytes.

            Returns:
              Their number.
            """
            file_system(self).pipe_file(os.fspath(self), data)
            return len(data)

        def mkdir(self, *args: Any, **options: Any) -> None:
            """Does nothing: a store has no folders."""

    return StorePath


def files_below(folder: Place) -> Iterator[Place]:
    """Lists the files of a folder and of all folders below it, in order.

    Args:
      folder: Path of either kind.

    Yields:
      Paths of files.
    """
    if is_remote(folder):
        yield from (path for path, _ in listing(folder))
    else:
        yield from (path for path in sorted(folder.rglob("*")) if path.is_file())


def listing(folder: Place) -> list[tuple[Place, dict[str, Any]]]:
    """Lists the objects below an address, with the store's metadata of each.

    Args:
      folder: Address.

    Returns:
      List of (path, fsspec's info, with "size" in bytes), in order of the paths; it
      takes only few requests in all.
    """
    found = file_system(folder).find(os.fspath(folder), detail=True)
    return [(as_path(f"{_SCHEME}{name}"), found[name]) for name in sorted(found)]


def size_of(path: Place) -> int:
    """Returns the size of a file.

    Args:
      path: Path of either kind.

    Returns:
      Number of bytes.

    Raises:
      OSError: If there is no such file.
    """
    if is_remote(path):
        return file_system(path).size(os.fspath(path))
    return os.path.getsize(path)


def read_part(path: Place, start: int, size: int) -> bytes:
    """Reads some bytes of a file, fewer at its end.

    Args:
      path: Path of either kind.
      start: First byte.
      size: How many at most.

    Returns:
      The bytes.

    Raises:
      OSError: If it cannot be read.
    """
    if is_remote(path):
        # A store rejects reads beyond the end.
        size = min(size, size_of(path) - start)
        if size <= 0:
            return b""
        return file_system(path).cat_file(os.fspath(path), start, start + size)
    with open(path, "rb") as file:
        file.seek(start)
        return file.read(size)


def send(source: str | os.PathLike, target: Place) -> None:
    """Uploads a local file to a store, where it appears once it is complete.

    Args:
      source: Path of the local file.
      target: Its address.
    """
    with open(source, "rb") as local:
        remote = target.open("wb")
        try:
            shutil.copyfileobj(local, remote, 1 << 22)
        except BaseException:
            # If it were closed, also by garbage collection, it would appear cut short;
            # for a small file, gcsfs leaves it open when it is discarded.
            try:
                remote.discard()
            finally:
                remote.closed = True
            raise
        remote.close()


def for_each(
    function: Callable[[Any], Any], items: Iterable[Any], place: Place
) -> Iterator[Any]:
    """Calls a function for each item, several at a time if it waits for a store.

    Args:
      function: Function of an item.
      items: The items.
      place: A path where it reads or writes, which decides on that.

    Yields:
      What the function returns, in the order of the items.
    """
    if not is_remote(place):
        yield from map(function, items)
        return
    items = iter(items)
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        # Not all at once, as results are held in memory.
        while block := list(itertools.islice(items, 4 * _THREADS)):
            yield from pool.map(function, block)


def fetch(source: Place, target: str | os.PathLike) -> None:
    """Copies a file from a store or a disk to the local disk.

    Args:
      source: Its path.
      target: Path of the copy.
    """
    if is_remote(source):
        file_system(source).get_file(os.fspath(source), os.fspath(target))
    else:
        shutil.copyfile(source, target)


def is_fault(error: BaseException) -> bool:
    """Returns whether an error is of a store or the network, not of a file's contents.

    Args:
      error: Any error.

    Returns:
      Whether it is.
    """
    if isinstance(error, FileNotFoundError):
        return False
    kinds = {kind.__module__.partition(".")[0] for kind in type(error).__mro__}
    return bool(kinds & set(_LIBRARIES)) or any(w in str(error) for w in _WORDS)


def is_hidden(path: str | os.PathLike, error: BaseException) -> bool:
    """Returns whether a store's error leaves open if an object exists.

    Users who may read objects but not list them get the same error for a missing object
    as for one that they may not read.

    Args:
      path: Path of the object.
      error: The error of reading it.

    Returns:
      Whether the object may be missing; always False for a disk.
    """
    # The text of gcsfs for status 403.
    refused = isinstance(error, OSError) and str(error).startswith("Forbidden")
    return refused and is_remote(path)


def explain_fault(error: BaseException) -> str:
    """Describes an error of a store or of the network.

    Args:
      error: An error.

    Returns:
      Text for a message.
    """
    text = " ".join(str(error).split())[:300]
    return f"the object store did not do it ({type(error).__name__}: {text})"
