"""Degradations: sizes, what is lost, what must not be, and who decides."""

import numpy as np
import pytest

from ldm_jax.data.degradation import (
    DEGRADATIONS,
    LIGHT,
    METHODS,
    bsrgan,
    degrade,
    resize,
)
from ldm_jax.models.resize import rescaling_matrix
from tests.data.common import make_image

RANDOM = ("bsrgan", "bsrgan_light")


def blob(size, y, x, radius):
    """A bright round spot on grey, uint8 [size, size, 3]."""
    rows, columns = np.mgrid[:size, :size] + 0.5
    spot = np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / (2 * radius**2))
    return np.repeat((80 + 160 * spot).astype(np.uint8)[..., None], 3, axis=2)


def degraded(image, factor, kind, count, seed=0):
    """Several degradations as floats, [count, h, w, 3]."""
    rng = np.random.default_rng(seed)
    results = [degrade(image, factor, kind, rng) for _ in range(count)]
    return np.asarray(results, np.float64)


@pytest.mark.parametrize("kind", DEGRADATIONS)
@pytest.mark.parametrize("factor", [2, 3, 4, 8])
def test_size_and_type(kind, factor):
    image = make_image(48, 24)
    small = degrade(image, factor, kind, np.random.default_rng(0))
    assert small.dtype == np.uint8 and small.shape == (24 // factor, 48 // factor, 3)


def test_a_size_that_does_not_divide():
    with pytest.raises(ValueError, match="30 x 40 pixels does not divide .* 4"):
        degrade(make_image(40, 30), 4)


@pytest.mark.parametrize("kind", DEGRADATIONS)
def test_a_plain_image_keeps_its_colour(kind):
    image = np.full((32, 32, 3), (200, 90, 40), np.uint8)
    results = degraded(image, 4, kind, 20 if kind in RANDOM else 1)
    # Noise and JPEG change pixels, not the mean; JPEG rounds colours.
    np.testing.assert_allclose(results.mean((0, 1, 2)), (200, 90, 40), atol=3)


@pytest.mark.parametrize("kind", RANDOM)
def test_the_generator_decides(kind):
    image = make_image(32, 32)
    first, again = (degraded(image, 4, kind, 4) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert len({result.tobytes() for result in first}) == 4
    assert not np.array_equal(first, degraded(image, 4, kind, 4, seed=1))


@pytest.mark.parametrize("factor", [2, 4])
def test_bsrgan_loses_more_than_its_light_version(factor):
    image = make_image(64, 64)
    clean = degrade(image, factor, "box").astype(np.float64)
    error = {
        kind: np.sqrt(np.mean((degraded(image, factor, kind, 60) - clean) ** 2))
        for kind in ("bicubic", *RANDOM)
    }
    assert 2 * error["bicubic"] < error["bsrgan_light"] < 0.8 * error["bsrgan"]
    # Still the same image, most of its contrast is right.
    assert error["bsrgan"] < 0.7 * clean.std()


@pytest.mark.parametrize("factor", [2, 3, 4])
@pytest.mark.parametrize("fraction", [0.0, 1.0])
def test_nothing_is_shifted(factor, fraction):
    """Neither by resizing nor by a blur of which every n-th pixel is taken."""
    rng, image = np.random.default_rng(0), blob(48, 20, 29, 4)
    strength = LIGHT._replace(resize_fraction=fraction)
    results = np.stack([bsrgan(image, factor, rng, strength) for _ in range(80)])
    weight = (results.mean((0, 3)) - 80).clip(10) - 10
    rows, columns = np.mgrid[: weight.shape[0], : weight.shape[1]] + 0.5
    center = [(weight * axis).sum() / weight.sum() for axis in (rows, columns)]
    np.testing.assert_allclose(np.multiply(center, factor), (20, 29), atol=0.25)


@pytest.mark.parametrize(
    ("ours", "torch"),
    [("cubic", "bicubic"), ("linear", "bilinear"), ("area",) * 2, ("nearest",) * 2],
)
def test_kernels_without_antialiasing(ours, torch):
    """OpenCV and PyTorch agree on these where the factor is whole."""
    expected = rescaling_matrix(24, 0.25, torch, 1)
    np.testing.assert_allclose(METHODS[ours](24, 6), expected, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", [(7, 5), (20, 9), (31, 64)])
def test_resizing_keeps_what_is_constant(method, size):
    image = np.full((20, 30, 3), 0.3, np.float32)
    result = resize(image, *size, method)
    assert result.shape == (*size, 3)
    np.testing.assert_allclose(result, 0.3, atol=1e-6)


def test_antialiased_cubic_is_that_of_pillow():
    image = make_image(32, 32)
    ours = resize(image.astype(np.float32), 16, 16, "antialiased")
    theirs = degrade(image, 2, "bicubic")
    # Pillow rounds to whole values after each axis.
    assert np.abs(ours - theirs)[2:-2, 2:-2].max() < 1.5
