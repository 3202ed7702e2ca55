"""What a measurement gives."""

from typing import NamedTuple


class Result(NamedTuple):
    """A number and what it is.

    Attributes:
      value: The number.
      deviation: Its standard deviation where it is estimated, or None.
      count: Number of images that were measured.
      label: What it is called in reports.
      note: What must be known to read it, in a few words; may be empty.
      bias: By how much it is above that of infinitely many images, where it is
        estimated, or None.
    """

    value: float
    deviation: float | None = None
    count: int = 0
    label: str = ""
    note: str = ""
    bias: float | None = None
