"""Values of the parts of a filter: columns and constants, with missing values.

Any comparison with a missing value is false; only `is None` and `is not None` test for
missing values. Arithmetic with a missing value gives a missing value, and so does
division by zero.
"""

import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ldm_jax.annotations import Bool, Shaped

_NAMES = {
    "number": "a number",
    "bool": "true or false",
    "text": "text",
    "none": "None",
    "absent": "never there",
    "mixed": "of several types",
}


class Value(NamedTuple):
    """A column, a constant, or a value computed from them.

    Attributes:
      kind: "number", "bool", "text", "none" (the constant), "absent" (a column without
        any values), "mixed" or "list".
      data: Array [N] or scalar: float64, bool or objects; for a "list" its Values.
      missing: bool array [N] or scalar, true where the value is missing.
      name: Its text in the filter, for messages.
    """

    kind: str
    data: Any
    missing: Any
    name: str

    def says(self) -> str:
        """Describes the value for messages.

        Returns:
          Text such as "aesthetic is a number".
        """
        return f"{self.name} is {_NAMES.get(self.kind, 'a list')}"


def of_column(name: str, column: Shaped[np.ndarray, " N"]) -> Value:
    """Makes a Value from a column.

    Args:
      name: Its name.
      column: Numbers, bools or objects [N]; see `tables.py`.

    Returns:
      A Value of the common kind of all values that exist, "mixed" for several kinds.
    """
    if column.dtype.kind == "b":
        return Value("bool", column, np.zeros(len(column), bool), name)
    if column.dtype.kind in "iuf":
        numbers = column.astype(np.float64)
        missing = np.isnan(numbers)
        kind = "absent" if missing.all() else "number"
        return Value(kind, numbers, missing, name)
    kinds = {type(value) for value in column} - {type(None)}
    missing = np.array([value is None for value in column], bool)
    if kinds == {str}:
        return Value("text", column, missing, name)
    if kinds == {bool}:
        return Value(
            "bool", np.where(missing, False, column).astype(bool), missing, name
        )
    return Value("mixed" if kinds else "absent", column, missing, name)


def of_constant(value: Any, name: str) -> Value:
    """Makes a Value from a constant.

    Args:
      value: Number, bool, str or None.
      name: Its text in the filter.

    Returns:
      A Value.

    Raises:
      ValueError: If it is of another type.
    """
    if value is None:
        return Value("none", None, True, name)
    if isinstance(value, bool):
        return Value("bool", np.bool_(value), False, name)
    if isinstance(value, int | float):
        try:
            number = np.float64(value)
        except OverflowError as error:
            raise ValueError(f"{name[:20]}... is too large") from error
        return Value("number", number, np.isnan(number), name)
    if isinstance(value, str):
        return Value("text", value, False, name)
    raise ValueError(f"{name} is no number, text, True, False or None")


COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}

ARITHMETIC: dict[str, Callable[[Any, Any], Any]] = {
    "+": np.add,
    "-": np.subtract,
    "*": np.multiply,
    "/": np.divide,
    "%": np.mod,
}


def compare(sign: str, left: Value, right: Value) -> Value:
    """Compares two values.

    Args:
      sign: Key of COMPARISONS.
      left: One.
      right: The other.

    Returns:
      Value of kind "bool".

    Raises:
      ValueError: If their types differ, or cannot be compared.
    """
    name = f"{left.name} {sign} {right.name}"
    if sign in ("==", "!=") and "none" in (left.kind, right.kind):
        # `x == None` is taken as `x is None`.
        return is_none(right if left.kind == "none" else left, sign == "!=", name)
    left, right = _alike(left, right, name)
    missing = left.missing | right.missing
    if "absent" in (left.kind, right.kind):
        return _truth(np.zeros(np.shape(missing), bool), name)
    if left.kind == "text":
        found = _of_texts(COMPARISONS[sign], left, right, missing)
    else:
        with np.errstate(invalid="ignore"):
            found = COMPARISONS[sign](left.data, right.data)
    return _truth(np.logical_and(found, ~np.asarray(missing)), name)


def _alike(left, right, name):
    """Converts two values to one kind; raises if they cannot be compared."""
    for value in (left, right):
        if value.kind in ("mixed", "none", "list"):
            raise ValueError(f"{name}: {value.says()}, which cannot be compared")
    if {left.kind, right.kind} == {"bool", "number"}:
        left, right = (
            value._replace(kind="number", data=np.asarray(value.data, np.float64))
            for value in (left, right)
        )
    if left.kind != right.kind and "absent" not in (left.kind, right.kind):
        raise ValueError(f"{name}: {left.says()}, and {right.says()}")
    return left, right


def _of_texts(compare, left, right, missing):
    """Applies a function of two str where neither is missing."""
    one, other, there = np.broadcast_arrays(
        _objects(left.data), _objects(right.data), ~np.asarray(missing)
    )
    found = np.zeros(there.shape, bool)
    found[there] = [
        compare(a, b) for a, b in zip(one[there], other[there], strict=True)
    ]
    return found


