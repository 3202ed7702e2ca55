"""One example of encoded data as bytes: arrays in a stated order, then its key.

All records of a set have one layout, which its header states: name, type and shape of
each array. A record is their values one after the other, little-endian, and then the
key of the image in UTF-8, up to the end. array_record keeps checksums.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from ldm_jax.annotations import Shaped

# Batch keys of latents: the mean of the posterior and, where it is a Gaussian, its
# standard deviation.
MEAN, STD = "latent_mean", "latent_std"

# Batch key -> name of the text states that a frozen tower made of its token ids.
STATES = "{}/states"

# Types by the names that headers use -> NumPy's. Big-endian machines have no bfloat16.
_BFLOAT16 = "bfloat16"
TYPES = {
    _BFLOAT16: ml_dtypes.bfloat16,
    **{
        np.dtype(name).name: name
        for name in "<f2 <f4 <f8 |i1 <i2 <i4 <i8 |u1 <u2 <u4 <u8 |b1".split()
    },
}


class Field(NamedTuple):
    """One array of a record.

    Attributes:
      name: Its batch key.
      dtype: Row of TYPES.
      shape: Its shape, without batch axis.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]


class RecordFormat:
    """The layout of the records of a set.

    Attributes:
      fields: Fields in the order in which they lie in a record.
      size: Bytes of a record without its key.
    """

    def __init__(self, fields: Sequence[Field]) -> None:
        """Finds where each array lies.

        Args:
          fields: Fields in order.

        Raises:
          ValueError: If a type is unknown.
        """
        self.fields, self._places, at = tuple(fields), {}, 0
        for name, dtype, shape in self.fields:
            if dtype not in TYPES:
                raise ValueError(
                    f"{name} is of type {dtype}, which records cannot hold; they take "
                    f"{', '.join(TYPES)}"
                )
            self._places[name] = at, math.prod(shape)
            at += self._places[name][1] * np.dtype(TYPES[dtype]).itemsize
        self.size = at

    @classmethod
    def of(cls, example: Mapping[str, Shaped[np.ndarray, "..."]]) -> "RecordFormat":
        """Makes the layout of examples that are like one.

        Args:
          example: Name -> array [...] without batch axis, in the order of the record.

        Returns:
          A RecordFormat.

        Raises:
          ValueError: If a value is no array of numbers.
        """
        rows = [Field(k, v.dtype.name, tuple(v.shape)) for k, v in example.items()]
        return cls(rows)

    def pack(self, example: Mapping[str, Shaped[np.ndarray, "..."]], key: str) -> bytes:
        """Writes an example.

        Args:
          example: Name -> array, of the types and shapes of the layout.
          key: Name of the image.

        Returns:
          The record.

        Raises:
          ValueError: If an array is of another type or shape.
        """
        parts = []
        for name, dtype, shape in self.fields:
            value = example[name]
            if (value.dtype.name, tuple(value.shape)) != (dtype, shape):
                raise ValueError(
                    f"{name} is {value.dtype.name} {list(value.shape)}, but it was "
                    f"{dtype} {list(shape)} in the first example: records are alike"
                )
            parts.append(np.asarray(value, TYPES[dtype]))
        return b"".join([*(part.tobytes() for part in parts), key.encode()])

    def unpack(
        self, record: bytes, names: Collection[str] | None = None
    ) -> dict[str, Shaped[np.ndarray, "..."]]:
        """Reads a record.

        Args:
          record: Its bytes.
          names: What of it is wanted; all by default.

        Returns:
          Name -> array [...], of the type that is stored.

        Raises:
          ValueError: If it is too short.
        """
        self._require_whole(record)
        example = {}
        for name, dtype, shape in self.fields:
            if names is not None and name not in names:
                continue
            at, count = self._places[name]
            example[name] = np.frombuffer(record, TYPES[dtype], count, at).reshape(
                shape
            )
        return example

    def unpack_batch(
        self, records: Sequence[bytes], names: Collection[str] | None = None
    ) -> dict[str, Shaped[np.ndarray, "batch ..."]]:
        """Reads the records of a batch, each array into its row of one.

        Args:
          records: Their bytes, B of them.
          names: What of them is wanted; all by default.

        Returns:
          Name -> array [B, ...], what `unpack` gives of each.

        Raises:
          ValueError: If one is too short.
        """
        for record in records:
            self._require_whole(record)
        batch = {}
        for name, dtype, shape in self.fields:
            if names is not None and name not in names:
                continue
            at, count = self._places[name]
            rows = np.empty((len(records), count), TYPES[dtype])
            for row, record in zip(rows, records, strict=True):
                row[:] = np.frombuffer(record, TYPES[dtype], count, at)
            batch[name] = rows.reshape(len(records), *shape)
        return batch

    def key_of(self, record: bytes) -> str:
        """Reads the key of an example.

        Args:
          record: Its bytes.

        Returns:
          The key.

        Raises:
          ValueError: If the record is too short.
        """
        self._require_whole(record)
        return record[self.size :].decode(errors="replace")

    def _require_whole(self, record):
        if len(record) < self.size:
            raise ValueError(
                f"the record has {len(record)} bytes, of {self.size} at least"
            )

    def to_json(self) -> list[list[Any]]:
        """What a header says of it.

        Returns:
          List of [name, type, shape].
        """
        return [[name, dtype, list(shape)] for name, dtype, shape in self.fields]

    @classmethod
    def from_json(cls, rows: Sequence[Sequence[Any]]) -> "RecordFormat":
        """Reads what `to_json` gives.

        Args:
          rows: List of [name, type, shape].

        Returns:
          A RecordFormat.

        Raises:
          ValueError: If it is something else.
        """
        try:
            fields = [Field(str(n), str(t), tuple(map(int, s))) for n, t, s in rows]
        except TypeError as error:
            raise ValueError(f"its fields are damaged: {error}") from error
        return cls(fields)
