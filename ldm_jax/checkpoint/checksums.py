"""Checksums of the files of a checkpoint, and of weights.

Storage may corrupt bits, and Orbax's format does not detect it: a flipped bit becomes a
wrong weight. So `checksums.json` in each checkpoint holds the CRC-32 of every block of
its files, and those of an item's files are verified before it is read. Files are
checked instead of arrays because their checksums do not depend on the mesh or the
number of processes, no device waits for them, and damaged data are never decoded.
"""

import concurrent.futures
import json
import os
import zlib
from collections.abc import Collection
from typing import Any

import jax
import numpy as np
from absl import logging

from ldm_jax.errors import Unreachable
from ldm_jax.files import write_bytes
from ldm_jax.reading import answering
from ldm_jax.store import Place, files_below, is_dir, is_file, read_part

_NAME = "checksums.json"

# File by which Orbax marks a complete checkpoint in object stores, which cannot rename.
MARK = "commit_success.txt"
_BLOCK = 1 << 24  # Bytes; large files are shared out between threads by blocks.
_THREADS = min(8, os.cpu_count() or 1)


def seal(folder: Place) -> None:
    """Writes the checksums of a checkpoint that was just saved.

    A checkpoint without them, e.g. of an older version or of a run that was killed
    between saving and sealing, is read without verification.

    Args:
      folder: Folder of the checkpoint; it may have been removed since.
    """
    try:
        paths = list(files_below(folder))
        if paths:
            # So that a copy in an object store can be read.
            if folder / MARK not in paths:
                write_bytes(folder / MARK, b"")
                paths.append(folder / MARK)
            record = {_name(folder, path): list(_blocks_of(path)) for path in paths}
            _write(folder, record)
    except OSError as error:
        if is_dir(folder):
            logging.warning("%s has no checksums: %s", folder, error)


def has_checksums(folder: Place) -> bool:
    """Whether a checkpoint holds its checksums, which are written last.

    Args:
      folder: Folder of the checkpoint.

    Returns:
      Whether they are there.
    """
    return is_file(folder / _NAME)


def copy_checksums(source: Place, target: Place, items: Collection[str]) -> None:
    """Writes the original's checksums into a copy of some items of a checkpoint.

    Args:
      source: Folder of the checkpoint.
      target: Folder of the copy.
      items: Items that were copied.
    """
    record = _read(source)
    if record is None:
        seal(target)
    else:
        _write(target, {name: record[name] for name in record if _within(name, items)})


def is_copy(folder: Place, source: Place, items: Collection[str]) -> bool:
    """Whether a folder is an intact copy of some items of a checkpoint.

    Nothing is loaded with Orbax, which would wait for all processes of a job.

    Args:
      folder: Folder of the copy.
      source: Folder of the checkpoint.
      items: Items that are copied.

    Returns:
      Whether it is; False for a checkpoint without checksums, e.g. of an older version.

    Raises:
      PermissionError: If a file may not be read.
      Unreachable: If the storage does not respond.
    """
    try:
        ours, theirs = _read(folder), _read(source) or {}
    except ValueError:
        return False
    wanted = {name: theirs[name] for name in theirs if _within(name, items)}
    return bool(wanted) and ours == wanted and not find_damage(folder)


def has_item(folder: Place, item: str) -> bool:
    """Whether an item was saved, even if its files are lost.

    Args:
      folder: Folder of the checkpoint.
      item: Its name.

    Returns:
      Whether it was.
    """
    recorded = any(name.startswith(f"{item}/") for name in _read(folder) or ())
    return recorded or is_dir(folder / item)


def find_damage(
    folder: Place,
    items: Collection[str] | None = None,
    part: tuple[int, int] = (0, 1),
) -> str | None:
    """Verifies the files of a checkpoint by their checksums, several at a time.

    Args:
      folder: Folder of the checkpoint.
      items: Items to verify, besides the files that belong to none; all by default.
      part: (index, count): which of how many parts to verify, if processes share the
        work.

    Returns:
      A description of the damage; None if there is none or there are no checksums.

    Raises:
      PermissionError: If a file may not be read.
      Unreachable: If the storage does not respond.
    """
    try:
        record = _read(folder) or {}
    except ValueError:
        return f"its file {_NAME} is not what was saved"
    rows = [
        (folder, name, index, checksum)
        for name, blocks in record.items()
        if items is None or _within(name, items)
        for index, checksum in enumerate([*blocks, None])
    ]
    index, count = part
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        found = [text for text in pool.map(_compare, rows[index::count]) if text]
    return found[0] if found else None


def tree_checksum(tree: Any) -> int:
    """Computes the CRC-32 of weights, the same for equal weights.

    Args:
      tree: Pytree of arrays of any shape, converted to float32.

    Returns:
      The checksum.
    """
    checksum = 0
    for leaf in jax.tree.leaves(tree):
        checksum = zlib.crc32(np.asarray(leaf, np.float32).tobytes(), checksum)
    return checksum


def _compare(row):
    """Returns what is wrong with a block of a file; a checksum of None is its end."""
    folder, name, index, checksum = row
    try:
        with answering(folder / name):
            block = read_part(folder / name, index * _BLOCK, _BLOCK)
    except (Unreachable, PermissionError):
        # These are not damage.
        raise
    except OSError as error:
        return f"its file {name} cannot be read ({error.strerror or 'it is missing'})"
    if (zlib.crc32(block) if block else None) != checksum:
        return f"its file {name} is not what was saved"
    return None


def _blocks_of(path):
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            yield zlib.crc32(block)


def _within(name, items):
    """Whether a file belongs to one of the items, or to no item."""
    item, _, rest = name.partition("/")
    return not rest or item in items


def _name(folder, path):
    return path.relative_to(folder).as_posix()


def _read(folder):
    """File name -> checksums of its blocks; None if there are no checksums."""
    path = folder / _NAME
    with answering(path):
        if not is_file(path):
            return None
        record = json.loads(path.read_bytes())
    if not isinstance(record, dict) or not all(map(_is_list, record.values())):
        raise ValueError(f"{path} is damaged")
    return record


def _is_list(value):
    return isinstance(value, list)


def _write(folder, record):
    write_bytes(folder / _NAME, json.dumps(record).encode())
