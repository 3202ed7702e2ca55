"""Rescaling of maps like PyTorch's `F.interpolate`.

That is without antialiasing and, unless stated, with `align_corners=False`;
`jax.image.resize` differs in the pixel that "nearest" takes, in the cubic kernel and at
borders. All methods are linear and separable, so each axis is multiplied by a small
matrix, made on the host, and several rescalings in a row are one matrix.
"""

from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np

from ldm_jax.annotations import Array, Float, Num


def rescale(
    x: Num[Array, "batch height width channels"],
    factor: float,
    method: str = "bilinear",
    times: int = 1,
) -> Num[Array, "batch new_height new_width channels"]:
    """Rescales maps `times` times by `factor`, in float32.

    Args:
      x: [B, h, w, c].
      factor: Ratio of new to old height and width; new sizes are rounded down.
      method: Row of METHODS.
      times: Number of rescalings, 0 for none.

    Returns:
      [B, h', w', c] in the type of `x`.

    Raises:
      ValueError: If the new size would be zero.
    """
    if not times:
        return x
    matrices = (rescaling_matrix(n, factor, method, times) for n in x.shape[1:3])
    return _apply(x, *matrices)


def resize_corners(
    x: Num[Array, "batch old_height old_width channels"], height: int, width: int
) -> Num[Array, "batch {height} {width} channels"]:
    """Resizes maps by cubic convolution (Keys 1981), corners aligned, in float32.

    Args:
      x: [B, h, w, c].
      height: New height.
      width: New width.

    Returns:
      [B, height, width, c] in the type of `x`, as PyTorch's "bicubic" with
      `align_corners=True`.
    """

    def matrix(old, new):
        source = np.arange(new) * ((old - 1) / max(new - 1, 1))
        return _weigh(_cubic(source), old, new).astype(np.float32)

    return _apply(x, matrix(x.shape[1], height), matrix(x.shape[2], width))


def _apply(x, rows, columns):
    # Full precision: by default TPUs would round both factors to bfloat16.
    y = jnp.einsum("hH,bHwc->bhwc", rows, x.astype(jnp.float32), precision="highest")
    y = jnp.einsum("wW,bhWc->bhwc", columns, y, precision="highest")
    return y.astype(x.dtype)


def rescaling_matrix(
    size: int, factor: float, method: str, times: int
) -> Float[np.ndarray, "new_size {size}"]:
    """Computes the weights of the old positions along an axis for each new one.

    Args:
      size: Old number of positions.
      factor: Ratio of new to old size, each time.
      method: Row of METHODS.
      times: Number of rescalings.

    Returns:
      float32 [new size, old size]; rows sum to 1.

    Raises:
      ValueError: If the new size would be zero.
    """
    matrix = np.eye(size)
    for _ in range(times):
        old = len(matrix)
        new = int(old * factor)
        if not new:
            raise ValueError(
                f"a map of {size} pixels cannot be rescaled {times} times by {factor}: "
                "use fewer stages or larger maps"
            )
        matrix = _weigh(METHODS[method](old, new, factor), old, new) @ matrix
    return matrix.astype(np.float32)


def _weigh(taps: Iterator, old: int, new: int) -> Float[np.ndarray, "{new} {old}"]:
    """Makes the matrix [new, old] of the pairs (positions, weights)."""
    matrix = np.zeros((new, old))
    for offset, weights in taps:
        taken = np.clip(offset, 0, old - 1).astype(int)
        np.add.at(matrix, (np.arange(new), taken), weights)
    return matrix


# Each method yields (positions, weights), arrays over the new positions; positions
# beyond a border are clipped to it.


def _nearest(old, new, factor):
    """Takes the pixel at or before, not the one whose centre is nearest."""
    yield np.floor(np.arange(new) / factor), np.ones(new)


def _bilinear(old, new, factor):
    source = np.maximum((np.arange(new) + 0.5) / factor - 0.5, 0)
    before = np.floor(source)
    yield before, before + 1 - source
    yield before + 1, source - before


def _bicubic(old, new, factor):
    return _cubic((np.arange(new) + 0.5) / factor - 0.5)


def _cubic(source, a=-0.75):
    """Cubic convolution (Keys 1981) with PyTorch's a (more common is -0.5)."""
    before = np.floor(source)
    for offset in (-1, 0, 1, 2):
        x = np.abs(source - before - offset)
        near = (a + 2) * x**3 - (a + 3) * x**2 + 1
        far = a * (x**3 - 5 * x**2 + 8 * x - 4)
        yield before + offset, np.where(x <= 1, near, far)


def _area(old, new, factor):
    """Means of windows that cover the axis (adaptive average pooling)."""
    start = np.arange(new) * old // new
    end = -(-(np.arange(new) + 1) * old // new)
    for offset in range(int(np.max(end - start))):
        yield start + offset, np.where(start + offset < end, 1 / (end - start), 0)


# How to rescale, by the names of PyTorch's `F.interpolate`.
METHODS = {
    "nearest": _nearest,
    "bilinear": _bilinear,
    "bicubic": _bicubic,
    "area": _area,
}
