"""Notices that the machine wants the run to end, so that it can save first."""

import signal

import jax
from jax.experimental import multihost_utils


class Preemption:
    """Turns SIGTERM and the first Ctrl-C into a flag that the loop reads.

    With several processes the decision must fall on the same step everywhere: JAX's
    coordination service then catches SIGTERM itself and agrees on a step.
    """

    def __init__(self) -> None:
        """Installs the handlers; `close` puts the old ones back."""
        self._requested = False
        self._distributed = jax.process_count() > 1
        signals = [] if self._distributed else [signal.SIGTERM, signal.SIGINT]
        self._previous = {s: signal.signal(s, self._handle) for s in signals}

    def _handle(self, number, frame):
        del number, frame
        self._requested = True
        # A second signal finds the usual behaviour.
        self.close()

    def requested(self, step: int) -> bool:
        """Says whether to save and leave; call it at every step.

        Args:
          step: Number of steps done.

        Returns:
          Whether the run is asked to stop.
        """
        if self._distributed:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._requested

    def close(self) -> None:
        """Restores the handlers found at the start."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