def _objects(data):
    if isinstance(data, np.ndarray):
        return data
    scalar = np.empty((), object)
    scalar[()] = data
    return scalar


def is_none(value: Value, negated: bool, name: str) -> Value:
    """Tests whether a value is missing.

    Args:
      value: The value.
      negated: Whether to negate the result.
      name: Text of the test in the filter.

    Returns:
      Value of kind "bool".
    """
    return _truth(np.asarray(value.missing) ^ negated, name)


def contains(value: Value, container: Value, negated: bool) -> Value:
    """Tests whether a value is in a list, or text in another text.

    Args:
      value: The value to find.
      container: Value of kind "list" or "text".
      negated: Whether to negate the result, which is false for missing values anyway.

    Returns:
      Value of kind "bool".

    Raises:
      ValueError: If the types do not match.
    """
    name = f"{value.name} {'not in' if negated else 'in'} {container.name}"
    if container.kind == "list":
        found = np.asarray(False)
        for item in container.data:
            found = found | compare("==", value, item).data
        # A list may contain None, so `found` may be true for missing values.
        known = ~np.asarray(value.missing)
        return _truth(~found & known if negated else found, name)
    for side in (container, value):
        if side.kind not in ("text", "absent"):
            raise ValueError(f"{name}: {side.says()}; text can be in text or in a list")
    missing = np.asarray(value.missing | container.missing)
    found = _of_texts(lambda a, b: a in b, value, container, missing)
    return _truth((found ^ negated) & ~missing, name)


def calculate(sign: str, left: Value, right: Value) -> Value:
    """Calculates with numbers.

    Args:
      sign: Key of ARITHMETIC.
      left: One.
      right: The other.

    Returns:
      Value of kind "number".

    Raises:
      ValueError: If one is not a number.
    """
    name = f"{left.name} {sign} {right.name}"
    for value in (left, right):
        if value.kind not in ("number", "bool", "absent"):
            raise ValueError(f"{name}: {value.says()}, not a number")
    with np.errstate(all="ignore"):
        data = ARITHMETIC[sign](
            np.asarray(left.data, np.float64), np.asarray(right.data, np.float64)
        )
    data = np.where(left.missing | right.missing, np.nan, data)
    return Value("number", data, ~np.isfinite(data), name)


def truth_of(value: Value) -> Bool[Any, "..."]:
    """Converts a value to a condition.

    Args:
      value: Value of kind "bool".

    Returns:
      bool [N] or a scalar; false where the value is missing.

    Raises:
      ValueError: If it is of another kind.
    """
    if value.kind == "absent":
        return np.zeros(np.shape(value.missing), bool)
    if value.kind != "bool":
        raise ValueError(f"{value.says()}: compare it with something")
    return np.asarray(value.data, bool) & ~np.asarray(value.missing)


def length(value: Value) -> Value:
    """Counts characters: `len(caption)`.

    Args:
      value: Text.

    Returns:
      Value of kind "number".

    Raises:
      ValueError: If it is not text.
    """
    return _each(len, value, "len", "number")


def lower(value: Value) -> Value:
    """Converts text to lower case: `lower(caption)`.

    Args:
      value: Text.

    Returns:
      Value of kind "text".

    Raises:
      ValueError: If it is not text.
    """
    return _each(str.lower, value, "lower", "text")


def _each(function, value, name, kind):
    name = f"{name}({value.name})"
    if value.kind not in ("text", "absent"):
        raise ValueError(f"{name}: {value.says()}, not text")
    texts, missing = np.broadcast_arrays(_objects(value.data), value.missing)
    empty = np.nan if kind == "number" else None
    found = [
        empty if gone else function(text)
        for text, gone in zip(texts.ravel(), missing.ravel(), strict=True)
    ]
    data = np.empty(texts.shape, np.float64 if kind == "number" else object)
    data.ravel()[:] = found
    return Value(kind, data, missing, name)


def combine(name: str, values: Sequence[Value]) -> Value:
    """Joins conditions by "and" or "or".

    Args:
      name: "and" or "or".
      values: Conditions.

    Returns:
      Value of kind "bool".

    Raises:
      ValueError: If one is not a condition.
    """
    join = np.logical_and if name == "and" else np.logical_or
    result = truth_of(values[0])
    for value in values[1:]:
        result = join(result, truth_of(value))
    return _truth(result, f" {name} ".join(value.name for value in values))


def negate(value: Value) -> Value:
    """Negates a condition.

    Args:
      value: Condition.

    Returns:
      Value of kind "bool".

    Raises:
      ValueError: If it is not a condition.
    """
    return _truth(~truth_of(value), f"not {value.name}")


def _truth(data, name):
    return Value("bool", np.asarray(data, bool), np.False_, name)
