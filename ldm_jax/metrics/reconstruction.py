"""Metrics of images and their reconstructions: PSNR, SSIM, L1.

All are computed on images as stored in files, of any type and number of channels, in
units of 1/255 of the range. They give one number per image; the number of a data set
is the mean over its images.
"""

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax.annotations import Array, Float, Num
from ldm_jax.images import to_float

Images = Num[Array, "batch height width channels"]
PerImage = Float[Array, " batch"]

# The PSNR of equal images: an infinite one would make every mean infinite.
PSNR_LIMIT = 100.0

# Wang et al. 2004: a Gaussian window of 11 pixels, and the constants K1 and K2.
_WINDOW, _SIGMA, _K1, _K2 = 11, 1.5, 0.01, 0.03


def psnr(images: Images, reconstructions: Images) -> PerImage:
    """Peak signal-to-noise ratio, 10 log10(255² / mean squared error).

    Args:
      images: [B, H, W, C], uint8, uint16, or floats in [-1, 1].
      reconstructions: Like `images`.

    Returns:
      float32 [B] in dB, at most PSNR_LIMIT.
    """
    difference = _numbers(images) - _numbers(reconstructions)
    error = jnp.mean(jnp.square(difference), axis=(1, 2, 3))
    least = 255.0**2 * 10 ** (-PSNR_LIMIT / 10)
    return 10 * jnp.log10(255.0**2 / jnp.maximum(error, least))


def l1(images: Images, reconstructions: Images) -> PerImage:
    """Mean absolute error of images in [-1, 1].

    Args:
      images: [B, H, W, C], uint8, uint16, or floats in [-1, 1].
      reconstructions: Like `images`.

    Returns:
      float32 [B].
    """
    difference = to_float(images) - to_float(reconstructions)
    return jnp.mean(jnp.abs(difference), axis=(1, 2, 3))


def ssim(images: Images, reconstructions: Images) -> PerImage:
    """Structural similarity (Wang et al. 2004, Eq. 13).

    With the paper's Gaussian window (11 x 11, sigma 1.5), K1 = 0.01, K2 = 0.03 and a
    range of 255, per channel, over the windows that are completely inside the image.

    Args:
      images: [B, H, W, C], see `psnr`, at least 11 pixels high and wide.
      reconstructions: Like `images`.

    Returns:
      float32 [B], at most 1, the value for equal images.

    Raises:
      ValueError: If the images are smaller than the window.
    """
    height, width = images.shape[1:3]
    if min(height, width) < _WINDOW:
        raise ValueError(
            f"SSIM needs images of at least {_WINDOW} x {_WINDOW} pixels, got "
            f"{height} x {width}"
        )
    # Centred for precision: the variances below are differences of squares.
    middle = 127.5
    x, y = _numbers(images) - middle, _numbers(reconstructions) - middle
    mean_x, mean_y, square_x, square_y, product = (
        _window_means(moment) for moment in (x, y, x * x, y * y, x * y)
    )
    spread = square_x - mean_x**2 + square_y - mean_y**2
    covariance = product - mean_x * mean_y
    mean_x, mean_y = mean_x + middle, mean_y + middle
    c1, c2 = (_K1 * 255) ** 2, (_K2 * 255) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * covariance + c2) / (spread + c2)
    return jnp.mean(luminance * structure, axis=(1, 2, 3))


def _numbers(images):
    """Converts images to float32 in [0, 255]."""
    if images.dtype == jnp.uint8:
        return images.astype(jnp.float32)
    return (to_float(images) + 1) * 127.5


def _window_means(values):
    """Gaussian means over all windows: [B, H, W, C] -> [B, H - 10, W - 10, C].

    A sum of shifted copies, as a convolution would not be computed in float32.
    """
    offsets = np.arange(_WINDOW) - _WINDOW // 2
    weights = np.exp(-0.5 * (offsets / _SIGMA) ** 2)
    weights = (weights / weights.sum()).astype(np.float32)
    for axis in (1, 2):
        count = values.shape[axis] - _WINDOW + 1
        values = sum(
            weight * jax.lax.slice_in_dim(values, first, first + count, axis=axis)
            for first, weight in enumerate(weights)
        )
    return values


# Metrics of an image and its reconstruction, uint8 [B, H, W, C] each -> [B].
RECONSTRUCTION_METRICS = {"psnr": psnr, "ssim": ssim, "l1": l1}
