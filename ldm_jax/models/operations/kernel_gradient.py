"""Gradients of convolutions by their kernels on a CPU, as matrix products.

XLA's own takes up to seven times as long there as PyTorch's (benchmarks/RESULTS.md).
For a 3x3 kernel it is one product: three column shifts of the input, concatenated, with
three row shifts of the outer gradient. It is computed in blocks, so that the shifted
copies stay in the cache and take little memory.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from ldm_jax.annotations import Array, Float

# Pixels of a block: 1,024 x 3 x 128 channels in float32 are 1.5 MB.
_PIXELS = 1024

Padding = Sequence[tuple[int, int]]


def by_products(
    x: Float[Array, "batch height width channels"],
    gradient: Float[Array, "batch new_height new_width features"],
    padding: Padding,
) -> Float[Array, "rows columns channels features"]:
    """Computes the gradient of a convolution of stride 1 by its kernel.

    Args:
      x: Input of the convolution, [B, h, w, c].
      gradient: Gradient by the output, [B, H, W, f].
      padding: Zeros before and after, of height and of width.

    Returns:
      [k, l, c, f], where k = h + zeros - H + 1, and l likewise.
    """
    batch, height, _, channels = x.shape
    *_, width, features = gradient.shape
    (above, below), (left, right) = padding
    rows, columns = window_of(x.shape[1:3], gradient.shape[1:3], padding)
    # Adds zeros; with more padding than the window needs, removes lines instead.
    x = pad(x, (0, 0), (left, right))
    gradient = pad(gradient, (rows - 1 - above, rows - 1 - below), (0, 0))
    images, lines = _block(batch, height, width)

    def product(image, line):
        """The product of one block: [columns x channels, rows x features]."""
        part = functools.partial(_cut, images=images, start=(image, line))
        inputs, outer = part(x, lines), part(gradient, lines + rows - 1)
        inputs = [inputs[:, :, j : j + width] for j in range(columns)]
        outer = [outer[:, i : i + lines] for i in reversed(range(rows))]
        inputs, outer = (jnp.concatenate(all_, -1) for all_ in (inputs, outer))
        return jax.lax.dot_general(
            inputs.reshape(-1, columns * channels),
            outer.reshape(-1, rows * features),
            (((0,), (0,)), ((), ())),
        )

    if images == batch and lines == height:
        total = product(0, 0)
    else:
        down = height // lines

        def add(index, total):
            image, line = index // down * images, index % down * lines
            return total + product(image, line)

        start = jnp.zeros((columns * channels, rows * features), x.dtype)
        total = jax.lax.fori_loop(0, batch // images * down, add, start)
    return total.reshape(columns, channels, rows, features).transpose(2, 0, 1, 3)


def window_of(
    size: Sequence[int], new_size: Sequence[int], padding: Padding
) -> tuple[int, ...]:
    """Computes the window size of a convolution of stride 1, or its output size.

    Args:
      size: Size of the input, by axis.
      new_size: Size of the output, for that of the window; or vice versa.
      padding: Zeros before and after.

    Returns:
      Size of the window, or of the output, by axis.
    """
    both = zip(size, new_size, padding, strict=True)
    return tuple(n + sum(zeros) - new + 1 for n, new, zeros in both)


def pad(
    array: Float[Array, "batch height width channels"],
    height: tuple[int, int],
    width: tuple[int, int],
) -> Float[Array, "batch new_height new_width channels"]:
    """Pads images with zeros, or crops them.

    Args:
      array: [B, h, w, c].
      height: Lines before and after; negative to crop.
      width: Columns likewise.

    Returns:
      [B, h + lines, w + columns, c].
    """
    sides = (0, 0), height, width, (0, 0)
    zero = jnp.zeros((), array.dtype)
    return jax.lax.pad(array, zero, [(*side, 0) for side in sides])


def _block(batch, height, width):
    """Images and lines of a block: lines of one image, or several whole images."""
    lines = _divisor(height, _PIXELS // max(width, 1))
    return _divisor(batch, _PIXELS // max(height * width, 1)), lines


def _divisor(number, most):
    """The largest divisor of `number` that is at most `most`, but at least 1."""
    return max(n for n in range(1, max(1, min(number, most)) + 1) if number % n == 0)


def _cut(array, lines, images, start):
    sizes = images, lines, *array.shape[2:]
    return jax.lax.dynamic_slice(array, (*start, 0, 0), sizes)
