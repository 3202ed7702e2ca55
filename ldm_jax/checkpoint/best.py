"""The best checkpoint of a run: which one it is, and that it stays.

`best.json` in the workdir says it: by which result, and what that was.
"""

import json
import math
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from ldm_jax.files import write_json

_NAME = "best.json"


class Best(NamedTuple):
    """What is known of the best checkpoint.

    Attributes:
      step: Its step.
      name: The result that it is the best by.
      value: What that was.
      better: Whether "lower" or "higher" is.
    """

    step: int
    name: str
    value: float
    better: str

    def is_beaten_by(self, name: str, value: float) -> bool:
        """Says whether another result is better; that of another name always is.

        Args:
          name: The result.
          value: What it is.

        Returns:
          Whether.
        """
        if name != self.name:
            return True
        return value != self.value and (value < self.value) == (self.better == "lower")


def read_best(workdir: pathlib.Path) -> Best | None:
    """Reads which checkpoint is the best.

    Args:
      workdir: Folder of the run.

    Returns:
      It, or None if no record of one can be read.
    """
    try:
        return Best(**json.loads((workdir / _NAME).read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


def write_best(workdir: pathlib.Path, best: Best) -> None:
    """Records which checkpoint is the best.

    Args:
      workdir: Folder of the run.
      best: It.

    Raises:
      DiskError: If it cannot be written.
    """
    write_json(workdir / _NAME, best._asdict())


class KeepBest:
    """Orbax's policy that the best checkpoint stays.

    Attributes:
      best: Which one it is; None for none.
    """

    def __init__(self, best: Best | None) -> None:
        """Begins with what is recorded.

        Args:
          best: Which one it is; None for none.
        """
        self.best = best

    def should_preserve(
        self, checkpoints: Sequence[Any], *, context: Any
    ) -> Sequence[bool]:
        """Says which checkpoints stay.

        Args:
          checkpoints: What Orbax knows of each, its step for one.
          context: Unused.

        Returns:
          One answer for each.
        """
        del context
        step = None if self.best is None else self.best.step
        return [checkpoint.step == step for checkpoint in checkpoints]

    def takes(self, found: Best) -> bool:
        """Takes a checkpoint for the best if it is better than the one so far.

        Args:
          found: It.

        Returns:
          Whether it was taken; never where its result is not a number.
        """
        if math.isnan(found.value):
            return False
        if self.best and not self.best.is_beaten_by(found.name, found.value):
            return False
        self.best = found
        return True
