"""The patch discriminator: published sizes, batch statistics, norms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.models.discriminator import (
    NORMS,
    ActNorm,
    BatchNorm,
    PatchDiscriminator,
)
from tests.runs import assert_same_bits

IMAGES = jax.random.normal(jax.random.key(0), (2, 32, 32, 3))


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("num_layers, published", [(3, 2_765_633), (2, 663_361)])
def test_parameter_counts_are_the_published_ones(num_layers, published):
    model = PatchDiscriminator(num_layers=num_layers)
    variables = jax.eval_shape(model.init, jax.random.key(0), IMAGES)
    # Running statistics of the batch norms are no parameters.
    assert count(variables["params"]) == published


@pytest.mark.parametrize("norm", NORMS)
def test_norms(norm):
    model = PatchDiscriminator(channels=8, num_layers=2, norm=norm)
    variables = jax.jit(model.init)(jax.random.key(0), IMAGES)
    assert ("batch_stats" in variables) == (norm in ("batch", "actnorm"))
    logits = model.apply(variables, IMAGES, train=True)
    assert logits.shape == (2, 6, 6, 1) and logits.dtype == jnp.float32


def test_unknown_norm_is_named():
    with pytest.raises(ValueError, match="'layer'"):
        PatchDiscriminator(norm="layer")


def test_statistics_move_only_in_training_and_only_if_mutable():
    model = PatchDiscriminator(channels=8, num_layers=1)
    variables = jax.jit(model.init)(jax.random.key(0), IMAGES)
    trained, update = model.apply(
        variables, IMAGES, train=True, mutable=["batch_stats"]
    )
    held = model.apply(variables, IMAGES, train=True)
    np.testing.assert_array_equal(trained, held)
    before, after = (tree["batch_stats"]["norm_1"] for tree in (variables, update))
    assert np.abs(after["mean"] - before["mean"]).max() > 1e-4
    _, same = model.apply(variables, IMAGES, mutable=["batch_stats"])
    np.testing.assert_array_equal(same["batch_stats"]["norm_1"]["mean"], before["mean"])


def test_running_statistics_converge_to_those_of_the_data():
    norm, x = BatchNorm(), 3 + 2 * jax.random.normal(jax.random.key(0), (8, 4, 4, 2))
    variables = norm.init(jax.random.key(1), x, True)
    step = jax.jit(lambda v: norm.apply(v, x, True, mutable=["batch_stats"])[1])
    for _ in range(100):
        variables = variables | step(variables)
    stats = variables["batch_stats"]
    np.testing.assert_allclose(stats["mean"], x.mean((0, 1, 2)), rtol=1e-3)
    np.testing.assert_allclose(stats["var"], x.var((0, 1, 2), ddof=1), rtol=1e-3)


def test_actnorm_standardises_the_first_training_batch_and_keeps_that():
    norm, x = ActNorm(), 3 + 2 * jax.random.normal(jax.random.key(0), (4, 4, 4, 2))
    variables = norm.init(jax.random.key(1), x, True)
    np.testing.assert_array_equal(norm.apply(variables, x, False), x)

    def step(variables, x):
        y, update = norm.apply(variables, x, True, mutable=["batch_stats"])
        return y, variables | update

    first, variables = step(variables, x)
    np.testing.assert_allclose(first.mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(first.std((0, 1, 2), ddof=1), 1, rtol=1e-5)
    second, after = step(variables, 5 * x)
    assert_same_bits(after, variables)
    scale = 1 / (x.std((0, 1, 2), ddof=1, keepdims=True) + 1e-6)
    expected = scale * (5 * x - x.mean((0, 1, 2), keepdims=True))
    np.testing.assert_allclose(second, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(norm.apply(after, 5 * x, False), second, rtol=1e-6)


def test_bfloat16_is_close():
    model = PatchDiscriminator(channels=8, num_layers=2)
    variables = jax.jit(model.init)(jax.random.key(0), IMAGES)
    rough = PatchDiscriminator(8, 2, dtype=jnp.bfloat16).apply(variables, IMAGES)
    exact = model.apply(variables, IMAGES)
    assert rough.dtype == jnp.float32
    assert 0 < np.abs(rough - exact).max() < 0.1 * np.abs(exact).max()
