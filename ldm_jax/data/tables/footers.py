"""Reads the footers of Parquet files: columns, row groups, their sizes."""

import collections
import functools
import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ldm_jax.data.tar.byte_ranges import Files, side_by_side
from ldm_jax.data.tar.shards import Shard
from ldm_jax.errors import Unreachable

# Bytes that are read at the end of a file: most footers are shorter.
_TAIL = 2**16

# The end of every file, after the length of the footer in four bytes.
_MAGIC = b"PAR1"


class ParquetFile(NamedTuple):
    """What is stored about a file.

    Attributes:
      shard: Its location and size.
      schema: Its columns, a pyarrow Schema.
      starts: First row of each row group, and the number of rows, int64 [groups + 1].
      largest: Column -> uncompressed bytes of its largest row group.
      digest: Hash of the footer.
    """

    shard: Shard
    schema: Any
    starts: np.ndarray
    largest: dict[str, int]
    digest: bytes


def open_files(shards: Sequence[Shard]) -> list[ParquetFile | str]:
    """Reads the footers of files, several at once.

    Args:
      shards: The files.

    Returns:
      For each file a ParquetFile, or what is wrong with it as text.

    Raises:
      Unreachable: If they are in a store that does not answer.
    """
    return side_by_side(functools.partial(_look_into, files=Files()), shards)


def _look_into(shard, files):
    try:
        data = _read_footer(shard, files)
        footer = parse_footer(data)
        groups = [footer.row_group(k) for k in range(footer.num_row_groups)]
        starts = np.cumsum([0, *(group.num_rows for group in groups)])
        largest = collections.Counter()
        for group in groups:
            for column, size in unpacked_sizes(group).items():
                largest[column] = max(largest[column], size)
        schema = footer.schema.to_arrow_schema()
    except Unreachable:
        raise
    # Whatever pyarrow raises, the file is damaged.
    except Exception as error:
        text = " ".join(str(error).split()) or type(error).__name__
        return f"it cannot be read as Parquet: {text}"
    digest = hashlib.blake2b(data, digest_size=16).digest()
    return ParquetFile(shard, schema, starts, dict(largest), digest)


def _read_footer(shard, files):
    """The bytes of a footer, up to the end of the file."""
    size = min(_TAIL, shard.size)
    tail = files.read(shard.path, shard.size - size, size)
    if tail[-4:] != _MAGIC or size < 8:
        raise ValueError(
            f"it does not end in {_MAGIC.decode()}, as every Parquet file does; it was "
            "cut short or is of another format: copy it again"
        )
    length = int.from_bytes(tail[-8:-4], "little") + 8
    if length > shard.size:
        raise ValueError(f"its footer is said to have {length:,} bytes")
    if length > size:
        tail = files.read(shard.path, shard.size - length, length)
    return tail[-length:]


def parse_footer(data: bytes) -> Any:
    """Parses a footer.

    Args:
      data: Its bytes, up to the end of the file.

    Returns:
      A pyarrow FileMetaData.
    """
    import pyarrow as pa
    import pyarrow.parquet

    return pa.parquet.read_metadata(pa.BufferReader(data))


def unpacked_sizes(group: Any) -> collections.Counter:
    """Returns the uncompressed sizes of the columns of a row group.

    Args:
      group: A pyarrow RowGroupMetaData.

    Returns:
      Name of a top-level column -> uncompressed bytes, as stated in the file.
    """
    sizes = collections.Counter()
    for k in range(group.num_columns):
        column = group.column(k)
        sizes[column.path_in_schema.split(".")[0]] += column.total_uncompressed_size
    return sizes
