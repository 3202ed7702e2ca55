"""Images of the conditions of held-out images, for previews."""

from collections.abc import Mapping, Sequence

import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from ldm_jax.annotations import Array, Float, Shaped
from ldm_jax.data.inputs import make_inputs
from ldm_jax.images import to_float


def show_conditions(
    section: ConfigDict,
    batch: Mapping[str, Shaped[Array, "..."]],
    count: int,
    names: Sequence[str] | None = None,
) -> dict[str, Float[Array, "count height width 3"]]:
    """Draws the conditions of a batch as images; every process must call it.

    Args:
      section: Config section `data`.
      batch: Dict of global arrays [B, ...].
      count: Number of examples, from the first on.
      names: Names of the classes, or None.

    Returns:
      Dict of "condition_KEY" -> images [count, H, W, 3] in [-1, 1], for the conditions
      that can be drawn.
    """
    inputs = make_inputs(section.get("inputs"))
    inputs = {key: make for key, make in inputs.items() if key in batch}
    if not inputs:
        return {}
    values = {key: batch[key] for key in inputs}
    values = multihost_utils.process_allgather(values, tiled=True)
    height = width = section.image_size
    if "image" in batch:
        height, width = batch["image"].shape[1:3]
    # Enlarged so that names of boxes are legible.
    zoom = max(1, 128 // max(height, width))
    shape = zoom * height, zoom * width
    shown = {}
    for key, make in inputs.items():
        rows = [make.draw(value, shape, names or ()) for value in values[key][:count]]
        if rows and rows[0] is not None:
            shown[f"condition_{key}"] = to_float(np.stack(rows))
    return shown
