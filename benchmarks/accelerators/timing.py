"""Steps by the clock, on either side: until the device is done, not Python alone."""

import fcntl
import os
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple


class Timed(NamedTuple):
    """What was measured.

    Attributes:
      seconds: Of a call, the median over laps of several calls each.
      spread: Largest minus smallest lap over the median.
      calls: Calls that were timed.
      first: Seconds of the first call, compiling included.
    """

    seconds: float
    spread: float
    calls: int
    first: float


class Turn:
    """A device that several processes compile for at once, and measure one by one.

    Whoever measures has waited for all to have compiled: compilers try out kernels on
    the device, which would be in what is measured.
    """

    def __init__(self, path: str) -> None:
        """Begins to compile.

        Args:
          path: File that the processes have in common.
        """
        self._file = open(path, "a")
        fcntl.flock(self._file, fcntl.LOCK_SH)

    def take(self) -> None:
        """Waits until no other process compiles or measures; until this one ends."""
        fcntl.flock(self._file, fcntl.LOCK_EX)


def measure(call: Callable[[], Any], wait: Callable[[], Any], turn: Turn) -> Timed:
    """Times a call that returns before the device is done.

    Args:
      call: Does a step.
      wait: Waits for all steps.
      turn: Turn, taken after the first call.

    Returns:
      Timed.
    """
    start = time.perf_counter()
    call()
    wait()
    first = time.perf_counter() - start
    turn.take()
    one = _lap(call, wait, 2)
    budget = float(os.environ.get("BENCHMARK_SECONDS", "12"))
    each = max(1, min(20, int(budget / 5 / one)))
    laps = [_lap(call, wait, each) for _ in range(5)]
    median = statistics.median(laps)
    return Timed(median, (max(laps) - min(laps)) / median, 5 * each, first)


def _lap(call, wait, calls):
    wait()
    start = time.perf_counter()
    for _ in range(calls):
        call()
    wait()
    return (time.perf_counter() - start) / calls
