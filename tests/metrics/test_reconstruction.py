"""Metrics against independent computations and known values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.metrics import reconstruction


@pytest.fixture(scope="module")
def pair():
    """Two images of 16 x 19 beside noisy, shifted copies."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (2, 16, 19, 3))
    y = np.clip(0.8 * x + rng.normal(10, 20, x.shape), 0, 255)
    return x.astype(np.uint8), y.astype(np.uint8)


@pytest.mark.parametrize("name", reconstruction.RECONSTRUCTION_METRICS)
def test_equal_images(name, pair):
    found = reconstruction.RECONSTRUCTION_METRICS[name](
        *map(jnp.asarray, (pair[0], pair[0]))
    )
    best = {"psnr": reconstruction.PSNR_LIMIT, "ssim": 1.0, "l1": 0.0}[name]
    np.testing.assert_allclose(found, [best, best], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", reconstruction.RECONSTRUCTION_METRICS)
def test_each_image_has_a_number_of_its_own(name, pair):
    metric = reconstruction.RECONSTRUCTION_METRICS[name]
    both = metric(*map(jnp.asarray, pair))
    second = metric(*(jnp.asarray(images[1:]) for images in pair))
    assert both.shape == (2,) and both[0] != both[1]
    np.testing.assert_allclose(both[1:], second, rtol=1e-5)


def test_psnr_and_l1_of_one_grey_level():
    x = np.full((1, 4, 5, 3), 100, np.uint8)
    np.testing.assert_allclose(
        reconstruction.psnr(x, x + 1), [20 * np.log10(255)], rtol=1e-6
    )
    np.testing.assert_allclose(reconstruction.l1(x, x + 1), [1 / 127.5], rtol=1e-6)


def test_ssim_is_the_definition_window_by_window(pair):
    found = jax.jit(reconstruction.ssim)(*pair)
    expected = [_slow_ssim(x, y) for x, y in zip(*pair, strict=True)]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def _slow_ssim(x, y):
    """Eq. 13 of Wang et al. 2004 with loops over the windows, in float64."""
    grid = np.mgrid[-5:6, -5:6]
    weights = np.exp(-(grid**2).sum(0) / (2 * 1.5**2))
    weights /= weights.sum()
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    values = []
    for channel in range(x.shape[2]):
        for i in range(x.shape[0] - 10):
            for j in range(x.shape[1] - 10):
                a = x[i : i + 11, j : j + 11, channel].astype(float)
                b = y[i : i + 11, j : j + 11, channel].astype(float)
                mean_a, mean_b = (weights * a).sum(), (weights * b).sum()
                var_a = (weights * (a - mean_a) ** 2).sum()
                var_b = (weights * (b - mean_b) ** 2).sum()
                both = (weights * (a - mean_a) * (b - mean_b)).sum()
                values.append(
                    (2 * mean_a * mean_b + c1)
                    * (2 * both + c2)
                    / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
                )
    return np.mean(values)


def test_ssim_refuses_images_smaller_than_its_window():
    x = np.zeros((1, 10, 20, 3), np.uint8)
    with pytest.raises(ValueError, match="at least 11 x 11 pixels, got 10 x 20"):
        reconstruction.ssim(x, x)
