"""How much better a model restores pictures than what needs no model.

A small picture is enlarged by bicubic interpolation, a hole is filled with the mean of
what is around it.
"""

import numpy as np
from PIL import Image

from ldm_jax.evaluation.metrics import METRICS
from ldm_jax.images import to_uint8


def enlarge(small, size):
    """Enlarges pictures by bicubic interpolation.

    Args:
      small: Floats [N, h, w, 3] in [-1, 1].
      size: Side S of the result in pixels.

    Returns:
      uint8 [N, S, S, 3].
    """
    bicubic = Image.Resampling.BICUBIC
    pictures = [Image.fromarray(row) for row in np.asarray(to_uint8(small))]
    return np.stack([np.asarray(p.resize((size, size), bicubic)) for p in pictures])


def fill(masked, size):
    """Fills holes with the mean colour of what is known.

    Args:
      masked: Floats [N, S, S, 4]: pictures in [-1, 1], and 1 where the hole is.
      size: S.

    Returns:
      uint8 [N, S, S, 3].
    """
    del size
    images, hole = masked[..., :3], masked[..., 3:]
    known = np.maximum(np.sum(1 - hole, axis=(1, 2), keepdims=True), 1)
    mean = np.sum(images * (1 - hole), axis=(1, 2), keepdims=True) / known
    return np.asarray(to_uint8(np.where(hole > 0, mean, images)))


def baseline(inputs, size):
    """Restores what the first input of a row of BASELINES has lost.

    Args:
      inputs: Dict of batch key -> array [N, ...].
      size: Side S of the pictures in pixels.

    Returns:
      uint8 [N, S, S, 3], or None where no input is to be restored.
    """
    for key, restore in BASELINES.items():
        if key in inputs:
            return restore(inputs[key], size)
    return None


def distances(images, others):
    """Means over pictures, uint8 [N, S, S, 3] each: row of METRICS -> float."""
    return {
        name: float(np.mean(metric(images, others))) for name, metric in METRICS.items()
    }


# Batch key -> what restores pictures without a model: (inputs, S) -> uint8.
BASELINES = {"low_res": enlarge, "masked_image": fill}
