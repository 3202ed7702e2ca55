"""Low-resolution inputs for super-resolution: plain resizing and BSRGAN.

BSRGAN (Zhang et al. 2021, "Designing a Practical Degradation Model") blurs, shrinks,
adds noise and compresses in random order, so that a model learns to restore images of
any origin. `bsrgan` and `bsrgan_light` are the two strengths of CompVis.
"""

import functools
import io
from typing import NamedTuple

import numpy as np
from PIL import Image

from ldm_jax.annotations import Float, UInt8


def degrade(
    image: UInt8[np.ndarray, "H W 3"],
    factor: int,
    kind: str = "bicubic",
    rng: np.random.Generator | None = None,
) -> UInt8[np.ndarray, "h w 3"]:
    """Makes a small, degraded version of an image.

    Args:
      image: uint8 [H, W, 3].
      factor: H over the result's height, 2 to 8.
      kind: Row of DEGRADATIONS.
      rng: NumPy generator; needed for "bsrgan" and "bsrgan_light".

    Returns:
      uint8 [H / factor, W / factor, 3].

    Raises:
      ValueError: If height or width is not a multiple of `factor`.
    """
    height, width = image.shape[:2]
    if height % factor or width % factor:
        raise ValueError(
            f"an image of {height} x {width} pixels does not divide by the factor "
            f"{factor}: crop it first"
        )
    return DEGRADATIONS[kind](image, factor, rng)


class Strength(NamedTuple):
    """Strength of a BSRGAN degradation.

    Attributes:
      blurs: Number of blurs.
      blur_scale: Factor of their widths.
      kernel_step: A kernel has kernel_step n + 3 pixels, n from 2 to 11, or one more.
      round_steps: Largest n of an isotropic kernel.
      noise: Smallest and largest noise level, of 255.
      quality: Smallest and largest JPEG quality.
      resize_fraction: Probability that the first downsampling resizes to a random size
        instead of blurring and taking every `factor`-th pixel.
    """

    blurs: int
    blur_scale: float
    kernel_step: int
    round_steps: int
    noise: tuple
    quality: tuple
    resize_fraction: float


FULL = Strength(2, 1.0, 2, 11, (2, 25), (30, 95), 0.75)
LIGHT = Strength(1, 0.25, 1, 4, (1, 2), (80, 95), 0.8)

# Resize methods of BSRGAN: OpenCV's, that is without antialiasing.
_RESIZES = ("linear", "cubic", "area")

_JPEG_FRACTION = 0.9


def bsrgan(
    image: UInt8[np.ndarray, "H W 3"],
    factor: int,
    rng: np.random.Generator,
    strength: Strength = FULL,
) -> UInt8[np.ndarray, "h w 3"]:
    """Degrades an image as BSRGAN does (Zhang et al. 2021, Section 3.3).

    Args:
      image: uint8 [H, W, 3], H and W multiples of `factor`.
      factor: H over the result's height.
      rng: NumPy generator.
      strength: Strength.

    Returns:
      uint8 [H / factor, W / factor, 3].
    """
    target = image.shape[0] // factor, image.shape[1] // factor
    image = image.astype(np.float32) / 255
    if factor == 4 and rng.random() < 0.25:
        method = "antialiased" if rng.random() < 0.5 else rng.choice(_RESIZES)
        half = image.shape[0] // 2, image.shape[1] // 2
        image, factor = resize(image, *half, method).clip(0, 1), 2
    steps = ["blur"] * strength.blurs + ["shrink", "reach", "noise", "jpeg"]
    steps = [steps[i] for i in rng.permutation(len(steps))]
    first, last = sorted((steps.index("shrink"), steps.index("reach")))
    steps[first], steps[last] = "shrink", "reach"
    for step in steps:
        if step == "blur":
            image = _blur(image, factor, strength, rng)
        elif step == "shrink":
            image = _shrink(image, factor, strength, rng).clip(0, 1)
        elif step == "reach":
            image = resize(image, *target, rng.choice(_RESIZES)).clip(0, 1)
        elif step == "noise":
            image = _add_noise(image, strength, rng).clip(0, 1)
        elif rng.random() < _JPEG_FRACTION:
            image = _compress(image, strength, rng)
    return _to_uint8(_compress(image, strength, rng))


def _blur(image, factor, strength, rng):
    """Blurs with a Gaussian, isotropic or anisotropic in any direction."""
    if rng.random() < 0.5:
        steps = rng.integers(2, 12)
        variances = rng.random(2) * (4 + factor) * strength.blur_scale
        angle = rng.random() * np.pi
    else:
        steps = rng.integers(2, strength.round_steps + 1)
        deviation = rng.random() * (2 + 0.2 * factor) * strength.blur_scale
        variances, angle = np.full(2, deviation**2), 0.0
    # Even sizes, as in "light" of CompVis, would shift the image by half a pixel.
    size = (strength.kernel_step * steps + 3) | 1
    return _convolve(image, _gaussian(size, variances, angle))


