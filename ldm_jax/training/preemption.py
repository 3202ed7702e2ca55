"""Notices that the machine wants the run to end, so that it can save first."""

import os
import signal

import jax
from jax.experimental import multihost_utils


class Preemption:
    r"""Turns SIGTERM and Ctrl-C into a flag that the loop reads.

    From `listen` to `close` they change nothing else, however many come: the second of
    two must not undo what the first asked for. SIGKILL, or Ctrl-\ in a terminal, ends
    a run at once; what it had saved stays whole.

    With several processes the decision must fall on the same step everywhere: JAX's
    coordination service then catches SIGTERM itself and agrees on a step.

    Attributes:
      signal: Number of the signal that came: SIGTERM if that is among several, or if
        it came to another process. SIGINT if both came to one process of several, of
        which JAX keeps SIGTERM to itself.
    """

    def __init__(self, text: str = "this step is finished and saved first") -> None:
        """Does nothing yet: until there is something to save, a signal ends the run.

        Args:
          text: What is said to come before the end.
        """
        self._text = f"\nasked to stop: {text}\n".encode()
        self.signal = signal.SIGTERM
        self._asked = False
        self._distributed = jax.process_count() > 1
        self._previous = {}

    def listen(self) -> None:
        """Installs the handlers."""
        numbers = [signal.SIGINT] if self._distributed else _SIGNALS
        self._previous = {n: signal.signal(n, self._handle) for n in numbers}

    def _handle(self, number, frame):
        del frame
        # Of two that wait, Python handles the lower number first, not the earlier.
        if number == signal.SIGTERM or not self._asked:
            self.signal = signal.Signals(number)
        if self._asked:
            return
        self._asked = True
        # Not `print`, which a handler may interrupt in the middle of a line.
        os.write(2, self._text)
        if self._distributed:
            # To JAX, which tells the other processes.
            os.kill(os.getpid(), signal.SIGTERM)

    def asked(self) -> bool:
        """Says whether a signal came that this process may obey by itself.

        Returns:
          Whether the run is asked to stop; False where processes must agree first.
        """
        return self._asked and not self._distributed

    def requested(self, step: int) -> bool:
        """Says whether to save and leave; call it at every step.

        Args:
          step: Number of steps done.

        Returns:
          Whether the run is asked to stop.
        """
        if self._distributed:
            return multihost_utils.reached_preemption_sync_point(step)
        return self.asked()

    def close(self) -> None:
        """Restores the handlers found at the start."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}


_SIGNALS = (signal.SIGTERM, signal.SIGINT)
