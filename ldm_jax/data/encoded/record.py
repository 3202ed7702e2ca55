"""One example of encoded data as bytes: its arrays in a fixed order, then its key.

All records of a set have the same layout, stored in its header: name, type and shape of
each array. A record is their values one after the other, little-endian, and then the
key of the image in UTF-8, up to the end. array_record stores checksums.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from ldm_jax.annotations import Shaped

# Batch keys of latents: the mean of the posterior and, if it is a Gaussian, its
# standard deviation.
MEAN, STD = "latent_mean", "latent_std"

# Batch key -> name of the text states that a frozen tower computed from its token ids.
STATES = "{}/states"

# Names of types in headers -> NumPy's types. Big-endian machines have no bfloat16.
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
      fields: Fields in their order in a record.
      size: Bytes of a record without its key.
    """

    def __init__(self, fields: Sequence[Field]) -> None:
        """Computes the offset of each array.

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
        """Makes the layout of examples like a given one.

        Args:
          example: Name -> array [...] without batch axis, in the order of the record.

        Returns:
          A RecordFormat.

        Raises:
          ValueError: If a value has a type that records cannot hold.
        """
        rows = [Field(k, v.dtype.name, tuple(v.shape)) for k, v in example.items()]
        return cls(rows)

    def pack(self, example: Mapping[str, Shaped[np.ndarray, "..."]], key: str) -> bytes:
        """Converts an example to bytes.

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
        """Converts a record to arrays.

        Args:
          record: Its bytes.
          names: Names of the arrays to return; all by default.

        Returns:
          Name -> array [...], of the stored type.

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
        """Converts the records of a batch to arrays.

        Args:
          records: Their bytes, B of them.
          names: Names of the arrays to return; all by default.

        Returns:
          Name -> array [B, ...], the results of `unpack` stacked.

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
        """Makes the description of the layout for a header.

        Returns:
          List of [name, type, shape].
        """
        return [[name, dtype, list(shape)] for name, dtype, shape in self.fields]

    @classmethod
    def from_json(cls, rows: Sequence[Sequence[Any]]) -> "RecordFormat":
        """Makes a layout from the result of `to_json`.

        Args:
          rows: List of [name, type, shape].

        Returns:
          A RecordFormat.

        Raises:
          ValueError: If it is anything else.
        """
        try:
            fields = [Field(str(n), str(t), tuple(map(int, s))) for n, t, s in rows]
        except TypeError as error:
            raise ValueError(f"its fields are damaged: {error}") from error
        return cls(fields)
