"""Columns of metadata of examples: made from the fields of JSON, stored in arrays.

A column is float64 [N], with NaN for missing numbers; bool [N]; or an array of objects
[N] that are str, bools, or these and numbers mixed, with None for missing values.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ldm_jax.annotations import Int, Shaped
from ldm_jax.reading import parse_json

# Maximum number of columns: some data sets use ids as keys of an object, all distinct.
MOST_COLUMNS = 1000

# A value of a column: a number, text, or a bool.
_Scalar = bool | float | str


def scalars_of(fields: Mapping[str, Any], prefix: str = "") -> dict[str, _Scalar]:
    """Finds the values that can be in columns.

    Args:
      fields: A JSON object; fields of objects in it are named "outer.inner".
      prefix: Prefix of the names.

    Returns:
      Name -> bool, float or str.
    """
    found = {}
    for name, value in fields.items():
        name = f"{prefix}{name}"
        if isinstance(value, bool | str):
            found[name] = value
        elif isinstance(value, int | float):
            try:
                found[name] = float(value)
            except OverflowError:
                found[name] = math.inf if value > 0 else -math.inf
        elif isinstance(value, dict) and not prefix:
            found |= scalars_of(value, f"{name}.")
    return found


class Table:
    """Columns under construction: stores only the values that exist.

    Attributes:
      left_out: The first field without a column, as there are MOST_COLUMNS, or None.
    """

    def __init__(self) -> None:
        """Starts without columns."""
        self._columns, self.left_out = {}, None

    def add(self, number: int, fields: Mapping[str, Any] | None) -> None:
        """Adds the fields of an example.

        Args:
          number: Its number.
          fields: A JSON object, or None.
        """
        for name, value in scalars_of(fields or {}).items():
            self.put(number, name, value)

    def put(self, number: int, name: str, value: _Scalar) -> None:
        """Adds one value.

        Args:
          number: Number of the example.
          name: Name of the column.
          value: The value.
        """
        if name not in self._columns:
            if len(self._columns) >= MOST_COLUMNS:
                self.left_out = self.left_out or name
                return
            self._columns[name] = [], []
        rows, values = self._columns[name]
        rows.append(number)
        values.append(value)

    @property
    def names(self) -> tuple[str, ...]:
        """Sorted names of the columns."""
        return tuple(sorted(self._columns))

    def pack(
        self, name: str, count: int
    ) -> tuple[dict[str, Any], dict[str, Shaped[np.ndarray, "..."]]]:
        """Packs a column for a file; see `pack_column`.

        Args:
          name: One of `names`.
          count: Number of examples.

        Returns:
          (header, arrays [count] and [bytes]).
        """
        return pack_column(*self._columns[name], count)

    def column(self, name: str, count: int) -> Shaped[np.ndarray, " count"]:
        """Makes a column.

        Args:
          name: Its name.
          count: Number of examples.

        Returns:
          Column [count]; all NaN if there is none of that name.
        """
        if name not in self._columns:
            return np.full(count, np.nan)
        rows, values = self._columns[name]
        column = np.full(count, None, object)
        column[rows] = values
        return tidy(column)


def pack_column(
    rows: Sequence[int], values: Sequence[_Scalar], count: int
) -> tuple[dict[str, Any], dict[str, Shaped[np.ndarray, "..."]]]:
    """Packs a column for a file.

    Args:
      rows: Numbers of the examples that have a value.
      values: Their values.
      count: Number of examples.

    Returns:
      (header, arrays): header is JSON-like, for `unpack_column`; for numbers there is
      the array "numbers" float64 [count], for other values "codes" int32 [count], -1 if
      missing, and "values" uint8, the list of distinct values as JSON.
    """
    if not any(isinstance(value, bool | str) for value in values):
        numbers = np.full(count, np.nan)
        numbers[rows] = values
        return {"kind": "numbers"}, {"numbers": numbers.astype("<f8")}
    # Distinguished by type, as True == 1.
    distinct = {}
    found = [
        distinct.setdefault((type(value), value), len(distinct)) for value in values
    ]
    codes = np.full(count, -1, "<i4")
    codes[rows] = found
    text = json.dumps([value for _, value in distinct]).encode()
    return {"kind": "values"}, {"codes": codes, "values": np.frombuffer(text, "|u1")}


def unpack_column(
    kind: str, arrays: Mapping[str, Shaped[np.ndarray, "..."]]
) -> Shaped[np.ndarray, " count"]:
    """Unpacks a column that was packed by `pack_column`.

    Args:
      kind: "numbers" or "values".
      arrays: Its arrays [count] and [bytes].

    Returns:
      Column [count].

    Raises:
      ValueError: If the file is damaged.
    """
    if kind == "numbers":
        return arrays["numbers"]
    values = parse_json(arrays["values"].tobytes())
    distinct = np.empty(len(values) + 1, object)
    distinct[:-1] = values
    codes = arrays["codes"]
    if codes.size and not -1 <= codes.min() <= codes.max() < len(values):
        raise ValueError("a column is damaged")
    # The last one is None, the value of code -1.
    return tidy(distinct[codes])


def tidy(column: Shaped[np.ndarray, " count"]) -> Shaped[np.ndarray, " count"]:
    """Converts a column of objects to the type of its values, if they have only one.

    Args:
      column: Objects [count].

    Returns:
      bool [count] if all are bools; float64 [count] if all are numbers or missing; else
      the objects.
    """
    kinds = {type(value) for value in column}
    if kinds == {bool}:
        return column.astype(bool)
    if kinds and kinds <= {int, float, type(None)} and kinds != {type(None)}:
        return column.astype(np.float64)
    return column


def join(columns: Sequence[Shaped[np.ndarray, "..."]]) -> Shaped[np.ndarray, " count"]:
    """Joins parts of a column, from shards that may have different types.

    Args:
      columns: Parts [n].

    Returns:
      Column [count].
    """
    kinds = {column.dtype.kind for column in columns}
    if len(kinds) <= 1:
        return np.concatenate(columns) if columns else np.empty(0)
    parts = []
    for column in columns:
        part = column.astype(object)
        if column.dtype.kind == "f":
            part[np.isnan(column)] = None
        parts.append(part)
    return tidy(np.concatenate(parts))


def make_table(rows: Iterable[Mapping[str, Any] | None]) -> Table:
    """Makes columns from all fields of examples that can be in one.

    Args:
      rows: Fields of each example, a JSON object, or None.

    Returns:
      A Table.
    """
    table = Table()
    for number, row in enumerate(rows):
        table.add(number, row)
    return table


# The columns of the sizes of images, in the order of the sizes.
SIZES = ("height", "width")


def with_sizes(
    sizes: Callable[[], Int[np.ndarray, "N 2"]],
    other: Callable[[str], Shaped[np.ndarray, " N"]] | None,
    names: Iterable[str],
) -> dict[str, Shaped[np.ndarray, " N"]]:
    """Reads columns, among them "width" and "height" from the sizes of images.

    Args:
      sizes: Function that returns (height, width) of all images, integers [N, 2].
      other: Function of a name that returns any other column [N]; None if there are no
        others.
      names: Names of the columns.

    Returns:
      Name -> column [N].
    """
    return {
        name: sizes()[:, SIZES.index(name)].astype(np.float64)
        if name in SIZES
        else other(name)
        for name in names
    }
