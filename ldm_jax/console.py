"""Console output of a run: lines, a progress bar, and warnings."""

import functools
import sys

from absl import logging


class Console:
    """A progress bar in a terminal, plain lines elsewhere."""

    def __init__(
        self, total: int, initial: int, active: bool = True, unit: str = "step"
    ) -> None:
        """Opens the display.

        Args:
          total: Number of steps of the run.
          initial: Number of steps already done.
          active: False on all processes but the first.
          unit: Name of what is counted, for the bar.
        """
        self._active = active
        self._bar = None
        if active and sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(
                total=total, initial=initial, dynamic_ncols=True, unit=unit
            )

    def advance(self, count: int = 1) -> None:
        """Advances the bar.

        Args:
          count: Number of steps.
        """
        if self._bar is not None and self._active:
            self._bar.update(count)

    def line(self, text: str) -> None:
        """Prints one line, above the bar if there is one.

        Args:
          text: The line.
        """
        if not self._active:
            return
        try:
            if self._bar is not None:
                self._bar.write(text)
            else:
                print(text, flush=True)
        except OSError:
            # A closed terminal or a full disk must not end training: what is printed
            # is in metrics.jsonl, too.
            self._active = False

    def close(self) -> None:
        """Removes the bar."""
        if self._bar is not None:
            self._bar.close()


@functools.cache
def warn_once(text: str) -> None:
    """Logs a warning once per process.

    Args:
      text: The warning.
    """
    logging.warning("%s", text)
