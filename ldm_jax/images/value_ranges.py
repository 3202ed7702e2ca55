"""Which values of files are black and white, in the words of records and messages."""

# Where nothing else is said.
WHOLE_RANGE = "in the whole range of their type"


def whole_range_of(low: float, high: float) -> str:
    """Says the whole range of a type in words.

    Args:
      low: The lowest value, which is black.
      high: The highest value, which is white.

    Returns:
      Words, which begin with WHOLE_RANGE.
    """
    return f"{WHOLE_RANGE}, {words_of(low, high)}"


def words_of(low: float, high: float) -> str:
    """Says a range in words, the same for equal numbers and others for others.

    Args:
      low: The value that is black.
      high: The value that is white.

    Returns:
      Words.
    """
    # 4095 and 4095.0, 0 and -0.0 are equal.
    low, high = (repr(float(value) + 0.0).removesuffix(".0") for value in (low, high))
    return f"from {low} to {high}"


def same_range(one: str, other: str) -> bool:
    """Compares ranges by their values, whatever words say them.

    Args:
      one: What `words_of` or `whole_range_of` gives; of older versions WHOLE_RANGE.
      other: Likewise.

    Returns:
      Whether they are the same. Images that fill their types, of 8 bits and of 16, are
      brought to one range; one that is given is the whole range of one type only, and
      older versions did not say of which.
    """
    if one == other or (one.startswith(WHOLE_RANGE) and other.startswith(WHOLE_RANGE)):
        return True
    ranges = _numbers_in(one), _numbers_in(other)
    return None not in ranges and ranges[0] == ranges[1]


def _numbers_in(words):
    """(lowest, highest) in the words of a range, or None."""
    try:
        low, high = map(float, words.rpartition("from ")[2].split(" to "))
    except ValueError:
        return None
    return low, high
