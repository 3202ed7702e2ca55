"""What a user gives, as a path: of a local disk, or of an object store.

Local paths are those of `pathlib`, as fast as ever; etils, fsspec and gcsfs are
imported where an address is met. The store is reached through epath's own file system,
so that Orbax and everything else here share one connection.
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

# A path of either kind: `pathlib.Path`, or `epath.Path` where it is an address.
Place = Any

_SCHEME = "gs://"

# Requests at a time; each takes a store some hundredths of a second.
_THREADS = 16

# What an error of a store is known by: its library, or words of TensorStore.
_LIBRARIES = ("gcsfs", "google", "aiohttp", "requests", "urllib3")
_WORDS = (
    "UNAUTHENTICATED",
    "PERMISSION_DENIED",
    "UNAVAILABLE",
    "DEADLINE_EXCEEDED",
    "CURL error",
)


def is_remote(path: str | os.PathLike) -> bool:
    """Says whether a path is an address, as gs://bucket/name.

    Args:
      path: What a user gave, or a path made of it.

    Returns:
      Whether it is.
    """
    return "://" in os.fspath(path)


def as_path(path: str | os.PathLike) -> Place:
    """Makes a path of what a user gives; `~` is expanded.

    Args:
      path: Path, or address that begins with gs://.

    Returns:
      `pathlib.Path`, or `epath.Path` of an address.

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
    """Makes a path of what can only lie on a local disk.

    Args:
      path: What a user gave.
      what: The flag or key that gave it.
      advice: What to do in its place.

    Returns:
      `pathlib.Path`.

    Raises:
      ConfigError: If it is an address.
    """
    if is_remote(path):
        raise ConfigError(f"{what}={path} must lie on a local disk: {advice}")
    return as_path(path)


def file_system(path: str | os.PathLike) -> Any:
    """The file system of an address, that of epath and Orbax too.

    Args:
      path: Address.

    Returns:
      File system of fsspec.

    Raises:
      ConfigError: If the library for it is missing.
    """
    return _file_system(os.fspath(path).partition("://")[0])


@functools.cache
def _file_system(scheme):
    # Without this epath would reach for TensorFlow where that is installed.
    os.environ.setdefault("EPATH_USE_TF", "false")
    import fsspec
    from fsspec.config import conf

    # What it cannot do it also raises, and that becomes a line.
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)

    # Another process may have written since: nothing is remembered of a listing.
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
    """Epath's class for addresses, with what `pathlib` has and it lacks."""
    from etils import epath

    class StorePath(type(epath.Path(f"{_SCHEME}bucket"))):
        """Address in a store; it is absolute as it is."""

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
            """Says whether there is an object of this name."""
            return file_system(self).isfile(os.fspath(self))

        def write_bytes(self, data: bytes) -> int:
            """Writes an object in one move; a file that is cut would appear short.

            Args:
              data: Its bytes.

            Returns:
              Their number.
            """
            file_system(self).pipe_file(os.fspath(self), data)
            return len(data)

        def mkdir(self, *args: Any, **options: Any) -> None:
            """Does nothing: there are no folders to make."""

    return StorePath


def files_below(folder: Place) -> Iterator[Place]:
    """Lists the files of a folder and of all folders in it, in order.

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
    """Lists the objects below an address, with what the store says of each.

    Args:
      folder: Address.

    Returns:
      List of (path, what fsspec calls its info, with "size" in bytes), in order of the
      paths; for all of them few requests are made.
    """
    found = file_system(folder).find(os.fspath(folder), detail=True)
    return [(as_path(f"{_SCHEME}{name}"), found[name]) for name in sorted(found)]


def size_of(path: Place) -> int:
    """Says how many bytes a file has.

    Args:
      path: Path of either kind.

    Returns:
      Their number.

    Raises:
      OSError: If there is no such file.
    """
    if is_remote(path):
        return file_system(path).size(os.fspath(path))
    return os.path.getsize(path)


def read_part(path: Place, start: int, size: int) -> bytes:
    """Reads some bytes of a file, fewer where it ends before.

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
        # A store refuses to read from beyond the end.
        size = min(size, size_of(path) - start)
        if size <= 0:
            return b""
        return file_system(path).cat_file(os.fspath(path), start, start + size)
    with open(path, "rb") as file:
        file.seek(start)
        return file.read(size)


def send(source: str | os.PathLike, target: Place) -> None:
    """Sends a local file to a store, where it appears once all of it is there.

    Args:
      source: Path of the local file.
      target: Its address.
    """
    with open(source, "rb") as local:
        remote = target.open("wb")
        try:
            shutil.copyfileobj(local, remote, 1 << 22)
        except BaseException:
            # Closed, also where nothing refers to it any more, it would appear cut
            # short; of a small file gcsfs leaves it open when it is discarded.
            try:
                remote.discard()
            finally:
                remote.closed = True
            raise
        remote.close()


def for_each(
    function: Callable[[Any], Any], items: Iterable[Any], place: Place
) -> Iterator[Any]:
    """Calls a function for each item, several at a time where that waits for a store.

    Args:
      function: Function of an item.
      items: The items.
      place: A path that it reads or writes at.

    Yields:
      What the function returns, in the order of the items.
    """
    if not is_remote(place):
        yield from map(function, items)
        return
    items = iter(items)
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        # Not all at once: results wait in memory.
        while block := list(itertools.islice(items, 4 * _THREADS)):
            yield from pool.map(function, block)


def fetch(source: Place, target: str | os.PathLike) -> None:
    """Copies a file, of a store or of a disk, to the local disk.

    Args:
      source: Its path.
      target: Path of the copy.
    """
    if is_remote(source):
        file_system(source).get_file(os.fspath(source), os.fspath(target))
    else:
        shutil.copyfile(source, target)


def is_fault(error: BaseException) -> bool:
    """Says whether an error is of a store or the way to it, not of what it holds.

    Args:
      error: Any error.

    Returns:
      Whether it does.
    """
    if isinstance(error, FileNotFoundError):
        return False
    kinds = {kind.__module__.partition(".")[0] for kind in type(error).__mro__}
    return bool(kinds & set(_LIBRARIES)) or any(w in str(error) for w in _WORDS)


def is_hidden(path: str | os.PathLike, error: BaseException) -> bool:
    """Says whether a store does not say if an object is there.

    Who may get objects and not list them is told of one that is not there what is said
    of one that may not be read.

    Args:
      path: Path of the object.
      error: What reading it has raised.

    Returns:
      Whether it may be absent; never of a disk.
    """
    # The word of gcsfs for status 403.
    refused = isinstance(error, OSError) and str(error).startswith("Forbidden")
    return refused and is_remote(path)


def explain_fault(error: BaseException) -> str:
    """Says in words what a store, or the way to it, refused.

    Args:
      error: An error.

    Returns:
      Words for a message.
    """
    text = " ".join(str(error).split())[:300]
    return f"the object store did not do it ({type(error).__name__}: {text})"
