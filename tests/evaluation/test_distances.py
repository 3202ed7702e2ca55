"""Distances of sets of images: their properties, on streams and on closed forms."""

import jax
import numpy as np
import pytest

from ldm_jax.evaluation.distances import DISTANCES, Moments, frechet
from ldm_jax.evaluation.features import FEATURES


def moments_of(rows, parts=3):
    moments = Moments()
    for part in np.array_split(rows, parts):
        moments.add(part)
    return moments


def gaussian(seed, mean=0.0, std=1.0, count=200, width=5):
    rng = np.random.default_rng(seed)
    return mean + std * rng.standard_normal((count, width))


def test_moments_of_a_stream_are_those_of_the_whole():
    rows = gaussian(0, mean=3.0)
    for parts in (1, 2, 7):
        moments = moments_of(rows, parts)
        np.testing.assert_allclose(moments.mean, rows.mean(axis=0), rtol=1e-12)
        covariance = np.cov(rows, rowvar=False)
        np.testing.assert_allclose(moments.covariance, covariance, atol=1e-12)


def test_frechet_distance_of_known_gaussians():
    first = gaussian(0)
    assert frechet(moments_of(first), moments_of(first)) < 1e-9
    # A shift moves the mean alone.
    shifted = frechet(moments_of(first), moments_of(first + 2.0))
    assert shifted == pytest.approx(5 * 2.0**2, rel=1e-9)
    # Where covariances commute, it is that of their square roots.
    scaled = frechet(moments_of(first), moments_of(3.0 * first))
    moments = moments_of(first)
    expected = 4.0 * (np.trace(moments.covariance) + np.sum(moments.mean**2))
    assert scaled == pytest.approx(expected, rel=1e-9)


def test_fewer_images_than_features_do_no_harm():
    first, second = gaussian(0, count=4, width=32), gaussian(1, count=4, width=32)
    assert frechet(moments_of(first), moments_of(first)) < 1e-9
    there, back = (
        frechet(moments_of(*pair, 1), moments_of(*other, 1))
        for pair, other in (([first], [second]), ([second], [first]))
    )
    assert there > 0 and there == pytest.approx(back, rel=1e-6)


@pytest.mark.parametrize("name", FEATURES)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_feature_network_gives_one_vector_per_image(name, channels):
    network = FEATURES[name]
    images = np.random.default_rng(0).integers(0, 256, (3, 16, 24, channels), np.uint8)
    params = network.load(None)
    features = jax.jit(network.apply)(params, images)
    assert features.shape[0] == 3 and features.ndim == 2
    assert features.dtype == np.float32 and np.isfinite(features).all()
    alone = jax.jit(network.apply)(params, images[1:2])
    np.testing.assert_allclose(alone[0], features[1], atol=1e-5)
    again = network.apply(network.load(None), images)
    np.testing.assert_allclose(again, features, atol=1e-5)


@pytest.mark.parametrize("name", DISTANCES)
def test_a_distance_is_nothing_between_equal_sets_and_grows(name):
    assert DISTANCES[name].features in FEATURES
    rows = gaussian(0)
    near, far = (moments_of(rows + shift) for shift in (0.1, 1.0))
    measure = DISTANCES[name].measure
    assert measure(moments_of(rows), moments_of(rows)) < 1e-6
    assert measure(moments_of(rows), near) < measure(moments_of(rows), far)
