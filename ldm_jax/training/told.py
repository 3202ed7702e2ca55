"""Pictures of what a preview's batch tells the model."""

import numpy as np
from jax.experimental import multihost_utils

from ldm_jax import panels
from ldm_jax.data.inputs import make_inputs
from ldm_jax.images import to_float


def show_conditions(section, batch, count, names=None):
    """Draws the conditions of a batch that can be drawn.

    Args:
      section: Config section `data`.
      batch: Dict of global arrays [B, ...].
      count: How many of the first examples.
      names: Names of the classes, or None.

    Returns:
      Dict of "told_KEY" -> images [count, H, W, 3] in [-1, 1]. Every process must call
      it.
    """
    inputs = make_inputs(section.get("inputs"))
    inputs = {key: make for key, make in inputs.items() if key in batch}
    if not inputs:
        return {}
    told = {key: batch[key] for key in inputs}
    told = multihost_utils.process_allgather(told, tiled=True)
    height, width = batch["image"].shape[1:3]
    # Names of boxes must be legible.
    zoom = max(1, 128 // max(height, width))
    shape = zoom * height, zoom * width
    pictures = {}
    for key, make in inputs.items():
        rows = [
            panels.show_input(make, value, shape, names or ())
            for value in told[key][:count]
        ]
        if rows and rows[0] is not None:
            pictures[f"told_{key}"] = to_float(np.stack(rows))
    return pictures