def _shrink(image, factor, strength, rng):
    """The first downsampling: to a random size, or blur and every `factor`-th pixel."""
    if rng.random() < strength.resize_fraction:
        scale = rng.uniform(1, 2 * factor)
        height, width = (max(1, int(n / scale)) for n in image.shape[:2])
        return resize(image, height, width, rng.choice(_RESIZES))
    deviation = rng.uniform(0.1, 0.6 * factor)
    # Shifted to the middle of the block whose first pixel is taken.
    kernel = _gaussian(25, np.full(2, deviation**2), 0.0, shift=(factor - 1) / 2)
    return _convolve(image, kernel)[::factor, ::factor]


def _gaussian(size, variances, angle, shift=0.0):
    """Gaussian kernel, float32 [size, size], of sum 1.

    Args:
      size: Odd number of pixels.
      variances: Along the two axes, in square pixels.
      angle: Of the first axis, in radians.
      shift: How far the middle is moved, right and down, in pixels.
    """
    offsets = np.arange(size) - size // 2 - shift
    y, x = offsets[:, None], offsets[None]
    along = np.cos(angle) * x + np.sin(angle) * y
    across = np.cos(angle) * y - np.sin(angle) * x
    # A kernel of zero width is a single pixel.
    first, second = np.maximum(variances, 1e-2)
    exponent = along**2 / first + across**2 / second
    kernel = np.exp(-(exponent - exponent.min()) / 2)
    return (kernel / kernel.sum()).astype(np.float32)


def _convolve(image, kernel):
    """Filters an image with a kernel; the image is mirrored at its borders."""
    height, width = image.shape[:2]
    reach = len(kernel) // 2
    padded = np.pad(image, ((reach, reach), (reach, reach), (0, 0)), "reflect")
    # By the convolution theorem: a direct sum costs the kernel's size squared.
    shape = padded.shape[:2]
    kernel = np.fft.rfft2(kernel, shape).conj()
    spectrum = np.fft.rfft2(padded, axes=(0, 1)) * kernel[..., None]
    result = np.fft.irfft2(spectrum, shape, axes=(0, 1))
    return result[:height, :width].astype(np.float32)


def _add_noise(image, strength, rng):
    """Adds Gaussian noise: independent in each channel, shared, or correlated."""
    level = rng.integers(strength.noise[0], strength.noise[1] + 1) / 255
    kind = rng.random()
    if kind < 0.4:
        noise = level * rng.standard_normal(image.shape, np.float32)
    elif kind < 0.8:
        noise = level * rng.standard_normal((*image.shape[:2], 1), np.float32)
    else:
        axes, _ = np.linalg.qr(rng.standard_normal((3, 3)))
        covariance = np.abs((axes * rng.random(3)) @ axes.T)
        mix = (
            np.linalg.cholesky(covariance + 1e-6 * np.eye(3)) * strength.noise[1] / 255
        )
        noise = rng.standard_normal(image.shape, np.float32) @ mix.T.astype(np.float32)
    return image + noise


def _compress(image, strength, rng):
    """Compresses as JPEG and decodes again."""
    quality = int(rng.integers(strength.quality[0], strength.quality[1] + 1))
    buffer = io.BytesIO()
    Image.fromarray(_to_uint8(image)).save(buffer, "jpeg", quality=quality)
    return np.asarray(Image.open(buffer), np.float32) / 255


def _to_uint8(image):
    return np.rint(image.clip(0, 1) * 255).astype(np.uint8)


def _pillow(image, factor, rng, *, method):
    """Resizes with Pillow, antialiased."""
    size = image.shape[1] // factor, image.shape[0] // factor
    return np.asarray(Image.fromarray(image).resize(size, method))


def _opencv(image, factor, rng, *, method):
    """Resizes as OpenCV does, without antialiasing."""
    height, width = image.shape[0] // factor, image.shape[1] // factor
    return _to_uint8(resize(image.astype(np.float32) / 255, height, width, method))


_KERNELS = Image.Resampling

# How to make the small image, by the value of the option `degradation`; the resize
# filters are Pillow's ("pil_*" in CompVis) and OpenCV's.
DEGRADATIONS = {
    **{
        kernel.name.lower(): functools.partial(_pillow, method=kernel)
        for kernel in (
            _KERNELS.NEAREST,
            _KERNELS.BOX,
            _KERNELS.BILINEAR,
            _KERNELS.HAMMING,
            _KERNELS.BICUBIC,
            _KERNELS.LANCZOS,
        )
    },
    "cv_nearest": functools.partial(_opencv, method="nearest"),
    "cv_area": functools.partial(_opencv, method="area"),
    "cv_bilinear": functools.partial(_opencv, method="linear"),
    "cv_bicubic": functools.partial(_opencv, method="cubic"),
    "cv_lanczos": functools.partial(_opencv, method="lanczos"),
    "bsrgan": bsrgan,
    "bsrgan_light": functools.partial(bsrgan, strength=LIGHT),
}


def resize(
    image: Float[np.ndarray, "H W C"], height: int, width: int, method: str
) -> Float[np.ndarray, "{height} {width} C"]:
    """Resizes an image along both axes.

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
    """Averages over the area that a new pixel covers."""
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
