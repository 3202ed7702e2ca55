"""The result of a metric."""

from typing import NamedTuple


class Result(NamedTuple):
    """The value of a metric, with its uncertainty and notes.

    Attributes:
      value: The number.
      deviation: Its standard deviation if it is estimated, or None.
      count: Number of images that were measured.
      label: Title for reports.
      note: What a reader of the number must know, in a few words; may be empty.
      bias: By how much the number is above that of infinitely many images, if this is
        estimated, or None.
    """

    value: float
    deviation: float | None = None
    count: int = 0
    label: str = ""
    note: str = ""
    bias: float | None = None
