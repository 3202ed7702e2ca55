"""Attention against JAX's own, in one piece and in blocks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.models.attention import (
    Attention,
    AttentionBlock,
    SpatialTransformer,
    attention,
)
from tests.common import assert_close


def draw(length, source, scale=1.0):
    keys = jax.random.split(jax.random.key(0), 3)
    sizes = (length, source, source)
    return [
        scale * jax.random.normal(key, (2, 3, size, 8))
        for key, size in zip(keys, sizes, strict=True)
    ]


def expected(query, key, value, causal=False):
    inputs = (x.swapaxes(1, 2) for x in (query, key, value))
    return jax.nn.dot_product_attention(*inputs, is_causal=causal).swapaxes(1, 2)


@pytest.mark.parametrize(
    "length, source, causal",
    [(12, 12, False), (12, 12, True), (12, 5, False), (7, 1, False)],
)
@pytest.mark.parametrize("max_scores", [2**24, 60])
def test_attention_and_gradient(length, source, causal, max_scores):
    """60 scores at once make 8 blocks or more, and a prime length as many as tokens."""
    inputs = draw(length, source)
    mask = jnp.tril(jnp.ones((length, source), bool)) if causal else None
    ours, pull = jax.vjp(lambda *x: attention(*x, max_scores, mask), *inputs)
    theirs, pull_theirs = jax.vjp(lambda *x: expected(*x, causal), *inputs)
    assert_close(ours, theirs, 1e-5)
    cotangent = jax.random.normal(jax.random.key(1), ours.shape)
    for a, b in zip(pull(cotangent), pull_theirs(cotangent), strict=True):
        assert np.abs(a - b).max() <= 1e-5


def test_large_scores_do_not_overflow():
    query, key, value = draw(6, 6, scale=100.0)
    out = attention(query, key, value)
    assert np.isfinite(out).all()
    assert_close(out, expected(query, key, value), 1e-4)


def test_softmax_is_float32_in_bfloat16():
    inputs = draw(64, 64)
    out = attention(*(x.astype(jnp.bfloat16) for x in inputs))
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(out.astype(jnp.float32), expected(*inputs), atol=0.03)


def test_blocks_hold_no_full_score_matrix():
    """Temporary memory of blocks stays below that of one score matrix."""
    x = jax.ShapeDtypeStruct((1, 1, 2048, 8), jnp.float32)

    def temporary(max_scores):
        step = jax.jit(lambda q, k, v: attention(q, k, v, max_scores))
        return step.lower(x, x, x).compile().memory_analysis().temp_size_in_bytes

    assert temporary(2**18) < 2**24 <= temporary(2**24)


def test_context_defaults_to_the_input():
    module, x = Attention(2, 4), jax.random.normal(jax.random.key(0), (2, 5, 8))
    variables = module.init(jax.random.key(1), x)
    np.testing.assert_array_equal(
        module.apply(variables, x), module.apply(variables, x, x)
    )


def test_attention_ignores_the_order_of_the_context():
    module, x = Attention(2, 4), jax.random.normal(jax.random.key(0), (2, 5, 8))
    context = jax.random.normal(jax.random.key(1), (2, 6, 3))
    variables = module.init(jax.random.key(2), x, context)
    assert_close(
        module.apply(variables, x, context[:, ::-1]),
        module.apply(variables, x, context),
        1e-5,
    )


@pytest.mark.parametrize(
    "module", [AttentionBlock(2, zero_init=True), SpatialTransformer(2, 12, depth=2)]
)
def test_zero_initialised_blocks_are_the_identity(module):
    x = jax.random.normal(jax.random.key(0), (2, 4, 4, 32))
    y, _ = module.init_with_output(jax.random.key(1), x)
    np.testing.assert_array_equal(y, x)
