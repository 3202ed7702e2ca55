"""Checks of inputs on the host that several conditioners use."""

import numpy as np
from numpy.typing import ArrayLike


def check_floats(inputs: ArrayLike, ndim: int, name: str) -> None:
    """Checks an array of floats on the host.

    Args:
      inputs: Array or nested lists.
      ndim: Expected number of axes.
      name: Name of the inputs, for the message.

    Raises:
      ValueError: If they are not floats, have another number of axes or are not finite.
    """
    inputs = np.asarray(inputs)
    if inputs.ndim != ndim or not np.issubdtype(inputs.dtype, np.floating):
        raise ValueError(
            f"{name} must be floats with {ndim} axes, images in [-1, 1], got "
            f"{inputs.dtype} {inputs.shape}"
        )
    if not np.isfinite(inputs).all():
        raise ValueError(f"{name} must be finite, got NaN or infinity")


def check_classes(
    labels: ArrayLike, axes: str, num_classes: int, ignored: int | None = None
) -> None:
    """Checks labels on the host.

    Args:
      labels: Array or nested lists.
      axes: Expected axes, such as "B, H, W".
      num_classes: Number of classes.
      ignored: Label that means "without a class"; None if there is none.

    Raises:
      ValueError: If they are not integers with these axes, or one is neither a class
        nor `ignored`.
    """
    labels = np.asarray(labels)
    integers = np.issubdtype(labels.dtype, np.integer)
    if labels.ndim != len(axes.split(",")) or not integers:
        raise ValueError(
            f"labels must be integers [{axes}], got {labels.dtype} {labels.shape}"
        )
    known = (labels >= 0) & (labels < num_classes)
    if ignored is not None:
        known |= labels == ignored
    wrong = labels[~known]
    if wrong.size:
        none = "" if ignored is None else f", or {ignored} where there is no class"
        raise ValueError(
            f"label {wrong[0]} is out of range: there are {num_classes} classes, so "
            f"give labels from 0 to {num_classes - 1}{none}; the option ignore_label "
            "names the one that means no class"
        )


def check_images(images: ArrayLike) -> None:
    """Checks a batch of images on the host.

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
