"""The best checkpoint of a run: which one it is, and that it stays.

`best.json` in the workdir says it: by which result, and what that was.
"""

import json
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from absl import logging

from ldm_jax.files import write_json
from ldm_jax.reading import answering
from ldm_jax.store import Place, is_file, raise_if_silent

_NAME = "best.json"


class Best(NamedTuple):
    """What is known of the best checkpoint.

    Attributes:
      step: Its step.
      name: The result that it is the best by.
      value: What that was.
      better: Whether "lower" or "higher" is.
      how: Stands for the way in which it was measured; "" where that is not known.
    """

    step: int
    name: str
    value: float
    better: str
    how: str = ""

    def compares_with(self, other: "Best") -> bool:
        """Says whether two are of the same result, measured in the same way.

        Args:
          other: Another one.

        Returns:
          Whether they are.
        """
        return (self.name, self.how) == (other.name, other.how)

    def is_beaten_by(self, other: "Best") -> bool:
        """Says whether another one is better; one that does not compare always is.

        Args:
          other: It.

        Returns:
          Whether.
        """
        if not self.compares_with(other):
            return True
        value = other.value
        return value != self.value and (value < self.value) == (self.better == "lower")


def read_best(workdir: Place) -> Best | None:
    """Reads which checkpoint is the best.

    Args:
      workdir: Folder of the run.

    Returns:
      It, or None if no record of one can be read.

    Raises:
      Unreachable: If what it lies on does not answer.
    """
    path = workdir / _NAME
    with answering(path):
        if not is_file(path):
            return None
    try:
        best = Best(**json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError) as error:
        raise_if_silent(path, error)
        best = None
    if best is None or not _makes_sense(best):
        logging.warning("%s cannot be read: no checkpoint counts as the best", path)
        return None
    return best


def _makes_sense(best):
    kinds = (best.step, int), (best.name, str), (best.value, float), (best.how, str)
    right = all(type(value) is kind for value, kind in kinds)
    return right and math.isfinite(best.value) and best.better in ("lower", "higher")


def write_best(workdir: Place, best: Best) -> None:
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
          Whether it was taken; never where its result is not finite.
        """
        if not math.isfinite(found.value):
            return False
        if self.best and not self.best.is_beaten_by(found):
            return False
        self.best = found
        return True
