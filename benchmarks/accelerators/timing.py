"""Timing of steps on either side: until the device is done, not only Python."""

import fcntl
import os
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple


class Timed(NamedTuple):
    """Result of `measure`.

    Attributes:
      seconds: Seconds per call, the median over laps of several calls each.
      spread: Longest minus shortest lap, divided by the median.
      calls: Number of timed calls.
      first: Seconds of the first call, including compilation.
    """

    seconds: float
    spread: float
    calls: int
    first: float


class Turn:
    """A lock with which processes compile at once, and measure one by one.

    A process measures only when all others have compiled: compilers try out kernels on
    the device, which would disturb the measurement.
    """

    def __init__(self, path: str) -> None:
        """Takes the shared lock, for compiling.

        Args:
          path: Lock file of all processes.
        """
        self._file = open(path, "a")
        fcntl.flock(self._file, fcntl.LOCK_SH)

    def take(self) -> None:
        """Takes the exclusive lock, for measuring; held until the process ends."""
        fcntl.flock(self._file, fcntl.LOCK_EX)


def measure(call: Callable[[], Any], wait: Callable[[], Any], turn: Turn) -> Timed:
    """Times a call that returns before the device is done.

    Args:
      call: Runs a step.
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
