"""Texts in records and messages on which values of files are black and white."""

# The default range.
WHOLE_RANGE = "in the whole range of their type"


def whole_range_of(low: float, high: float) -> str:
    """Describes the full range of a type.

    Args:
      low: The lowest value, which is black.
      high: The highest value, which is white.

    Returns:
      Text that begins with WHOLE_RANGE.
    """
    return f"{WHOLE_RANGE}, {words_of(low, high)}"


def words_of(low: float, high: float) -> str:
    """Describes a range, with the same text exactly for equal numbers.

    Args:
      low: The value that is black.
      high: The value that is white.

    Returns:
      Text.
    """
    # 4095 and 4095.0, 0 and -0.0 are equal.
    low, high = (repr(float(value) + 0.0).removesuffix(".0") for value in (low, high))
    return f"from {low} to {high}"


def same_range(one: str, other: str) -> bool:
    """Compares the ranges in two texts by their values.

    Args:
      one: Result of `words_of` or `whole_range_of`; WHOLE_RANGE in older versions.
      other: Likewise.

    Returns:
      Whether they are the same. All full ranges, of 8 or 16 bits, are the same, as
      images are mapped from them to one range. A range given by its values may be the
      full range of one type only; older versions did not record of which.
    """
    if one == other or (one.startswith(WHOLE_RANGE) and other.startswith(WHOLE_RANGE)):
        return True
    ranges = _numbers_in(one), _numbers_in(other)
    return None not in ranges and ranges[0] == ranges[1]


def _numbers_in(words):
    """(lowest, highest) in the text of a range, or None."""
    try:
        low, high = map(float, words.rpartition("from ")[2].split(" to "))
    except ValueError:
        return None
    return low, high
