"""Columns of what is known of examples: made of the fields of JSON, kept in arrays.

A column is float64 [N], NaN where a number is missing; bool [N]; or an array of objects
[N] of str, of truth values or of both and numbers, with None for what is missing.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ldm_jax.annotations import Int, Shaped

# Distinct values of a column that are a number, text, or a truth value.
_Scalar = bool | float | str


def scalars_of(fields: Mapping[str, Any], prefix: str = "") -> dict[str, _Scalar]:
    """Finds what can stand in columns.

    Args:
      fields: An object of JSON; of objects in it the fields are named "outer.inner".
      prefix: What comes before the names.

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
                found[name] = math.copysign(math.inf, value)
        elif isinstance(value, dict) and not prefix:
            found |= scalars_of(value, f"{name}.")
    return found


def pack_column(
    values: Iterable[tuple[int, _Scalar]], count: int
) -> tuple[dict[str, Any], dict[str, Shaped[np.ndarray, "..."]]]:
    """Packs a column for a file.

    Args:
      values: Pairs of (number of the example, value), where there is one.
      count: Number of examples.

    Returns:
      (header, arrays): header is JSON, for `unpack_column`; of numbers there is the
      array "numbers" float64 [count], of all else "codes" int32 [count], -1 for
      nothing, and "values" uint8, JSON of the list of distinct values.
    """
    rows, values = zip(*values, strict=True)
    if not any(isinstance(value, bool | str) for value in values):
        numbers = np.full(count, np.nan)
        numbers[list(rows)] = values
        return {"kind": "numbers"}, {"numbers": numbers.astype("<f8")}
    # True is equal to 1.
    distinct = {}
    found = [
        distinct.setdefault((type(value), value), len(distinct)) for value in values
    ]
    codes = np.full(count, -1, "<i4")
    codes[list(rows)] = found
    text = json.dumps([value for _, value in distinct]).encode()
    return {"kind": "values"}, {"codes": codes, "values": np.frombuffer(text, "|u1")}


def unpack_column(
    kind: str, arrays: Mapping[str, Shaped[np.ndarray, "..."]]
) -> Shaped[np.ndarray, " count"]:
    """Reads what `pack_column` made.

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
    distinct = np.empty(0, object)
    values = json.loads(arrays["values"].tobytes())
    distinct = np.empty(len(values) + 1, object)
    distinct[:-1] = values
    codes = arrays["codes"]
    if codes.size and not -1 <= codes.min() <= codes.max() < len(values):
        raise ValueError("a column is damaged")
    # The last one is None, which -1 stands for.
    return tidy(distinct[codes])


def tidy(column: Shaped[np.ndarray, " count"]) -> Shaped[np.ndarray, " count"]:
    """Gives a column of objects the type of its values, where they are of one.

    Args:
      column: Objects [count].

    Returns:
      bool [count] where all are truth values; float64 [count] where all that is there
      is numbers; else the objects.
    """
    kinds = {type(value) for value in column}
    if kinds == {bool}:
        return column.astype(bool)
    if kinds and kinds <= {int, float, type(None)} and kinds != {type(None)}:
        return column.astype(np.float64)
    return column


def join(columns: Sequence[Shaped[np.ndarray, "..."]]) -> Shaped[np.ndarray, " count"]:
    """Joins parts of a column, of shards that may hold other types.

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


def make_columns(
    rows: Sequence[Mapping[str, Any] | None],
) -> dict[str, Shaped[np.ndarray, " N"]]:
    """Makes columns of all fields of examples that can stand in one.

    Args:
      rows: Fields of each example, as JSON has them; None where there are none.

    Returns:
      Name -> column [N].
    """
    found = {}
    for number, row in enumerate(rows):
        for name, value in scalars_of(row or {}).items():
            if name not in found:
                found[name] = np.empty(len(rows), object)
            found[name][number] = value
    return {name: tidy(column) for name, column in found.items()}


def with_sizes(
    sizes: Callable[[], Int[np.ndarray, "N 2"]],
    other: Callable[[str], Shaped[np.ndarray, " N"]],
    names: Iterable[str],
) -> dict[str, Shaped[np.ndarray, " N"]]:
    """Gives columns, among them "width" and "height", and reads what is asked for.

    Args:
      sizes: Function that gives (height, width) of all images, integers [N, 2].
      other: Function of a name that gives another column [N].
      names: Which columns.

    Returns:
      Name -> column [N].
    """
    sides = {"height": 0, "width": 1}
    return {
        name: sizes()[:, sides[name]].astype(np.float64)
        if name in sides
        else other(name)
        for name in names
    }
