"""What a run does with held-out images: evaluation and previews."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ldm_jax import peers, sharding
from ldm_jax.annotations import Array, Float, Shaped
from ldm_jax.batches import Data
from ldm_jax.checkpoint import TrainState
from ldm_jax.console import Console
from ldm_jax.data.inputs import make_inputs
from ldm_jax.errors import DataError, ProcessLost
from ldm_jax.images import to_float
from ldm_jax.seeds import make_key
from ldm_jax.training.step import Stage
from ldm_jax.training.writer import Writer, format_metrics

# How names of what is measured on held-out images begin.
_PREFIX = "eval/"


class HeldOut:
    """Evaluates a stage on held-out images and shows what it makes of them.

    Both programs are compiled when they are first run.

    Attributes:
      cut: Whether something due was left out, as the run is asked to stop.
    """

    def __init__(
        self,
        config: ConfigDict,
        stage: Stage,
        frozen: Any,
        data: Data,
        mesh: Mesh,
        writer: Writer,
        console: Console,
        stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        """Takes what both need; nothing is computed.

        Args:
          config: ConfigDict with `seed`, `data` and `train`.
          stage: Stage.
          frozen: Its frozen weights, on the devices of the mesh.
          data: The run's `Data`.
          mesh: Mesh of the run.
          writer: Where numbers and images go.
          console: Where lines go.
          stopping: Says whether the run is asked to stop; then what is begun is left
            without a record, and made first when the run goes on.
        """
        self.cut = False
        self._stopping = stopping
        self._config, self._frozen, self._data = config, frozen, data
        self._writer, self._console = writer, console
        # Called with (state, frozen, batch, rng).
        everywhere = sharding.replicated(mesh)
        self._eval_step = jax.jit(stage.eval_step, out_shardings=everywhere)
        self._draw = None
        if stage.preview is not None:
            self._draw = jax.jit(stage.preview, out_shardings=everywhere)
        # Whether there is anything to show.
        self._previews = bool(stage.preview and config.train.preview_images)
        self._summarize = stage.summarize
        self._preview_batch = None

    def missing(self, step: int) -> tuple[bool, bool]:
        """Finds out what was due at a step and has no record.

        A run that is killed between a checkpoint and what is due at its step, or that
        is asked to stop at it, goes on from there without it.

        Args:
          step: Step of the checkpoint from which a run goes on; 0 for a new one.

        Returns:
          Whether the evaluation, and whether the previews are missing; the same on all
          processes.
        """
        train = self._config.train
        final = step == train.num_steps
        evaluate = step and self._data.has_held_out
        evaluate = evaluate and due(step, train.eval_every, final)
        preview = step and self._previews
        preview = preview and due(step, train.preview_every, final)
        if not (evaluate or preview):
            return False, False
        missing = [
            bool(evaluate) and not self._writer.has_scalars(step, _PREFIX),
            bool(preview) and not self._writer.has_images(step),
        ]
        if jax.process_count() > 1:
            # The first process has the records.
            missing = multihost_utils.broadcast_one_to_all(np.array(missing))
        return bool(missing[0]), bool(missing[1])

    def make_up(self, step: int, state: TrainState) -> bool:
        """Makes what was due at the step from which a run goes on and is missing.

        Args:
          step: Step of its checkpoint; 0 for a new one.
          state: State after it.

        Returns:
          Whether anything was.
        """
        evaluate, preview = self.missing(step)
        if evaluate or preview:
            self._console.line(f"step {step}: what was due and has no record is made")
        if evaluate:
            self.evaluate(step, state)
        if preview:
            self.preview(step, state)
        return evaluate or preview

    def evaluate(self, done: int, state: TrainState) -> None:
        """Writes the means of the stage's metrics over the held-out images.

        Args:
          done: Number of steps done.
          state: State after them.
        """
        if self._data.has_held_out:
            self._try(self._evaluate, done, state)

    def preview(self, done: int, state: TrainState) -> None:
        """Writes held-out images and what the stage makes of them.

        Args:
          done: Number of steps done.
          state: State after them.
        """
        if self._previews:
            self._try(self._preview, done, state)

    def _try(self, action: Callable, done: int, state: TrainState) -> None:
        """Held-out images that are all damaged, or a lost worker, end no training.

        In a job of several processes they do: the others go on with this action, and
        would wait in it for ever for one that has left it.
        """
        if self._stopping():
            self.cut = True
            return
        try:
            action(done, state)
        except (DataError, ProcessLost) as error:
            damaged = isinstance(error, DataError)
            if damaged and self._config.data.on_error == "raise":
                raise
            if jax.process_count() > 1:
                raise
            text = f"warning: no evaluation or preview at step {done}: {error}"
            self._console.line(text)
            if damaged and action == self._evaluate:
                self._record_none(done)

    def _evaluate(self, done, state):
        rng, rows = make_key(self._config.seed), []
        batches = self._data.held_out_batches(self._config.train.eval_batches)
        for index, batch in enumerate(batches):
            if self._stopping():
                self.cut = True
                return
            key = jax.random.fold_in(rng, index)
            metrics = self._eval_step(state, self._frozen, batch, key)
            rows.append((batch["mask"].sum(), metrics))
            peers.progress()
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
        means = self._summarize(means)
        means = {f"{_PREFIX}{name}": float(value) for name, value in means.items()}
        self._writer.scalars(done, means)
        total = self._config.train.num_steps
        self._console.line(format_metrics(done, total, means))

    def _record_none(self, done):
        """Of an evaluation of no image, too, lest each rerun makes it once more."""
        self._writer.scalars(done, {f"{_PREFIX}num_images": 0})

    def _preview(self, done, state):
        count, shown = self._config.train.preview_images, {}
        if self._preview_batch is None:
            self._preview_batch = self._data.preview_batch(count)
            # Conditions do not change: once is enough.
            section, names = self._config.data, self._data.class_names
            shown = show_conditions(section, self._preview_batch, count, names)
        rng = make_key(self._config.seed)
        images = self._draw(state, self._frozen, self._preview_batch, rng)
        images = {name: np.asarray(image)[:count] for name, image in images.items()}
        self._writer.images(done, shown | images)


def due(step: int, every: int | None, final: bool = False) -> bool:
    """Says whether what is done every so many steps, and at the end, is due.

    Args:
      step: Number of steps done.
      every: The interval; None or 0 turns it off, at the end, too.
      final: Whether the run is at its end.

    Returns:
      Whether it is.
    """
    return bool(every) and (final or step % every == 0)


def show_conditions(
    section: ConfigDict,
    batch: Mapping[str, Shaped[Array, "..."]],
    count: int,
    names: Sequence[str] | None = None,
) -> dict[str, Float[Array, "count height width 3"]]:
    """Draws the conditions of a batch that can be drawn.

    Args:
      section: Config section `data`.
      batch: Dict of global arrays [B, ...].
      count: How many of the first examples.
      names: Names of the classes, or None.

    Returns:
      Dict of "condition_KEY" -> images [count, H, W, 3] in [-1, 1]. Every process must
      call it.
    """
    inputs = make_inputs(section.get("inputs"))
    inputs = {key: make for key, make in inputs.items() if key in batch}
    if not inputs:
        return {}
    values = {key: batch[key] for key in inputs}
    values = multihost_utils.process_allgather(values, tiled=True)
    height, width = batch["image"].shape[1:3]
    # Names of boxes must be legible.
    zoom = max(1, 128 // max(height, width))
    shape = zoom * height, zoom * width
    shown = {}
    for key, make in inputs.items():
        rows = [make.draw(value, shape, names or ()) for value in values[key][:count]]
        if rows and rows[0] is not None:
            shown[f"condition_{key}"] = to_float(np.stack(rows))
    return shown
