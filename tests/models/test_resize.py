"""Rescaling: weights, borders, several times; the reference cases are with Spatial."""

import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.models.resize import METHODS, rescale, rescaling_matrix
from tests.common import assert_close


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size, factor", [(16, 0.5), (7, 0.5), (5, 2.0), (9, 0.3)])
def test_weights_sum_to_one(method, size, factor):
    matrix = rescaling_matrix(size, factor, method, 1)
    assert matrix.shape == (int(size * factor), size)
    np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_rescaling_twice_is_done_at_once(method):
    x = np.random.default_rng(0).standard_normal((2, 12, 8, 3)).astype(np.float32)
    twice = rescale(rescale(x, 0.5, method), 0.5, method)
    assert twice.shape == (2, 3, 2, 3)
    assert_close(rescale(x, 0.5, method, times=2), twice, 1e-6)
    np.testing.assert_array_equal(rescale(x, 0.5, method, times=0), x)


def test_halving_by_hand():
    x = np.arange(4.0)
    expected = {
        "nearest": [0, 2],
        "bilinear": [0.5, 2.5],
        "area": [0.5, 2.5],
        # Weights -3/32, 19/32, 19/32, -3/32, with the border repeated.
        "bicubic": [(19 * 1 - 3 * 2) / 32, (19 * 5 - 3 * 4) / 32],
    }
    for method, values in expected.items():
        matrix = rescaling_matrix(4, 0.5, method, 1)
        np.testing.assert_allclose(matrix @ x, values, atol=1e-6, err_msg=method)


def test_doubling_repeats_or_interpolates():
    nearest, linear = (rescaling_matrix(2, 2, m, 1) for m in ("nearest", "bilinear"))
    np.testing.assert_array_equal(nearest @ [0, 1], [0, 0, 1, 1])
    np.testing.assert_allclose(linear @ [0, 1], [0, 0.25, 0.75, 1], atol=1e-6)


def test_type_is_kept():
    x = jnp.ones((1, 4, 4, 1), jnp.bfloat16)
    assert rescale(x, 0.5).dtype == jnp.bfloat16


def test_nothing_left_is_refused():
    with pytest.raises(ValueError, match="map of 2 pixels .* 2 times by 0.5"):
        rescale(np.zeros((1, 2, 2, 1)), 0.5, times=2)
