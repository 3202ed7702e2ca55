"""Reads metadata of examples from indexes: columns, labels, sizes of images."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ldm_jax.annotations import Int, Shaped
from ldm_jax.data.filters.tables import unpack_column
from ldm_jax.data.tar.index_file import IndexFile
from ldm_jax.data.tar.plan import CLASS, Plan, find_images
from ldm_jax.data.tar.scan import LABELS
from ldm_jax.reading import parse_json

# Rows of an index: their numbers, or a slice.
Rows = Any


def count_examples(index: IndexFile) -> int:
    """Counts the examples of a shard, whole or not.

    Args:
      index: Index of the shard.

    Returns:
      Number of examples.
    """
    return len(index.read("places"))


def name_columns(indexes: Sequence[IndexFile]) -> tuple[str, ...]:
    """Lists the columns of all shards.

    Args:
      indexes: Indexes of the shards.

    Returns:
      Sorted names: fields of `.json`, "cls", "height" and "width".
    """
    names = {name for index in indexes for name in index.header["columns"]}
    names = {CLASS if name == LABELS else name for name in names}
    return tuple(sorted(names | {"width", "height"}))


def read_column(index: IndexFile, name: str, rows: Rows) -> Shaped[np.ndarray, " n"]:
    """Reads a column of a shard.

    Args:
      index: Index of the shard.
      name: One of `name_columns`, except "height" and "width".
      rows: Which examples.

    Returns:
      Column [n]; all NaN if the shard has none of that name.
    """
    column = _find_column(index, name)
    if column is None:
        column = np.full(count_examples(index), np.nan)
    return column[rows]


def read_labels(index: IndexFile, name: str) -> list[Any]:
    """Reads the distinct labels of a shard.

    Args:
      index: Index of the shard.
      name: Column that holds them.

    Returns:
      Numbers, bools or text; NaN is no label.
    """
    row = index.header["columns"].get(name)
    if not row:
        return []
    if row["kind"] == "numbers":
        return np.unique(index.read(f"numbers {row['number']}")).tolist()
    return parse_json(index.read(f"values {row['number']}").tobytes())


def label_bytes(index: IndexFile, name: str) -> bytes:
    """Returns bytes that identify the labels of a shard.

    Args:
      index: Index of the shard.
      name: Column that holds them.

    Returns:
      Bytes of the column as stored.
    """
    row = index.header["columns"].get(name)
    if not row:
        return b""
    return b"".join(index.read(array).tobytes() for array in _arrays(row).values())


def _arrays(row):
    """Kind -> name in the index, of each array of a column."""
    kinds = ("numbers",) if row["kind"] == "numbers" else ("codes", "values")
    return {kind: f"{kind} {row['number']}" for kind in kinds}


def _find_column(index, name):
    """A column, or None."""
    table = index.header["columns"]
    row = table.get(name) or (table.get(LABELS) if name == CLASS else None)
    if not row:
        return None
    arrays = {kind: index.read(name) for kind, name in _arrays(row).items()}
    return unpack_column(row["kind"], arrays)


def read_sizes(index: IndexFile, plan: Plan, rows: Rows) -> Int[np.ndarray, "n 2"]:
    """Reads the sizes of the images of a shard.

    Args:
      index: Index of the shard.
      plan: Which member is the image.
      rows: Which examples; all of them must have an image.

    Returns:
      int32 [n, 2], (height, width) in pixels; zeros where a header is damaged.
    """
    images = index.read("members")[find_images(index, plan)[rows]]
    sizes = np.stack([images["height"], images["width"]], axis=1)
    # No image has sides that exceed 32 signed bits.
    sizes[sizes.max(axis=1) > np.iinfo(np.int32).max] = 0
    return sizes.astype(np.int32)
