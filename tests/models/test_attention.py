"""Attention against JAX's own, in one piece and in blocks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.models.attention import (
    Attention,
    AttentionBlock,
    SpatialTransformer,
    TransformerBlock,
)
from ldm_jax.models.operations.attend import attend_in_blocks
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
    ours, pull = jax.vjp(lambda *x: attend_in_blocks(*x, mask, max_scores), *inputs)
    theirs, pull_theirs = jax.vjp(lambda *x: expected(*x, causal), *inputs)
    assert_close(ours, theirs, 1e-5)
    cotangent = jax.random.normal(jax.random.key(1), ours.shape)
    for a, b in zip(pull(cotangent), pull_theirs(cotangent), strict=True):
        assert np.abs(a - b).max() <= 1e-5


def test_large_scores_do_not_overflow():
    query, key, value = draw(6, 6, scale=100.0)
    out = attend_in_blocks(query, key, value)
    assert np.isfinite(out).all()
    assert_close(out, expected(query, key, value), 1e-4)


def test_softmax_is_float32_in_bfloat16():
    inputs = draw(64, 64)
    out = attend_in_blocks(*(x.astype(jnp.bfloat16) for x in inputs))
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(out.astype(jnp.float32), expected(*inputs), atol=0.03)


def test_blocks_hold_no_full_score_matrix():
    """Temporary memory of blocks stays below that of one score matrix."""
    x = jax.ShapeDtypeStruct((1, 1, 2048, 8), jnp.float32)

    def temporary(max_scores):
        step = jax.jit(lambda *x: attend_in_blocks(*x, max_scores=max_scores))
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
    y, _ = jax.jit(module.init_with_output)(jax.random.key(1), x)
    np.testing.assert_array_equal(y, x)


def test_one_token_is_attended_to_without_queries_and_keys():
    module, x = Attention(2, 4), jax.random.normal(jax.random.key(0), (2, 5, 8))
    context = jax.random.normal(jax.random.key(1), (2, 1, 3))
    variables = module.init(jax.random.key(2), x, context)

    def loss(variables, x, context):
        return jnp.sum(jnp.square(module.apply(variables, x, context)))

    one = jax.grad(loss, (0, 1, 2))(variables, x, context)
    # Of two equal tokens each gets half of the attention, so that it is the same.
    twice = jnp.repeat(context, 2, axis=1)
    two = jax.grad(loss, (0, 1, 2))(variables, x, twice)
    close = functools.partial(np.testing.assert_allclose, atol=1e-5)
    jax.tree.map(close, one[0], two[0])
    assert_close(one[2][:, 0], two[2].sum(axis=1), 1e-5)
    for name in ("query", "key"):
        assert not any(leaf.any() for leaf in jax.tree.leaves(one[0]["params"][name]))
    assert not one[1].any()
    text = jax.jit(module.apply).lower(variables, x, context).compile().as_text()
    assert "exponential" not in text


# AdaLN-Zero (Peebles & Xie 2023).

BLOCK = TransformerBlock(2, 4)


def tokens():
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = dict(x=(2, 5, 8), context=(2, 3, 6), embedding=(2, 7))
    return {
        name: jax.random.normal(key, shape)
        for key, (name, shape) in zip(keys, shapes.items(), strict=True)
    }


def init_block(inputs):
    return jax.jit(lambda x: BLOCK.init_with_output(jax.random.key(1), **x))(inputs)


def test_modulated_block_starts_as_the_identity_and_a_plain_one_does_not():
    given = tokens()
    output, variables = init_block(given)
    np.testing.assert_array_equal(output, given["x"])
    modulations = {"modulation_self", "modulation_cross", "modulation_feed_forward"}
    assert modulations < variables["params"].keys()
    plain, variables = init_block(given | {"embedding": None})
    assert np.abs(plain - given["x"]).max() > 0.1
    assert not modulations & variables["params"].keys()


def test_modulated_block_without_context_leaves_that_layer_out():
    given = tokens() | {"context": None}
    shapes = jax.eval_shape(lambda: BLOCK.init(jax.random.key(0), **given))["params"]
    assert not {"cross_attention", "norm_cross", "modulation_cross"} & shapes.keys()
    given["embedding"] = None
    shapes = jax.eval_shape(lambda: BLOCK.init(jax.random.key(0), **given))["params"]
    assert {"cross_attention", "norm_cross"} < shapes.keys()


def test_embedding_gets_a_gradient_once_the_gates_have_moved():
    given = tokens()
    _, variables = init_block(given)

    @jax.jit
    def gradients(variables):
        def loss(variables, embedding):
            output = BLOCK.apply(variables, **given | {"embedding": embedding})
            return jnp.sum(output**3)

        return jax.grad(loss, argnums=(0, 1))(variables, given["embedding"])

    first, of_embedding = gradients(variables)
    assert not of_embedding.any()
    moved = jax.tree.map(lambda a, b: a - 0.1 * b, variables, first)
    # A gate moves first: what it lets through has no gradient before.
    for name in ("self", "cross", "feed_forward"):
        bias = moved["params"][f"modulation_{name}"]["bias"]
        shift, scale, gate = np.split(np.asarray(bias), 3)
        assert np.abs(gate).max() > 0 and not shift.any() and not scale.any()
    second, of_embedding = gradients(moved)
    assert all(np.abs(of_embedding).max(axis=1) > 0)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(second))
