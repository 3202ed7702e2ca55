"""Resizing of float pictures as OpenCV does it, and as Matlab's antialiased cubic.

OpenCV's kernels do not widen when a picture shrinks, so they alias, and its cubic is
another one than Pillow's: what is degraded one way is not to be restored from another.
"""

import numpy as np


def resize(image, height, width, method):
    """Resizes a picture along both axes.

    Args:
      image: float32 [H, W, C].
      height: New height in pixels.
      width: New width in pixels.
      method: Row of METHODS.

    Returns:
      float32 [height, width, C]; may overshoot, where the kernel is negative.
    """
    make = METHODS[method]
    rows = make(image.shape[0], height).astype(np.float32)
    columns = make(image.shape[1], width).astype(np.float32)
    image = np.tensordot(rows, image, 1)
    return columns @ image


def _nearest(old, new):
    return np.eye(old)[np.arange(new) * old // new]


def _area(old, new):
    """Means over the area that a new pixel covers."""
    if new > old:
        return _linear(old, new)
    scale, pixels = old / new, np.arange(old)
    low = np.arange(new)[:, None] * scale
    covered = np.minimum(low + scale, pixels + 1) - np.maximum(low, pixels)
    return covered.clip(0) / scale


def _linear(old, new):
    return _interpolate(old, new, lambda x: (1 - np.abs(x)).clip(0), 1)


def _cubic(old, new):
    return _interpolate(old, new, lambda x: _keys(x, -0.75), 2)


def _lanczos(old, new):
    return _interpolate(old, new, lambda x: np.sinc(x) * np.sinc(x / 4), 4)


def _antialiased(old, new):
    return _interpolate(
        old, new, lambda x: _keys(x, -0.5), 2, stretch=max(1, old / new)
    )


def _keys(x, a):
    """Cubic convolution (Keys 1981, Eq. 4 has a = -1/2)."""
    x = np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = a * (((x - 5) * x + 8) * x - 4)
    return np.where(x < 1, near, np.where(x < 2, far, 0))


def _interpolate(old, new, kernel, radius, stretch=1.0):
    """Weights [new, old] of a kernel on [-radius, radius]; borders are repeated."""
    centers = (np.arange(new) + 0.5) * (old / new) - 0.5
    reach = int(np.ceil(radius * stretch))
    taps = np.floor(centers)[:, None].astype(int) + np.arange(-reach, reach + 2)
    distance = (taps - centers[:, None]) / stretch
    weights = np.where(np.abs(distance) < radius, kernel(distance), 0)
    matrix = np.zeros((new, old))
    place = (np.arange(new)[:, None], taps.clip(0, old - 1))
    np.add.at(matrix, place, weights / weights.sum(axis=1, keepdims=True))
    return matrix


# Weights [new, old] of the old pixels of an axis, by method.
METHODS = {
    "nearest": _nearest,
    "area": _area,
    "linear": _linear,
    "cubic": _cubic,
    "lanczos": _lanczos,
    "antialiased": _antialiased,
}
