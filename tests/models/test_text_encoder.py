"""The text encoder: what its tokens see, positions, memory, types."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.models.text_encoder import TextEncoder
from tests.common import random_variables

ENCODER = TextEncoder(
    vocab_size=11, features=16, num_layers=2, max_length=6, num_heads=2, head_channels=4
)
IDS = jnp.array([[3, 1, 4, 1, 5, 9], [2, 6, 5, 3, 5, 8]])


@pytest.fixture(scope="module")
def variables():
    return random_variables(ENCODER, IDS)


@functools.cache
def apply_of(encoder):
    return jax.jit(encoder.apply)


def test_width_of_heads_is_free_of_the_features(variables):
    shapes = jax.tree.map(jnp.shape, variables["params"]["block_1"]["attention"])
    assert shapes["query"] == {"kernel": (16, 8)}
    assert shapes["out"] == {"kernel": (8, 16), "bias": (16,)}
    assert apply_of(ENCODER)(variables, IDS).shape == (2, 6, 16)


@pytest.mark.parametrize("causal", [False, True])
def test_what_a_token_sees(variables, causal):
    encoder = dataclasses.replace(ENCODER, causal=causal)
    changed = IDS.at[:, 3].set(10)
    before, after = (apply_of(encoder)(variables, ids) for ids in (IDS, changed))
    moved = np.abs(before - after).max(axis=(0, 2)) > 1e-4
    assert moved[3:].all() and (not moved[:3].any() if causal else moved.all())


def test_order_matters(variables):
    apply = apply_of(ENCODER)
    swapped = apply(variables, IDS[:, ::-1])[:, ::-1]
    assert np.abs(swapped - apply(variables, IDS)).max() > 1e-2


def test_short_inputs_are_encoded_and_long_ones_refused(variables):
    apply = apply_of(dataclasses.replace(ENCODER, causal=True))
    short, whole = (apply(variables, ids) for ids in (IDS[:, :4], IDS))
    np.testing.assert_allclose(short, whole[:, :4], atol=1e-5)
    with pytest.raises(ValueError, match="7 tokens are more than max_length=6"):
        ENCODER.apply(variables, jnp.zeros((1, 7), int))


@pytest.mark.parametrize("causal", [False, True])
def test_remat_recomputes_to_the_same_gradient(variables, causal):
    def loss(variables, remat):
        encoder = dataclasses.replace(ENCODER, remat=remat, causal=causal)
        return jnp.sum(encoder.apply(variables, IDS) ** 3)

    # Not compiled: a whole program is rounded in another way.
    expected, recomputed = (jax.grad(loss)(variables, remat) for remat in (False, True))
    for a, b in zip(*map(jax.tree.leaves, (expected, recomputed)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
    trace = jax.make_jaxpr(loss, static_argnums=1)
    # Norms are made again in both.
    with_blocks, norms = (str(trace(variables, remat)) for remat in (True, False))
    assert with_blocks.count("remat") > norms.count("remat")


def test_compute_type(variables):
    half = dataclasses.replace(ENCODER, dtype=jnp.bfloat16)
    assert jax.eval_shape(half.apply, variables, IDS).dtype == jnp.bfloat16
    shapes = jax.eval_shape(half.init, jax.random.key(0), IDS)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}


def test_unknown_activation_is_refused():
    with pytest.raises(ValueError, match="'relu': choose one of gelu, quick_gelu"):
        dataclasses.replace(ENCODER, activation="relu")
