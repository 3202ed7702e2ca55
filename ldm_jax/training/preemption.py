"""Catches signals that ask a run to stop, so that it can save first."""

import os
import signal

import jax
from jax.experimental import multihost_utils


class Preemption:
    r"""Turns SIGTERM and Ctrl-C into a flag that the loop reads.

    From `listen` to `close` they have no other effect, however many come: a second
    signal must not interrupt the save that the first one requested. SIGKILL, or Ctrl-\
    in a terminal, ends a run at once; saved checkpoints stay intact.

    Several processes must stop at the same step: JAX's coordination service then
    catches SIGTERM itself and agrees on a step.

    Attributes:
      signal: Number of the signal that came: SIGTERM if that is among several, or if
        it came to another process. With several processes SIGINT if both came to this
        one, as JAX does not pass on SIGTERM.
    """

    def __init__(self, text: str = "this step is finished and saved first") -> None:
        """Creates it without catching signals: until `listen` they end the run.

        Args:
          text: What the message says will be done before the end.
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
        # Of two pending signals Python handles the lower number first, not the earlier.
        if number == signal.SIGTERM or not self._asked:
            self.signal = signal.Signals(number)
        if self._asked:
            return
        self._asked = True
        # Not `print`: the handler may have interrupted one in the middle of a line.
        os.write(2, self._text)
        if self._distributed:
            # To JAX, which tells the other processes.
            os.kill(os.getpid(), signal.SIGTERM)

    def asked(self) -> bool:
        """Returns whether a signal came on which this process may act alone.

        Returns:
          Whether the run is asked to stop; always False with several processes, which
          must agree first.
        """
        return self._asked and not self._distributed

    def requested(self, step: int) -> bool:
        """Returns whether to save and exit; call it at every step.

        Args:
          step: Number of steps done.

        Returns:
          Whether the run is asked to stop.
        """
        if self._distributed:
            return multihost_utils.reached_preemption_sync_point(step)
        return self.asked()

    def close(self) -> None:
        """Restores the previous handlers."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}


_SIGNALS = (signal.SIGTERM, signal.SIGINT)
