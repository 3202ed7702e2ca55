"""Kinds of checks of a value, and the error message of each."""

import math
import numbers
import os
from collections.abc import Callable
from typing import Any, NamedTuple

from ldm_jax.errors import ConfigError

# Maximum length of a tuple.
_MOST = 2**16

# No valid whole number has more digits.
_MOST_DIGITS = 20


class Check(NamedTuple):
    """A check of a value.

    Attributes:
      what: What the value must be, in words that follow "must be".
      accepts: Value -> whether it is valid.
      note: Meaning of special values, in words that follow a semicolon.
    """

    what: str
    accepts: Callable[[Any], bool]
    note: str = ""

    def problem(self, name: str, value: Any) -> str:
        """Returns the error message for an invalid value.

        Args:
          name: Name of the value.
          value: The value.

        Returns:
          One line.
        """
        note = f"; {self.note}" if self.note else ""
        return f"{name} must be {self.what}, got {shown(value)}{note}"


def whole(least: int, most: int | None = None, none: str = "", zero: str = "") -> Check:
    """Checks for a whole number.

    Args:
      least: Minimum.
      most: Maximum; none by default.
      none: Meaning of None; if empty, None is invalid.
      zero: Meaning of 0, if it is a special value.

    Returns:
      The check.
    """

    def accepts(value):
        return is_whole(value) and least <= value <= (
            math.inf if most is None else most
        )

    limits = f"{least:,} or more" if most is None else f"from {least:,} to {most:,}"
    what = f"{limits} (a whole number)"
    return _optional(what, accepts, none, zero)


def real(
    least: float = -math.inf,
    most: float = math.inf,
    open_: str = "",
    none: str = "",
    zero: str = "",
) -> Check:
    """Checks for a finite number.

    Args:
      least: Minimum.
      most: Maximum.
      open_: "(", ")" or both: the ends of the interval that are excluded.
      none: Meaning of None; if empty, None is invalid.
      zero: Meaning of 0, if it is a special value.

    Returns:
      The check.
    """
    above, below = "(" in open_, ")" in open_

    def accepts(value):
        if not is_real(value) or not math.isfinite(value):
            return False
        low = least < value if above else least <= value
        return low and (value < most if below else value <= most)

    ends = ("(" if above else "[") + f"{least:g}, {most:g}" + (")" if below else "]")
    what = f"in {ends}" if math.isfinite(least + most) else "a finite number"
    if open_ == "(":
        what = f"more than {least:g}, at most {most:g}"
    return _optional(what, accepts, none, zero)


def text(empty: bool = False, none: str = "") -> Check:
    """Checks for a string.

    Args:
      empty: Whether it may be empty.
      none: Meaning of None; if empty, None is invalid.

    Returns:
      The check.
    """

    def accepts(value):
        return isinstance(value, str) and (empty or bool(value.strip()))

    return _optional("a string" if empty else "a string, not empty", accepts, none, "")


def place(none: str = "") -> Check:
    """Checks for the path of a file or folder, on a disk or at gs://; it may be empty.

    Python would treat any other address as a local folder, and write there.

    Args:
      none: Meaning of None; if empty, None is invalid.

    Returns:
      The check.
    """

    def accepts(value):
        if not isinstance(value, str | os.PathLike):
            return False
        return "://" not in str(value) or str(value).startswith("gs://")

    note = "of the object stores gs:// alone is supported: mount others, or copy it"
    if none:
        note = f"None is {none}; {note}"
        return Check("a path", lambda v: v is None or accepts(v), note)
    return Check("a path", accepts, note)


def local_place(none: str = "") -> Check:
    """Checks for a path on a disk of this machine; it may be empty.

    Args:
      none: Meaning of None; if empty, None is invalid.

    Returns:
      The check.
    """
    check = place(none)

    def accepts(value):
        return check.accepts(value) and "://" not in str(value)

    return Check("a local path", accepts, "it must lie on a disk of this machine")


def several(check: Check, least: int = 0, most: int = _MOST, none: str = "") -> Check:
    """Checks for a tuple or list.

    Args:
      check: Check of each of its values.
      least: Minimum length.
      most: Maximum length.
      none: Meaning of None; if empty, None is invalid.

    Returns:
      The check.
    """

    def accepts(value):
        if not isinstance(value, tuple | list) or not least <= len(value) <= most:
            return False
        return all(map(check.accepts, value))

    what = f"a tuple of values that are each {check.what}"
    return _optional(what, accepts, none, "")


def per_level(check: Check, none: str = "") -> Check:
    """Checks for one value, or a tuple with one for each level.

    Args:
      check: Check of each value.
      none: Meaning of None; if empty, None is invalid.

    Returns:
      The check.
    """
    many = several(check, 1)

    def accepts(value):
        return check.accepts(value) or many.accepts(value)

    return _optional(f"{check.what}, or a tuple of such", accepts, none, "")


def _optional(what, accepts, none, zero):
    """Makes a check that may accept None, with a note on the meaning of None and 0."""
    if zero and zero == none:
        note = f"0 or None is {zero}"
    else:
        rows = (("0", zero), ("None", none))
        note = ", ".join(f"{value} is {words}" for value, words in rows if words)
    if none:
        return Check(what, lambda value: value is None or accepts(value), note)
    return Check(what, accepts, note)


def is_whole(value: Any) -> bool:
    """Whether a value is a whole number; those of NumPy count.

    Args:
      value: Anything.

    Returns:
      Whether it is; False for booleans.
    """
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def read_whole(text: str, least: int = 0, most: int = 10**18) -> int | None:
    """Parses a whole number, written only in the digits 0 to 9.

    `str.isdigit` is true for digits that `int` does not parse, such as a superscript 2,
    and `int` rejects more than 4,300 digits.

    Args:
      text: Any text.
      least: Minimum, 0 or more.
      most: Maximum.

    Returns:
      The number; None if the text is not a number, or not within these limits.
    """
    if not (text.isascii() and text.isdecimal()) or len(text) > _MOST_DIGITS:
        return None
    return int(text) if least <= int(text) <= most else None


def is_real(value: Any) -> bool:
    """Whether a value is a real number.

    Args:
      value: Anything.

    Returns:
      Whether it is; False for booleans.
    """
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def check_value(check: Check, value: Any, name: str) -> None:
    """Checks one value.

    Args:
      check: The check.
      value: The value.
      name: Name of the value, for the message.

    Raises:
      ConfigError: If the value is invalid.
    """
    if not check.accepts(value):
        raise ConfigError(check.problem(name, value))


def shown(value: Any) -> str:
    """Formats a value for a message; a long one is truncated.

    Args:
      value: Anything.

    Returns:
      Text of one line.
    """
    try:
        words = value if isinstance(value, str) and value else repr(value)
    except ValueError:
        # Python does not convert integers of thousands of digits to text.
        words = "a very large number"
    words = " ".join(words.split())
    return words if len(words) <= 60 else words[:57] + "..."
