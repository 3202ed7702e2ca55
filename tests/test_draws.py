"""Random numbers that compile quickly are those of jax.random."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from ldm_jax import draws, latent_diffusion
from ldm_jax.build import make_model
from ldm_jax.diffusion.latent_statistics import LatentStatistics
from ldm_jax.models.autoencoder import IdentityAutoencoder
from ldm_jax.models.layers import Dropout
from ldm_jax.models.operations.parameters import denoiser_init, kernel_init
from tests.runs import tiny_config

KEY = jax.random.key(3)
FROZEN = {"first_stage": {}, "statistics": LatentStatistics().arrays()}
SHAPES = [(), (5,), (3, 4), (2, 3, 4), (2, 3, 4, 5), (2, 0, 4, 5)]


@pytest.mark.parametrize("shape", SHAPES)
def test_values_are_those_of_jax(shape):
    same = np.testing.assert_array_equal
    same(draws.normal(KEY, shape), jax.random.normal(KEY, shape))
    same(draws.gumbel(KEY, shape), jax.random.gumbel(KEY, shape))
    same(draws.bernoulli(KEY, shape, 0.3), jax.random.bernoulli(KEY, 0.3, shape))


@pytest.mark.parametrize("shape", [(7, 5), (3, 3, 7, 5), (2, 3, 3, 7, 5)])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (kernel_init, nn.initializers.lecun_normal()),
        (denoiser_init, nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")),
    ],
)
def test_kernels_are_those_of_flax(ours, theirs, shape):
    expected = theirs(KEY, shape, jnp.float32)
    np.testing.assert_allclose(ours(KEY, shape, jnp.float32), expected, rtol=1e-6)


@pytest.mark.parametrize(("rate", "still"), [(0.3, False), (0.3, True), (0.0, False)])
def test_dropout_is_that_of_flax(rate, still):
    x = jax.random.normal(KEY, (4, 6, 6, 8))
    found, expected = (
        layer(rate, deterministic=still).apply({}, x, rngs={"dropout": KEY})
        for layer in (Dropout, nn.Dropout)
    )
    np.testing.assert_array_equal(found, expected)
    assert np.array_equal(found, x) == (still or not rate)


def _drawn(function, *args):
    """Numbers of axes of all that a function draws."""
    text = str(jax.make_jaxpr(function)(*args))
    shapes = re.findall(r"random_bits\[[^\]]*shape=\(([^)]*)\)", text)
    return {len(re.findall(r"\d+", shape)) for shape in shapes}


def test_no_program_draws_arrays_of_four_axes(tmp_path):
    config = tiny_config("shapes_class", str(tmp_path))
    config.backbone.dropout = 0.1
    model = make_model(config, IdentityAutoencoder(4), 10)
    batch = {"image": jnp.zeros((2, 16, 16, 4)), "label": jnp.zeros(2, jnp.int32)}

    def init(key):
        return latent_diffusion.init(model, key, batch)

    def loss(params, key):
        return latent_diffusion.loss(model, params, FROZEN, batch, key, train=True)

    assert 3 in _drawn(init, KEY) <= {0, 1, 2, 3}
    assert 2 in _drawn(loss, jax.eval_shape(init, KEY), KEY) <= {0, 1, 2}
