"""The log of training steps: lines of metrics, and a warning if nothing is learnt.

A run ends here if a loss or gradient is no longer finite.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from ldm_jax.checkpoint import move_away
from ldm_jax.errors import TrainingDiverged
from ldm_jax.store import Place
from ldm_jax.training.start.opened import Run
from ldm_jax.training.throughput import Stopwatch

# Ratio to the loss of a network that outputs zeros above which nothing has been learnt,
# and the number of steps before which that is normal.
PLATEAU_RATIO = 0.97
PLATEAU_STEPS = 300


class StepLog:
    """Collects the metrics of steps until their log line is due.

    Attributes:
      last: Dict of the metrics of the last line; empty before the first.
    """

    def __init__(self, run: Run, watch: Stopwatch) -> None:
        """Creates an empty log.

        Args:
          run: The run.
          watch: Stopwatch of its steps.
        """
        self.last = {}
        self._run, self._watch, self._window = run, watch, []

    def add(self, metrics: Mapping[str, Any]) -> None:
        """Adds the metrics of a step, which may still be being computed.

        Args:
          metrics: Dict of name -> scalar.
        """
        self._window.append(metrics)

    def check(self, done: int) -> None:
        """Fetches the metrics of the steps since the last line and checks them.

        Args:
          done: Number of steps done.

        Raises:
          TrainingDiverged: If one is not finite.
        """
        self._window = jax.device_get(self._window)
        check_finite(done - len(self._window) + 1, self._window, self._saved)

    def write(self, done: int) -> None:
        """Writes a line: means since the last one, and the speed.

        Args:
          done: Number of steps done.

        Raises:
          TrainingDiverged: If a metric is not finite.
        """
        self.check(done)
        run, train = self._run, self._run.config.train
        self.last = _means(self._window) | self._watch.lap(len(self._window))
        self._window = []
        self.last |= run.data.counts(done)
        run.writer.scalars(done, self.last)
        run.console.line(format_metrics(done, train.num_steps, self.last))
        warning = plateau_warning(
            done, self.last, train.warmup_steps, self.last["learning_rate"]
        )
        if warning:
            run.console.line(warning)

    def _saved(self):
        """Folders of the checkpoints, once running saves are done."""
        self._run.checkpoints.wait()
        return self._run.checkpoints.folders


def _means(window: list) -> dict[str, float]:
    """Means of the metrics; the learning rate is not averaged but the current one."""
    means = {name: float(np.mean([m[name] for m in window])) for name in window[-1]}
    return means | {"learning_rate": float(window[-1]["learning_rate"])}


def format_metrics(step: int, total: int, metrics: Mapping[str, float]) -> str:
    """Formats a log line: `step 100/2000  loss 0.123  images_per_s 55.1  ...`.

    Args:
      step: Number of steps done.
      total: Number of steps of the run.
      metrics: Dict of name -> number.

    Returns:
      The line.
    """
    # Counts of skipped data are only shown if they are not zero.
    shown = [n for n in metrics if metrics[n] or not n.startswith("data/")]
    names = sorted(shown, key=lambda name: name != "loss")
    numbers = "  ".join(f"{name} {_short(metrics[name])}" for name in names)
    return f"step {step}/{total}  {numbers}"


def _short(value):
    value = float(value)
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        return f"{value:.4g}"
    return f"{value:.2e}"


def check_finite(
    first_step: int,
    window: Sequence[Mapping[str, Any]],
    saved: Callable[[], Sequence[Place]],
) -> None:
    """Checks that the loss and the gradient norm of each step are finite.

    Args:
      first_step: Number of updates done after the window's first step.
      window: List of dicts of name -> number, one per step.
      saved: Function that waits for running saves and returns the folders of the
        checkpoints, the oldest first.

    Raises:
      TrainingDiverged: Otherwise; the message has the step, the metrics, the checkpoint
        to return to, the command and remedies.
    """
    for step, metrics in enumerate(window, start=first_step):
        bad = sorted(k for k, v in metrics.items() if not math.isfinite(v))
        if bad:
            raise TrainingDiverged(
                f"step {step}: {', '.join(bad)} is not finite; the run stops. "
                f"{_way_back(step, saved())} a lower --config.train.learning_rate (it "
                f"was {metrics['learning_rate']:.3g}), a longer "
                "--config.train.warmup_steps or --config.train.grad_clip=1.0"
            )


def _way_back(step, folders):
    """From which checkpoint to resume after a step that was not finite, and how."""
    if not folders:
        return "No checkpoint had been saved yet: run the same command with"
    # The checkpoint of the step before may already be bad, as weights are only used in
    # the next step.
    sound = [folder for folder in folders if int(folder.name) < step - 1]
    if not sound:
        return (
            f"No checkpoint is surely sound, that of step {folders[-1].name} may hold "
            "the harm already: if the run diverges at once again, start over in "
            "another --workdir. Run the same command with --allow_config_change and"
        )
    chosen = sound[-1]
    later = folders[folders.index(chosen) + 1 :]
    move = f"{move_away(later, f'diverged_at_{step}')}, and " if later else ""
    return (
        f"The checkpoint of step {chosen.name} is intact and kept; to continue from "
        f"it: {move}run the same command with --allow_config_change and"
    )


def plateau_warning(
    step: int,
    metrics: Mapping[str, float],
    warmup_steps: int,
    learning_rate: float,
) -> str | None:
    """Returns a warning if the loss is that of a network which outputs zeros.

    Args:
      step: Number of updates done.
      metrics: Averaged metrics; `loss_vs_zeros` is the ratio to the loss of zeros.
      warmup_steps: Length of the warm-up, during which there is no warning.
      learning_rate: The current one, for the message.

    Returns:
      A sentence, or None.
    """
    ratio = metrics.get("loss_vs_zeros")
    if ratio is None or step < PLATEAU_STEPS + warmup_steps or ratio < PLATEAU_RATIO:
        return None
    return (
        f"warning: after {step} steps the loss is {ratio:.2f} of what a network that "
        "outputs only zeros gets: nothing has been learnt. Usual causes: a learning "
        f"rate far too low or too high (now {learning_rate:.2e}), images that do not "
        "vary, or latents that are not of unit variance (check scaling_factor)"
    )
