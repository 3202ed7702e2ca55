"""What a value must be: the kinds of checks, and the message of each."""

import math
import numbers
import os
from collections.abc import Callable
from typing import Any, NamedTuple

from ldm_jax.errors import ConfigError

# The longest tuple.
_MOST = 2**16

# More are no number of anything.
_MOST_DIGITS = 20


class Check(NamedTuple):
    """What a value must be.

    Attributes:
      what: The same in words, to follow "must be".
      accepts: Value -> whether it is that.
      note: What values with a meaning of their own mean, to follow a semicolon.
    """

    what: str
    accepts: Callable[[Any], bool]
    note: str = ""

    def problem(self, name: str, value: Any) -> str:
        """Says what is wrong with a value.

        Args:
          name: What the value is called.
          value: The value.

        Returns:
          One line.
        """
        note = f"; {self.note}" if self.note else ""
        return f"{name} must be {self.what}, got {shown(value)}{note}"


def whole(least: int, most: int | None = None, none: str = "", zero: str = "") -> Check:
    """A whole number.

    Args:
      least: The least.
      most: The largest; none by default.
      none: What None means; it is refused where that is nothing.
      zero: What 0 means, where that is something of its own.

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
    """A finite number.

    Args:
      least: The least.
      most: The largest.
      open_: "(", ")" or both: the ends that do not belong to it.
      none: What None means; it is refused where that is nothing.
      zero: What 0 means, where that is something of its own.

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
    """A string.

    Args:
      empty: Whether it may be empty.
      none: What None means; it is refused where that is nothing.

    Returns:
      The check.
    """

    def accepts(value):
        return isinstance(value, str) and (empty or bool(value.strip()))

    return _optional("a string" if empty else "a string, not empty", accepts, none, "")


def place(none: str = "") -> Check:
    """A file or folder, on a disk or in an object store; it may be empty.

    Python would take another address for a local folder, and write there.

    Args:
      none: What None means; it is refused where that is nothing.

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
    """A file or folder on a disk of this machine; it may be empty.

    Args:
      none: What None means; it is refused where that is nothing.

    Returns:
      The check.
    """
    check = place(none)

    def accepts(value):
        return check.accepts(value) and "://" not in str(value)

    return Check("a local path", accepts, "it must lie on a disk of this machine")


def several(check: Check, least: int = 0, most: int = _MOST, none: str = "") -> Check:
    """A tuple or list.

    Args:
      check: What each of its values must be.
      least: How many there are at least.
      most: How many there are at most.
      none: What None means; it is refused where that is nothing.

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
    """One value, or one for each level.

    Args:
      check: What a value must be.
      none: What None means; it is refused where that is nothing.

    Returns:
      The check.
    """
    many = several(check, 1)

    def accepts(value):
        return check.accepts(value) or many.accepts(value)

    return _optional(f"{check.what}, or a tuple of such", accepts, none, "")


def _optional(what, accepts, none, zero):
    """Adds None, and in words what it and 0 mean."""
    if zero and zero == none:
        note = f"0 or None is {zero}"
    else:
        rows = (("0", zero), ("None", none))
        note = ", ".join(f"{value} is {words}" for value, words in rows if words)
    if none:
        return Check(what, lambda value: value is None or accepts(value), note)
    return Check(what, accepts, note)


def is_whole(value: Any) -> bool:
    """Says whether a value is a whole number, as NumPy's are, too.

    Args:
      value: Anything.

    Returns:
      Whether it is; True and False are none.
    """
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def read_whole(text: str, least: int = 0, most: int = 10**18) -> int | None:
    """Reads a whole number, written in the digits 0 to 9 alone.

    `str.isdigit` is true of digits that `int` does not read, as of a raised 2, and
    `int` refuses more than 4,300 of them.

    Args:
      text: Any text.
      least: The least, 0 or more.
      most: The largest.

    Returns:
      The number; None if the text is none, or none in these limits.
    """
    if not (text.isascii() and text.isdecimal()) or len(text) > _MOST_DIGITS:
        return None
    return int(text) if least <= int(text) <= most else None


def is_real(value: Any) -> bool:
    """Says whether a value is a number.

    Args:
      value: Anything.

    Returns:
      Whether it is; True and False are none.
    """
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def check_value(check: Check, value: Any, name: str) -> None:
    """Checks one value.

    Args:
      check: What it must be.
      value: The value.
      name: What it is called, for the message.

    Raises:
      ConfigError: If it is something else.
    """
    if not check.accepts(value):
        raise ConfigError(check.problem(name, value))


def shown(value: Any) -> str:
    """Writes a value for a message, where it is long its beginning.

    Args:
      value: Anything.

    Returns:
      Text of one line.
    """
    try:
        words = value if isinstance(value, str) and value else repr(value)
    except ValueError:
        # Python writes no whole numbers of thousands of digits.
        words = "a very large number"
    words = " ".join(words.split())
    return words if len(words) <= 60 else words[:57] + "..."
