"""Which values of files are black and white, in the words of records and messages."""

# Where nothing else is said.
WHOLE_RANGE = "in the whole range of their type"

# What that is: of 8 bits, of 16, and of floats in files of samples.
_WHOLE = {(0.0, 255.0), (0.0, 65535.0), (-1.0, 1.0)}


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
      one: WHOLE_RANGE, or what `words_of` gives.
      other: Likewise.

    Returns:
      Whether they are the same. The whole range of a type is [0, 255], [0, 65535] or,
      of floats, [-1, 1]: of which type, the words do not say.
    """
    ranges = _numbers_in(one), _numbers_in(other)
    if WHOLE_RANGE in (one, other):
        return one == other or not _WHOLE.isdisjoint(ranges)
    return one == other or (None not in ranges and ranges[0] == ranges[1])


def _numbers_in(words):
    """(lowest, highest) in the words of a range, or None."""
    try:
        low, high = map(float, words.removeprefix("from ").split(" to "))
    except ValueError:
        return None
    return low, high
