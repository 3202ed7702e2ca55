"""Convolutions of few pixels with wide kernels on a CPU, as one matrix product.

XLA's gradient by the input transposes the kernel at each call, which takes longer than
the convolution itself if there are few pixels: at the deep levels of a U-Net. Here the
result is copied instead (col2im), and the kernel is used as a matrix in its memory
layout. In bfloat16, for which XLA's convolutions are slow, the forward pass is a
product as well (im2col); in float32 XLA's own is faster (benchmarks/RESULTS.md).
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax.annotations import Array, Float
from ldm_jax.models.operations.kernel_gradient import Padding, pad, window_of

# Minimum weights per tap of the window for which products are faster.
_WEIGHTS = 256 * 256


def is_quicker(
    array: Float[Array, "batch height width _"],
    kernel: Float[Array, "rows columns channels features"],
    gradient: bool = False,
) -> bool:
    """Returns whether one product is faster than XLA's convolution on a CPU.

    For the forward pass in float32 it never is.

    Args:
      array: The input [B, h, w, c], or the gradient by the output [B, H, W, f].
      kernel: [k, l, c, f].
      gradient: Whether this is about `gradient_by_input` instead of `convolve`.

    Returns:
      Whether it is.
    """
    channels, features = kernel.shape[2:]
    if not gradient and array.dtype != jnp.bfloat16:
        return False
    most = channels if gradient else features
    return channels * features >= _WEIGHTS and math.prod(array.shape[:3]) <= most


def convolve(
    x: Float[Array, "batch height width channels"],
    kernel: Float[Array, "rows columns channels features"],
    padding: Padding,
) -> Float[Array, "batch new_height new_width features"]:
    """Computes a convolution with stride 1.

    Args:
      x: [B, h, w, c].
      kernel: [k, l, c, f] in the type of `x`.
      padding: Zeros before and after, of height and of width.

    Returns:
      [B, H, W, f], where H = h + zeros - k + 1, and W likewise.
    """
    rows, columns, channels, features = kernel.shape
    size = len(x), *window_of(x.shape[1:3], (rows, columns), padding)
    x = pad(x, *padding)

    def copy(tap, pixels):
        """Copies the input at this tap of the window for each output pixel."""
        start = 0, jax.lax.div(tap, columns), jax.lax.rem(tap, columns), 0
        seen = jax.lax.dynamic_slice(x, start, (*size, channels))
        return jax.lax.dynamic_update_slice(pixels, seen, (0, 0, 0, tap * channels))

    taps = rows * columns
    # An array of only zeros XLA would make early, and keep one for each layer.
    first = x[:, : size[1], : size[2]]
    others = jnp.zeros((*size, (taps - 1) * channels), x.dtype)
    pixels = jnp.concatenate([first, others], -1)
    # A loop, as nine separate slices take half as long again to compile.
    pixels = jax.lax.fori_loop(1, taps, copy, pixels)
    y = _multiply(pixels.reshape(-1, taps * channels), kernel.reshape(-1, features), 0)
    return y.reshape(*size, features).astype(x.dtype)


def _multiply(rows, matrix, axis):
    """Rows times a matrix, to float32: XLA's CPU products to bfloat16 are slow."""
    return jax.lax.dot_general(
        rows, matrix, (((1,), (axis,)), ((), ())), preferred_element_type=jnp.float32
    )


def gradient_by_input(
    kernel: Float[Array, "rows columns channels features"],
    gradient: Float[Array, "batch new_height new_width features"],
    padding: Padding,
) -> Float[Array, "batch height width channels"]:
    """Computes the gradient of `convolve` with respect to its input.

    Args:
      kernel: [k, l, c, f].
      gradient: Gradient by the output, [B, H, W, f].
      padding: Zeros before and after, of height and of width.

    Returns:
      [B, h, w, c].
    """
    rows, columns, channels, features = kernel.shape
    (above, below), (left, right) = padding
    # The gradient of each output pixel by its inputs; summed in float32.
    taps = _multiply(gradient.reshape(-1, features), kernel.reshape(-1, features), 1)
    taps = taps.reshape(*gradient.shape[:3], rows * columns, channels)
    moved = (
        pad(
            taps[:, :, :, tap],
            (i - above, rows - 1 - i - below),
            (j - left, columns - 1 - j - right),
        )
        for tap, (i, j) in enumerate(np.ndindex(rows, columns))
    )
    return functools.reduce(jnp.add, moved).astype(kernel.dtype)
