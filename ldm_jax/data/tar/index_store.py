"""Finds the indexes of shards, or makes them once.

An index is stored beside its shard, or in `data.index_dir`; if a shard is remote or its
folder is not writable, in the user's cache. It is valid if the shard still has the size
and modification time (remote: tag) that it had when the index was made.

Processes that open the same shards at the same time share the work: each starts at
another shard and checks before it makes an index whether another process has made it.
"""

import concurrent.futures
import hashlib
import multiprocessing
import os
import time
from collections.abc import Sequence

from absl import logging

from ldm_jax import peers
from ldm_jax.data.tar.byte_ranges import Files, file_system
from ldm_jax.data.tar.index_file import IndexFile, encode_index, write_index
from ldm_jax.data.tar.members import Damaged
from ldm_jax.data.tar.scan import scan
from ldm_jax.data.tar.shards import INDEX, Shard
from ldm_jax.errors import DiskError, Unreachable
from ldm_jax.store import is_of_one_file, is_remote, raise_if_silent

# Bytes that are read at a time: of a local shard, a header and the small members beside
# it; remote ones are read as a stream.
_LOCAL, _REMOTE = 2**13, 2**23

# Threads that make indexes if there are no worker processes: they parse, or wait for
# the network. Seconds between log lines.
_THREADS, _REMOTE_THREADS, _LINE = 4, 16, 30.0


def open_indexes(
    shards: Sequence[Shard], index_dir: str | None, workers: int, files: Files
) -> list[IndexFile]:
    """Opens the indexes of shards, and makes those that are missing or out of date.

    Args:
      shards: The shards.
      index_dir: Folder for the indexes; None stores them beside the shards.
      workers: Processes that make them; 0 makes them in threads.
      files: Reader of the indexes.

    Returns:
      Index of each shard.

    Raises:
      DiskError: If an index cannot be written anywhere.
      ValueError: If a shard cannot be read.
    """
    found = [find_index(shard, index_dir, files) for shard in shards]
    missing = [n for n, index in enumerate(found) if index is None]
    if missing:
        # Commands only show warnings and above.
        logging.warning(
            "making the index of %d of %d shards, once", len(missing), len(shards)
        )
        # Other processes start elsewhere.
        first = os.getpid() * 7919 % len(missing)
        missing = missing[first:] + missing[:first]
        _make_all([shards[n] for n in missing], index_dir, workers)
        for n in missing:
            found[n] = find_index(shards[n], index_dir, files, say=False)
            if found[n] is None:
                raise ValueError(
                    f"{shards[n].path} changes while it is read; is it still being "
                    "written?"
                )
    return found


def find_index(
    shard: Shard, index_dir: str | None, files: Files, say: bool = True
) -> IndexFile | None:
    """Finds the index of a shard.

    Args:
      shard: The shard.
      index_dir: See `open_indexes`.
      files: Reader of the index.
      say: Whether to log that an index is out of date.

    Returns:
      The index; None if there is no valid one.
    """
    stale = []
    for path in places(shard, index_dir):
        if not os.path.exists(path):
            continue
        files.forget(path)
        try:
            index = IndexFile(path, files)
            if index.header["shard"] == [shard.size, shard.stamp]:
                return index
            reason = f"{shard.path} has changed since"
        # A file from elsewhere may hold anything.
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise_if_silent(path, error)
            reason = str(error) or type(error).__name__
        files.forget(path)
        stale.append((path, reason))
    # Invalid indexes are only logged if there is no valid one elsewhere.
    for path, reason in stale if say else ():
        logging.warning("the index %s is made again: %s", path, reason)
    return None


def places(shard: Shard, index_dir: str | None) -> list[str]:
    """Lists where the index of a shard may be.

    Args:
      shard: The shard.
      index_dir: See `open_indexes`.

    Returns:
      Local paths, the preferred one first.
    """
    name = os.path.basename(shard.path)
    tag = hashlib.blake2b(shard.path.encode(), digest_size=8).hexdigest()
    own = f"{name}.{tag}{INDEX}"
    if index_dir:
        return [os.path.join(os.path.expanduser(index_dir), own)]
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    elsewhere = os.path.join(cache, "ldm_jax", "tar", own)
    beside = [] if is_remote(shard.path) else [shard.path + INDEX]
    return [*beside, elsewhere]


