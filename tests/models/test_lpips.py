"""LPIPS beyond the reference case: what has no length, and compute types."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from ldm_jax.models import lpips


def test_features_that_vanish_have_a_finite_gradient():
    zeros = jnp.zeros((1, 2, 2, 4))
    units = lpips._unit(zeros)
    np.testing.assert_array_equal(units, zeros)
    gradient = jax.grad(lambda x: jnp.sum(lpips._unit(x)))(zeros)
    assert np.isfinite(gradient).all()


def test_features_have_the_sizes_of_vgg16():
    model, images = lpips.LPIPS(dtype=jnp.bfloat16), jnp.zeros((2, 48, 32, 3))
    variables = jax.eval_shape(model.init, jax.random.key(0), images, images)

    def run(variables):
        features = model.apply(variables, images, method="features")
        return features, model.apply(variables, images, images)

    features, distances = jax.eval_shape(run, variables)
    shapes = [(2, 48 // 2**i, 32 // 2**i, lpips.BLOCKS[i][0]) for i in range(5)]
    assert [f.shape for f in features] == shapes
    assert {f.dtype for f in features} == {jnp.dtype("bfloat16")}
    assert distances.shape == (2,) and distances.dtype == jnp.float32
    kernels = [v for k, v in variables["params"].items() if k.startswith("conv")]
    # The convolutions of torchvision's VGG16, without its classifier.
    assert sum(leaf.size for leaf in jax.tree.leaves(kernels)) == 14_714_688


@pytest.mark.parametrize("size", [(6, 4), (7, 5)])
def test_pooling_and_its_gradient_are_those_of_a_window(size):
    """Equal numbers, too, of which the first in a window has the gradient."""
    x = jax.random.randint(jax.random.key(0), (2, *size, 3), -2, 3).astype(jnp.float32)
    pooled, pull = jax.vjp(lpips._max_pool, x)
    expected, pull_window = jax.vjp(lambda x: nn.max_pool(x, (2, 2), (2, 2)), x)
    np.testing.assert_array_equal(pooled, expected)
    outer = jax.random.normal(jax.random.key(1), pooled.shape)
    np.testing.assert_array_equal(pull(outer)[0], pull_window(outer)[0])
    for row, column in np.ndindex(2, 2):
        lost = lpips._max_pool(x.at[0, row, column, 0].set(jnp.nan))
        assert np.isnan(lost[0, 0, 0, 0]) and np.isnan(lost).sum() == 1
