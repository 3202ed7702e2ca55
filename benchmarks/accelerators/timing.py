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


def measure(call: Callable[[], Any], wait: Callable[[], Any], turn: str) -> Timed:
    """Times a call that returns before the device is done.

    Compiling goes on beside the other side; what is timed has the device alone.

    Args:
      call: Does a step.
      wait: Waits for all steps.
      turn: File that is locked by who measures.

    Returns:
      Timed.
    """
    start = time.perf_counter()
    call()
    wait()
    first = time.perf_counter() - start
    with open(turn, "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
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
