"""What a run does with held-out images: evaluation and previews."""

from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from ldm_jax import sharding
from ldm_jax.annotations import Array, Float, Shaped
from ldm_jax.data.inputs import make_inputs
from ldm_jax.data.loader import DataError
from ldm_jax.images import to_float
from ldm_jax.training.writer import format_metrics


def show(run, action, done, state):
    """Evaluates or previews; held-out images that are all damaged end no training."""
    try:
        action(run, done, state)
    except DataError as error:
        if run.config.data.on_error == "raise":
            raise
        run.console.line(f"warning: no evaluation or preview at step {done}: {error}")


def evaluate(run, done, state):
    """Averages the stage's evaluation metrics over the held-out images."""
    if not run.data.has_held_out:
        return
    if run.evaluate is None:
        run.evaluate = jax.jit(
            run.stage.eval_step, out_shardings=sharding.replicated(run.mesh)
        )
    rng, rows = jax.random.key(run.config.seed), []
    batches = run.data.held_out_batches(run.config.train.eval_batches)
    for index, batch in enumerate(batches):
        key = jax.random.fold_in(rng, index)
        metrics = run.evaluate(state, run.frozen, batch, key)
        rows.append((batch["mask"].sum(), metrics))
    # The mean over no image at all is no number.
    rows = [row for row in jax.device_get(rows) if row[0]]
    if not rows:
        run.console.line("warning: no held-out image can be read; nothing evaluated")
        return
    counts, metrics = zip(*rows, strict=True)
    means = {
        name: np.average([m[name] for m in metrics], axis=0, weights=counts)
        for name in metrics[0]
    }
    means = run.stage.summarize(means)
    means = {f"eval/{name}": float(value) for name, value in means.items()}
    run.writer.scalars(done, means)
    run.console.line(format_metrics(done, run.config.train.num_steps, means))


def preview(run, done, state):
    """Writes pictures of held-out images and of what the model makes of them."""
    count = run.config.train.preview_images
    if not count:
        return
    if run.preview is None:
        draw = jax.jit(run.stage.preview, out_shardings=sharding.replicated(run.mesh))
        run.preview = draw, run.data.preview_batch(count)
        names, section = run.data.class_names, run.config.data
        shown = show_conditions(section, run.preview[1], count, names)
        run.writer.images(done, shown)
    draw, batch = run.preview
    pictures = draw(state, run.frozen, batch, jax.random.key(run.config.seed))
    run.writer.images(done, {k: np.asarray(v)[:count] for k, v in pictures.items()})


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
