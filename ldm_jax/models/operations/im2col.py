"""Convolutions of few pixels with wide kernels on a CPU, as one product of matrices.

XLA's own copies the kernel into another order at each call, which takes longer than the
convolution itself where pixels are few: at the deep levels of a U-Net, most of all when
it samples one image. What is copied here are the pixels (im2col), or what comes out
(col2im); the kernel is a matrix as it lies in memory (benchmarks/RESULTS.md).
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

    Args:
      array: [B, h, w, c] or [B, H, W, f], what is multiplied with the kernel: what is
        convolved, or the gradient by what comes out.
      kernel: [k, l, c, f].
      gradient: Whether `gradient_by_input` is meant, and not `convolve`.

    Returns:
      Whether it is.
    """
    channels, features = kernel.shape[2:]
    most = 2 * channels if gradient else features
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
    y = pixels.reshape(-1, taps * channels) @ kernel.reshape(-1, features)
    return y.reshape(*size, features)


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
    taps = jax.lax.dot_general(
        gradient.reshape(-1, features),
        kernel.reshape(-1, features),
        (((1,), (1,)), ((), ())),
        preferred_element_type=jnp.float32,
    ).reshape(*gradient.shape[:3], rows * columns, channels)
    moved = (
        pad(
            taps[:, :, :, tap],
            (i - above, rows - 1 - i - below),
            (j - left, columns - 1 - j - right),
        )
        for tap, (i, j) in enumerate(np.ndindex(rows, columns))
    )
    return functools.reduce(jnp.add, moved).astype(kernel.dtype)
