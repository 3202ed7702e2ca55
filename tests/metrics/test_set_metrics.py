"""Metrics of sets of images: their properties, on streams and on closed forms."""

import numpy as np
import pytest

from ldm_jax.metrics.features import FEATURES
from ldm_jax.metrics.features.clip_weights import EMBEDDING
from ldm_jax.metrics.set_metrics import SET_METRICS
from ldm_jax.metrics.set_metrics.frechet import frechet, pivoted_root
from ldm_jax.metrics.statistics import Moments


def statistics_of(rows):
    moments = Moments(rows.shape[1])
    moments.add(rows)
    return moments.statistics()


def gaussian(seed, mean=0.0, std=1.0, count=200, width=5):
    rng = np.random.default_rng(seed)
    return mean + std * rng.standard_normal((count, width)).astype(np.float32)


def test_frechet_distance_of_known_gaussians():
    first = gaussian(0)
    own = statistics_of(first)
    assert frechet(own, own).value < 1e-9
    # A shift moves the mean alone.
    shifted = frechet(own, statistics_of(first + np.float32(2)))
    assert shifted.value == pytest.approx(5 * 2.0**2, rel=1e-6)
    # Where covariances commute, it is that of their square roots.
    scaled = frechet(own, statistics_of(np.float32(3) * first))
    expected = 4.0 * (np.trace(own.covariance) + np.sum(own.mean**2))
    assert scaled.value == pytest.approx(expected, rel=1e-6)


def test_fewer_images_than_features_do_no_harm():
    first, second = gaussian(0, count=4, width=32), gaussian(1, count=4, width=32)
    one, other = statistics_of(first), statistics_of(second)
    assert frechet(one, one).value < 1e-9
    # The root's trace is the sum of singular values of the product of centred rows.
    a, b = (rows.astype(np.float64) - rows.mean(axis=0) for rows in (first, second))
    root = np.linalg.svd(a @ b.T / 3, compute_uv=False).sum()
    expected = np.sum((one.mean - other.mean) ** 2) - 2 * root
    expected += np.trace(one.covariance) + np.trace(other.covariance)
    assert frechet(one, other).value == pytest.approx(expected, rel=1e-6)
    assert frechet(other, one).value == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("count", [4, 9, 200])
def test_the_root_of_a_covariance_has_its_rank(count):
    covariance = statistics_of(gaussian(0, count=count, width=8)).covariance
    root = pivoted_root(covariance)
    assert root.shape == (8, min(8, count - 1))
    np.testing.assert_allclose(root @ root.T, covariance, atol=1e-12)


@pytest.mark.parametrize("name", SET_METRICS)
def test_a_distance_is_of_a_network_and_its_tap(name):
    row = SET_METRICS[name]
    tap = EMBEDDING if row.needs_captions else row.tap
    assert tap in FEATURES[row.network].widths
    assert all(value.better in ("lower", "higher") for value in row.values.values())