def _make_all(shards, index_dir, workers):
    """Makes indexes in parallel; logs the progress."""
    if workers and len(shards) > 1:
        context = multiprocessing.get_context("spawn")
        pool = concurrent.futures.ProcessPoolExecutor(workers, mp_context=context)
    else:
        threads = _REMOTE_THREADS if is_remote(shards[0].path) else _THREADS
        pool = concurrent.futures.ThreadPoolExecutor(threads)
    said = began = time.monotonic()
    with pool:
        tasks = [pool.submit(make_index, shard, index_dir) for shard in shards]
        try:
            for done, task in enumerate(concurrent.futures.as_completed(tasks), 1):
                task.result()
                peers.progress()
                if time.monotonic() - said > _LINE:
                    said = time.monotonic()
                    logging.warning("indexed %d of %d shards", done, len(shards))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    logging.info("indexed %d shards in %.1f s", len(shards), time.monotonic() - began)


def make_index(shard: Shard, index_dir: str | None) -> None:
    """Makes the index of a shard, unless another process has made it by now.

    Args:
      shard: The shard.
      index_dir: See `open_indexes`.

    Raises:
      DiskError: If it cannot be written anywhere.
      ValueError: If the shard cannot be read.
    """
    files = Files()
    if find_index(shard, index_dir, files, say=False) is not None:
        return
    paths = places(shard, index_dir)
    data = _remote_index(shard)
    if data is None:
        window = _REMOTE if is_remote(shard.path) else _LOCAL
        header, arrays = scan(_Window(shard, files, window).read, shard.size)
        header["shard"] = [shard.size, shard.stamp]
        data = encode_index(header, arrays)
        _offer(shard, data)
    for path in paths:
        try:
            write_index(path, data)
            return
        except DiskError as error:
            failure = error
    raise failure


class _Window:
    """Reads a shard from front to back in larger chunks."""

    def __init__(self, shard, files, size):
        self._shard, self._files, self._size = shard, files, size
        self._start, self._data = 0, b""

    def read(self, offset, size):
        """Reads bytes from `offset` on, fewer at the end."""
        begin = offset - self._start
        if not 0 <= begin <= begin + size <= len(self._data):
            size = min(size, self._shard.size - offset)
            most = min(max(size, self._size), self._shard.size - offset)
            try:
                self._data = self._ask(offset, most)
            except Damaged:
                # The requested bytes themselves may be readable.
                self._data = self._ask(offset, size)
            self._start, begin = offset, 0
        return self._data[begin : begin + size]

    def _ask(self, offset, size):
        try:
            return self._files.read_up_to(self._shard.path, offset, size)
        except Unreachable:
            raise
        except OSError as error:
            text = getattr(error, "strerror", None) or " ".join(str(error).split())
            if is_of_one_file(error):
                raise Damaged(
                    f"byte {offset:,} cannot be read: {text}; once it can, remove the "
                    "index of the shard, which is then made again"
                ) from error
            raise ValueError(f"cannot read {self._shard.path}: {text}") from error


def _remote_index(shard):
    """Reads the index that another host has stored beside a remote shard, or None."""
    if not is_remote(shard.path):
        return None
    try:
        system, inside = file_system(shard.path + INDEX)
        data = system.cat_file(inside)
        path = f"{shard.path}{INDEX}"
        valid = IndexFile(path, _Held(data)).header["shard"]
        return data if valid == [shard.size, shard.stamp] else None
    # Mostly it does not exist.
    except Exception:
        return None


def _offer(shard, data):
    """Stores an index beside its remote shard, if that is writable."""
    if is_remote(shard.path):
        try:
            system, inside = file_system(shard.path + INDEX)
            system.pipe_file(inside, data)
        except Exception as error:
            logging.info("no index is laid beside %s: %s", shard.path, error)


class _Held:
    """Bytes in memory, with the interface of `Files`."""

    def __init__(self, data):
        self._data = data

    def size(self, path):
        """Number of bytes; the path is not used."""
        return len(self._data)

    def read(self, path, offset, size):
        """Returns bytes from `offset` on, fewer at the end."""
        return self._data[offset : offset + size]
