"""Checks of inputs on the host that several conditioners share."""

import numpy as np
from numpy.typing import ArrayLike


def check_floats(inputs: ArrayLike, ndim: int, name: str) -> None:
    """Checks floats on the host.

    Args:
      inputs: Array or nested lists.
      ndim: Number of axes that they should have.
      name: What they are called, for the message.

    Raises:
      ValueError: If they are not floats, have other axes or are not finite.
    """
    inputs = np.asarray(inputs)
    if inputs.ndim != ndim or not np.issubdtype(inputs.dtype, np.floating):
        raise ValueError(
            f"{name} must be floats with {ndim} axes, images in [-1, 1], got "
            f"{inputs.dtype} {inputs.shape}"
        )
    if not np.isfinite(inputs).all():
        raise ValueError(f"{name} must be finite, got NaN or infinity")


def check_images(images: ArrayLike) -> None:
    """Checks images on the host.

    Args:
      images: Array or nested lists.

    Raises:
      ValueError: If they are neither uint8 nor finite floats, or not [B, H, W, 3].
    """
    images = np.asarray(images)
    if images.ndim != 4 or images.shape[-1] != 3:
        raise ValueError(f"images must be [B, H, W, 3], got {images.shape}")
    if images.dtype != np.uint8:
        check_floats(images, 4, "images that are not uint8")
