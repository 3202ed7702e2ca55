"""Softmax attention in blocks of queries, with a custom gradient.

Automatic differentiation of the plain form stores the softmax and the output in float32
besides their copies in the compute type, and multiplies float32 by that type in the
backward pass. Here only the compute type is stored and multiplied; sums and the softmax
are float32.
"""

import jax
import jax.numpy as jnp

from ldm_jax.annotations import Array, Bool, Float

# Maximum number of scores of one example in a block of queries: 64 MiB in float32.
MAX_SCORES = 2**24


def attend_in_blocks(
    query: Float[Array, "batch heads length channels"],
    key: Float[Array, "batch heads source channels"],
    value: Float[Array, "batch heads source channels"],
    mask: Bool[Array, "length source"] | None = None,
    max_scores: int = MAX_SCORES,
) -> Float[Array, "batch heads length channels"]:
    """Scaled dot-product attention (Vaswani et al. 2017, Eq. 1), softmax in float32.

    Long sequences are computed in blocks of queries, which are recomputed in the
    backward pass, so the whole score matrix is never in memory.

    Args:
      query: [B, heads, T, d].
      key: [B, heads, S, d].
      value: [B, heads, S, d].
      mask: Bool [T, S], whether a query attends to a key, at least one for each query;
        None if all attend to all.
      max_scores: Maximum number of scores of one example in memory at once.

    Returns:
      [B, heads, T, d] in the type of `query`.
    """
    b, heads, length, _ = query.shape
    query = query * query.shape[-1] ** -0.5
    blocks = -(-heads * length * key.shape[2] // max_scores)
    while length % blocks:
        blocks += 1
    if blocks == 1:
        return attend(query, key, value, mask)
    query = query.reshape(b, heads, blocks, length // blocks, -1)
    if mask is not None:
        mask = mask.reshape(blocks, length // blocks, -1)
    block = jax.checkpoint(lambda rows: attend(rows[0], key, value, rows[1]))
    out = jax.lax.map(block, (jnp.moveaxis(query, 2, 0), mask))
    return jnp.moveaxis(out, 0, 2).reshape(b, heads, length, -1)


@jax.custom_vjp
def attend(
    query: Float[Array, "batch heads length channels"],
    key: Float[Array, "batch heads source channels"],
    value: Float[Array, "batch heads source channels"],
    mask: Bool[Array, "length source"] | None = None,
) -> Float[Array, "batch heads length channels"]:
    """Attention (Vaswani et al. 2017, Eq. 1) with already scaled queries.

    Derivatives of any order work in reverse mode only.

    Args:
      query: [B, heads, T, d], times d^-1/2.
      key: [B, heads, S, d].
      value: [B, heads, S, d].
      mask: Bool [T, S], whether a query attends to a key, at least one for each query;
        None if all attend to all.

    Returns:
      [B, heads, T, d] in the type of `query`.
    """
    return _forward(query, key, value, mask)[0]


# Jitted, so that they are traced and lowered once for all attentions of one shape.
@jax.jit
def _forward(query, key, value, mask):
    scores = _product("bhtd,bhsd->bhts", query, key, jnp.float32)
    if mask is not None:
        scores = jnp.where(mask, scores, -jnp.inf)
    # One kernel on a GPU. With the division after the product, where there are fewer
    # numbers, there would be two, each of which reads the scores.
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    out = _product("bhts,bhsd->bhtd", weights, value, query.dtype)
    return out, (query, key, value, weights, out)


@jax.jit
def _backward(kept, gradient):
    query, key, value, weights, out = kept
    # Without the barrier compilers skip the rounding of the weights, and store scores
    # in float32 to recompute them.
    weights = jax.lax.optimization_barrier(weights)
    # Masked weights are zero, and thus also their gradients.
    products = gradient.astype(jnp.float32) * out.astype(jnp.float32)
    mean = jnp.sum(products, axis=-1, keepdims=True)
    by_value = _product("bhts,bhtd->bhsd", weights, gradient, value.dtype)
    by_weights = _product("bhtd,bhsd->bhts", gradient, value, jnp.float32)
    by_scores = (weights.astype(jnp.float32) * (by_weights - mean)).astype(query.dtype)
    by_query = _product("bhts,bhsd->bhtd", by_scores, key, query.dtype)
    by_key = _product("bhts,bhtd->bhsd", by_scores, query, key.dtype)
    return by_query, by_key, by_value, None


attend.defvjp(_forward, _backward)


def _product(axes, a, b, dtype):
    """A product in `dtype`; sums within it are float32 on accelerators."""
    return jnp.einsum(axes, a, b, preferred_element_type=dtype)
