"""The record of a run's best checkpoint, and the policy to keep it.

`best.json` in the workdir holds its step, the metric that it is the best by, and the
value of that metric.
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
    """The record of the best checkpoint.

    Attributes:
      step: Its step.
      name: Name of the metric that it is the best by.
      value: Value of the metric.
      better: "lower" or "higher": which values of the metric are better.
      how: Identifies how the metric was computed; "" if unknown.
    """

    step: int
    name: str
    value: float
    better: str
    how: str = ""

    def compares_with(self, other: "Best") -> bool:
        """Whether two records are of the same metric, computed in the same way.

        Args:
          other: Another record.

        Returns:
          Whether they are.
        """
        return (self.name, self.how) == (other.name, other.how)

    def is_beaten_by(self, other: "Best") -> bool:
        """Whether another record is better; one that is not comparable always is.

        Args:
          other: The other record.

        Returns:
          Whether it is better.
        """
        if not self.compares_with(other):
            return True
        value = other.value
        return value != self.value and (value < self.value) == (self.better == "lower")


def read_best(workdir: Place) -> Best | None:
    """Reads the record of the best checkpoint.

    Args:
      workdir: Folder of the run.

    Returns:
      The record, or None if there is none that can be read.

    Raises:
      Unreachable: If the storage does not respond.
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
    """Writes the record of the best checkpoint.

    Args:
      workdir: Folder of the run.
      best: The record.

    Raises:
      DiskError: If it cannot be written.
    """
    write_json(workdir / _NAME, best._asdict())


class KeepBest:
    """Preservation policy for Orbax that keeps the best checkpoint.

    Attributes:
      best: Record of the best checkpoint; None for none.
    """

    def __init__(self, best: Best | None) -> None:
        """Starts from a recorded best checkpoint.

        Args:
          best: Its record; None for none.
        """
        self.best = best

    def should_preserve(
        self, checkpoints: Sequence[Any], *, context: Any
    ) -> Sequence[bool]:
        """Returns which checkpoints to keep.

        Args:
          checkpoints: Orbax's metadata of each, with its step.
          context: Unused.

        Returns:
          Whether to keep it, for each checkpoint.
        """
        del context
        step = None if self.best is None else self.best.step
        return [checkpoint.step == step for checkpoint in checkpoints]

    def takes(self, found: Best) -> bool:
        """Makes a checkpoint the best one if it is better than the best so far.

        Args:
          found: Record of the checkpoint.

        Returns:
          Whether it is the best now; False if its value is not finite.
        """
        if not math.isfinite(found.value):
            return False
        if self.best and not self.best.is_beaten_by(found):
            return False
        self.best = found
        return True
