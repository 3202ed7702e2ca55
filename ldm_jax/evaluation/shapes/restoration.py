"""Restoration without a model, as a baseline for that by a model.

A small image is enlarged by bicubic interpolation, a masked part is filled with the
mean of the rest.
"""

from typing import Any

import numpy as np
from PIL import Image

from ldm_jax.annotations import Array, Float, UInt8
from ldm_jax.images import to_uint8
from ldm_jax.metrics.reconstruction import RECONSTRUCTION_METRICS


def enlarge(
    small: Float[Array, "images height width 3"], size: int
) -> UInt8[Array, "images size size 3"]:
    """Enlarges images by bicubic interpolation.

    Args:
      small: Floats [N, h, w, 3] in [-1, 1].
      size: Side S of the result in pixels.

    Returns:
      uint8 [N, S, S, 3].
    """
    bicubic = Image.Resampling.BICUBIC
    images = [Image.fromarray(row) for row in np.asarray(to_uint8(small))]
    return np.stack([np.asarray(p.resize((size, size), bicubic)) for p in images])


def fill(
    masked: Float[Array, "images size size 4"], size: int
) -> UInt8[Array, "images size size 3"]:
    """Fills masked parts with the mean colour of the rest of their image.

    Args:
      masked: Floats [N, S, S, 4]: images in [-1, 1], and a mask, 1 where to fill.
      size: S.

    Returns:
      uint8 [N, S, S, 3].
    """
    del size
    images, mask = masked[..., :3], masked[..., 3:]
    known = np.maximum(np.sum(1 - mask, axis=(1, 2), keepdims=True), 1)
    mean = np.sum(images * (1 - mask), axis=(1, 2), keepdims=True) / known
    return np.asarray(to_uint8(np.where(mask > 0, mean, images)))


def baseline(
    inputs: dict[str, Any], size: int
) -> UInt8[Array, "images size size 3"] | None:
    """Restores images from the first input that has a row of BASELINES.

    Args:
      inputs: Dict of batch key -> array [N, ...].
      size: Side S of the images in pixels.

    Returns:
      uint8 [N, S, S, 3], or None if there is nothing to restore.
    """
    for key, restore in BASELINES.items():
        if key in inputs:
            return restore(inputs[key], size)
    return None


def distances(
    images: UInt8[Array, "images height width 3"],
    others: UInt8[Array, "images height width 3"],
) -> dict[str, float]:
    """Averages the metrics of pairs of images.

    Args:
      images: uint8 [N, S, S, 3].
      others: uint8 [N, S, S, 3].

    Returns:
      Row of RECONSTRUCTION_METRICS -> mean.
    """
    return {
        name: float(np.mean(metric(images, others)))
        for name, metric in RECONSTRUCTION_METRICS.items()
    }


# Batch key -> what restores images without a model: (inputs, S) -> uint8.
BASELINES = {"low_res": enlarge, "masked_image": fill}
