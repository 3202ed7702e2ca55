"""Softmax attention of one block of queries, with a gradient of its own.

Differentiation of the plain form keeps the softmax and the output in float32 beside
their copies in the compute type, and multiplies float32 by that type in the backward
pass. Here the compute type is kept and multiplied; sums and the softmax are float32.
"""

import jax
import jax.numpy as jnp

from ldm_jax.annotations import Array, Bool, Float


@jax.custom_vjp
def attend(
    query: Float[Array, "batch heads length channels"],
    key: Float[Array, "batch heads source channels"],
    value: Float[Array, "batch heads source channels"],
    mask: Bool[Array, "length source"] | None = None,
) -> Float[Array, "batch heads length channels"]:
    """Attention (Vaswani et al. 2017, Eq. 1) of queries that are scaled already.

    The softmax is divided by its sum after the product with the values, where there are
    fewer numbers. Derivatives of any order are there in reverse mode alone.

    Args:
      query: [B, heads, T, d], times d^-1/2.
      key: [B, heads, S, d].
      value: [B, heads, S, d].
      mask: Bool [T, S], whether a query attends to a key; each query attends to at
        least one. None where each attends to all.

    Returns:
      [B, heads, T, d] in the type of `query`.
    """
    return _forward(query, key, value, mask)[0]


def _forward(query, key, value, mask):
    scores = _product("bhtd,bhsd->bhts", query, key)
    if mask is not None:
        scores = jnp.where(mask, scores, -jnp.inf)
    top = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True))
    weights = jnp.exp(scores - top)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    weights = weights.astype(value.dtype)
    out = jnp.einsum("bhts,bhsd->bhtd", weights, value)
    out = (out / total).astype(query.dtype)
    return out, (query, key, value, weights, total, out)


def _backward(kept, gradient):
    query, key, value, weights, total, out = kept
    # Without the barrier compilers skip the rounding of the weights, and keep scores in
    # float32 to make them anew.
    weights = jax.lax.optimization_barrier(weights)
    # Masked weights are zero, and with them all that follows.
    share = gradient.astype(jnp.float32) / total
    mean = jnp.sum(share * out.astype(jnp.float32), axis=-1, keepdims=True)
    share = share.astype(value.dtype)
    by_value = _product("bhts,bhtd->bhsd", weights, share)
    by_weights = _product("bhtd,bhsd->bhts", share, value)
    by_scores = (weights.astype(jnp.float32) * (by_weights - mean)).astype(query.dtype)
    by_query = _product("bhts,bhsd->bhtd", by_scores, key)
    by_key = _product("bhts,bhtd->bhsd", by_scores, query)
    results = zip((by_query, by_key, by_value), (query, key, value), strict=True)
    return *(result.astype(like.dtype) for result, like in results), None


attend.defvjp(_forward, _backward)


def _product(axes, a, b):
    return jnp.einsum(axes, a, b, preferred_element_type=jnp.float32)
