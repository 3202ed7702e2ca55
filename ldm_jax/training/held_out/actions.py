"""Schedules the actions on held-out images: evaluation, previews, metrics of sets."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from ldm_jax import peers
from ldm_jax.checkpoint import TrainState
from ldm_jax.errors import DataError, ProcessLost
from ldm_jax.seeds import make_key
from ldm_jax.training.compiled import jit_shown
from ldm_jax.training.held_out.noise_levels import LOSS_LEVEL
from ldm_jax.training.held_out.run_metrics import RunMetrics
from ldm_jax.training.held_out.shown_conditions import show_conditions
from ldm_jax.training.start.opened import Run
from ldm_jax.training.step_log import format_metrics

# Prefixes of metrics on held-out images, and of metrics of sets.
_PREFIX, _SETS = "eval/", "eval/distances/"


class _Action(NamedTuple):
    """An action that is done at an interval of steps, and at the end.

    Attributes:
      every: The interval; None or 0 turns it off.
      make: Function of (number of steps done, state) that does it.
      recorded: Function of a step -> whether the action was done at it.
      record_none: Records that there was no result, so that reruns do not repeat the
        action; None if that needs no record.
    """

    every: int | None
    make: Callable[[int, TrainState], None]
    recorded: Callable[[int], bool]
    record_none: Callable[[int], None] | None = None


class HeldOut:
    """Evaluates a stage on held-out images, makes previews and metrics of sets.

    The programs are compiled when they are first run. Actions that a killed or stopped
    run has not done at its newest checkpoint are done first when it resumes.

    Attributes:
      cut: Whether an action was skipped or cut short, as the run is asked to stop.
    """

    def __init__(self, run: Run, stopping: Callable[[], bool] = lambda: False) -> None:
        """Prepares the actions without computing anything.

        Args:
          run: The run.
          stopping: Returns whether the run is asked to stop; then a started action is
            abandoned without a record.
        """
        self.cut = False
        self._run, self._stopping = run, stopping
        self._config, self._console = run.config, run.console
        self._writer = run.writer
        stage, train = run.stage, run.config.train
        # Called with (state, frozen, batch, rng).
        self._eval_step = jit_shown(stage.eval_step, run.mesh)
        self._sets = RunMetrics(run)
        self._actions = {}
        if run.data.has_held_out:
            self._actions["evaluation"] = _Action(
                train.eval_every, self._evaluate, self._was_evaluated, self._record_none
            )
        if stage.preview is not None and train.preview_images:
            self._draw = jit_shown(stage.preview, run.mesh)
            self._actions["preview"] = _Action(
                train.preview_every, self._preview, run.writer.has_images
            )
        if stage.make_images is not None:
            self._actions["measurement"] = _Action(
                self._sets.options.every,
                self._measure,
                self._was_measured,
                self._record_no_set,
            )
        self._preview_batch = None

    def due(self, step: int) -> list[str]:
        """Lists the actions that are due.

        Args:
          step: Number of steps done.

        Returns:
          Names of actions, for `make`.
        """
        final = step == self._config.train.num_steps
        return [name for name, a in self._actions.items() if due(step, a.every, final)]

    def needs_saved(self, names: Sequence[str]) -> bool:
        """Returns whether a checkpoint must be saved before actions.

        Args:
          names: Names of the actions that are due.

        Returns:
          True for "measurement": it takes long, and no training should be lost if it is
          interrupted; also, the best checkpoint is chosen by it.
        """
        return "measurement" in names

    def missing(self, step: int) -> list[str]:
        """Lists the actions that were due at a step and have no record.

        Args:
          step: Step of the checkpoint to resume from; 0 for a new run.

        Returns:
          Names of actions, for `make`; the same on all processes.
        """
        names = self.due(step) if step else []
        if not names:
            return []
        missing = [not self._actions[name].recorded(step) for name in names]
        if jax.process_count() > 1:
            # The first process has the records.
            missing = multihost_utils.broadcast_one_to_all(np.array(missing))
        return [name for name, value in zip(names, missing, strict=True) if value]

    def begin(self, step: int, state: TrainState) -> bool:
        """Loads what measurements need before training, and does missing actions.

        Args:
          step: Step of the checkpoint to resume from; 0 for a new run.
          state: State after it.

        Returns:
          Whether any action was missing.
        """
        names = self.missing(step)
        goes_on = step < self._config.train.num_steps
        if "measurement" in (self._actions if goes_on else names):
            self._sets.prepare()
        if names:
            self._console.line(f"step {step}: what was due and has no record is made")
        self.make(names, step, state)
        return bool(names)

    def make(self, names: Sequence[str], done: int, state: TrainState) -> None:
        """Does actions.

        If all held-out images are damaged (unless `data.on_error` is "raise"), or a
        worker is lost, training continues. In a job of several processes it ends: the
        others continue with the action, and would wait forever for a process that has
        left it.

        Args:
          names: Names of the actions.
          done: Number of steps done.
          state: State after them.
        """
        for name in names:
            if self._stopping():
                self.cut = True
                return
            self._try(name, done, state)

    def _try(self, name, done, state):
        action = self._actions[name]
        try:
            action.make(done, state)
        except (DataError, ProcessLost) as error:
            damaged = isinstance(error, DataError)
            if damaged and self._config.data.on_error == "raise":
                raise
            if jax.process_count() > 1:
                raise
            self._console.line(f"warning: no {name} at step {done}: {error}")
            if damaged and action.record_none:
                action.record_none(done)

    def _goes_on(self):
        """Whether to continue a long action; sets `cut` if not."""
        self.cut = self.cut or self._stopping()
        peers.progress()
        return not self.cut

    def _was_evaluated(self, step):
        return self._writer.has_scalars(
            step, lambda name: name.startswith(_PREFIX) and not name.startswith(_SETS)
        )

    def _evaluate(self, done, state):
        """Writes the means of the stage's metrics over the held-out images."""
        rng, rows = make_key(self._config.seed), []
        batches = self._run.data.held_out_batches(self._config.train.eval_batches)
        for index, batch in enumerate(batches):
            if not self._goes_on():
                return
            key = jax.random.fold_in(rng, index)
            metrics = self._eval_step(state, self._run.frozen, batch, key)
            rows.append((batch["mask"].sum(), metrics))
        # The mean over no image at all is not a number.
        rows = [row for row in jax.device_get(rows) if row[0]]
        if not rows:
            text = "warning: no held-out image can be read; nothing evaluated"
            self._console.line(text)
            self._record_none(done)
            return
        counts, metrics = zip(*rows, strict=True)
        means = {
            name: np.average([m[name] for m in metrics], axis=0, weights=counts)
            for name in metrics[0]
        }
        means = self._run.stage.summarize(means | {"num_images": sum(counts)})
        means = {f"{_PREFIX}{name}": float(value) for name, value in means.items()}
        self._writer.scalars(done, means)
        self._say(done, means, state)

    def _say(self, done, means, state):
        """Prints means, and whether of EMA weights; those by noise level separately."""
        total, levels = self._config.train.num_steps, {}
        for name in list(means):
            if name.startswith(f"{_PREFIX}{LOSS_LEVEL}"):
                levels[name] = means.pop(name)
        whose = "  (moving average)" if state.ema_params else ""
        self._console.line(f"{format_metrics(done, total, means)}{whose}")
        if levels:
            text = f"step {done}/{total}  loss by noise level, least noise first:"
            self._console.line(f"{text}  {_numbered(levels)}{whose}")

    def _record_none(self, done):
        """Records an evaluation of zero images."""
        self._writer.scalars(done, {f"{_PREFIX}num_images": 0})

    def _preview(self, done, state):
        """Writes held-out images and the stage's output for them."""
        count, shown = self._config.train.preview_images, {}
        if self._preview_batch is None:
            self._preview_batch = self._run.data.preview_batch(count)
            # Conditions do not change, so they are written only once.
            section, names = self._config.data, self._run.data.class_names
            shown = show_conditions(section, self._preview_batch, count, names)
        rng = make_key(self._config.seed)
        images = self._draw(state, self._run.frozen, self._preview_batch, rng)
        images = {name: np.asarray(image)[:count] for name, image in images.items()}
        self._writer.images(done, shown | images)

    def _was_measured(self, step):
        return self._writer.has_scalars(step, lambda name: name.startswith(_SETS))

    def _measure(self, done, state):
        """Writes metrics of the set of images the stage makes; keeps the best step."""
        numbers = self._sets.measure(state, self._goes_on)
        if numbers is None:
            return
        # Before the record, which tells a rerun that everything is done.
        self._sets.keep_best(done, numbers)
        numbers = {f"{_SETS}{_tag(name)}": value for name, value in numbers.items()}
        self._writer.scalars(done, numbers)
        self._say(done, numbers, state)

    def _record_no_set(self, done):
        self._writer.scalars(done, {f"{_SETS}num_images": 0})


def _numbered(levels):
    """Formats losses by noise level, each after the number of its bin."""
    numbers = (name.rpartition("_")[2] for name in levels)
    pairs = zip(numbers, levels.values(), strict=True)
    return "  ".join(f"{number}: {value:.3g}" for number, value in pairs)


def _tag(name):
    """Replaces characters of a name that TensorBoard would change."""
    return name.replace(" (", "/").replace(")", "").replace(" ", "_")


def due(step: int, every: int | None, final: bool = False) -> bool:
    """Returns whether something with an interval is due.

    Args:
      step: Number of steps done.
      every: Interval in steps; None or 0 for never, not even at the end.
      final: Whether the run is at its end, when everything is due.

    Returns:
      Whether it is.
    """
    return bool(every) and (final or step % every == 0)
