"""Convolutions of few pixels with wide kernels on a CPU, as one product of matrices.

XLA's gradient by the input copies the kernel into another order at each call, which
takes longer than the convolution itself where pixels are few: at the deep levels of a
U-Net. Here what comes out is copied (col2im), and the kernel is a matrix as it lies in
memory. In bfloat16, in which XLA's convolutions are slow, pixels are copied (im2col)
for the forward pass, too; in float32 XLA's own is quicker (benchmarks/RESULTS.md).
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax.annotations import Array, Float
from ldm_jax.models.operations.kernel_gradient import Padding, pad, window_of

# Fewest weights of a tap of the window with which products are quicker.
_WEIGHTS = 256 * 256


def is_quicker(
    array: Float[Array, "batch height width _"],
    kernel: Float[Array, "rows columns channels features"],
    gradient: bool = False,
) -> bool:
    """Says whether one product is quicker than XLA's convolution on a CPU.

    Forward it never is in float32.

    Args:
      array: [B, h, w, c] or [B, H, W, f], what is multiplied with the kernel: what is
        convolved, or the gradient by what comes out.
      kernel: [k, l, c, f].
      gradient: Whether `gradient_by_input` is meant, and not `convolve`.

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
    """Convolves with stride 1.

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
        """Copies what the window sees there of each pixel."""
        start = 0, jax.lax.div(tap, columns), jax.lax.rem(tap, columns), 0
        seen = jax.lax.dynamic_slice(x, start, (*size, channels))
        return jax.lax.dynamic_update_slice(pixels, seen, (0, 0, 0, tap * channels))

    taps = rows * columns
    # Zeros alone XLA would make before they are needed, and keep those of all layers.
    first = x[:, : size[1], : size[2]]
    others = jnp.zeros((*size, (taps - 1) * channels), x.dtype)
    pixels = jnp.concatenate([first, others], -1)
    # A loop, as nine slices beside each other take half as long again to compile.
    pixels = jax.lax.fori_loop(1, taps, copy, pixels)
    y = _multiply(pixels.reshape(-1, taps * channels), kernel.reshape(-1, features), 0)
    return y.reshape(*size, features).astype(x.dtype)


def _multiply(rows, matrix, axis):
    """Rows times a matrix, in float32: XLA's CPU products to bfloat16 are slow."""
    return jax.lax.dot_general(
        rows, matrix, (((1,), (axis,)), ((), ())), preferred_element_type=jnp.float32
    )


def gradient_by_input(
    kernel: Float[Array, "rows columns channels features"],
    gradient: Float[Array, "batch new_height new_width features"],
    padding: Padding,
) -> Float[Array, "batch height width channels"]:
    """Computes the gradient of `convolve` by what is convolved.

    Args:
      kernel: [k, l, c, f].
      gradient: [B, H, W, f], by what comes out.
      padding: Zeros before and after, of height and of width.

    Returns:
      [B, h, w, c].
    """
    rows, columns, channels, features = kernel.shape
    (above, below), (left, right) = padding
    # Of each pixel that comes out, by what it was made of; summed in float32.
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
