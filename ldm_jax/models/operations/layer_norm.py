"""Layer normalisation that keeps its input alone."""

import functools

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from ldm_jax.annotations import Array, Float


# Jitted, it is traced and lowered once for all norms of one shape. What it makes of its
# input in float32 is made anew in the backward pass.
@functools.partial(jax.jit, static_argnums=(3, 4))
@functools.partial(jax.checkpoint, static_argnums=(3, 4))
def layer_norm(
    x: Float[Array, "... channels"],
    scale: Float[Array, " channels"] | None,
    bias: Float[Array, " channels"] | None,
    epsilon: float,
    dtype: DTypeLike,
) -> Float[Array, "... channels"]:
    """Normalises over channels (Ba et al. 2016); statistics are exact, in float32.

    Args:
      x: [..., c].
      scale: [c], or None.
      bias: [c], or None.
      epsilon: Added to the variance.
      dtype: Type of the output.

    Returns:
      [..., c] in `dtype`.
    """
    along = (1,) * (x.ndim - 1) + (-1,)
    centred = x.astype(jnp.float32)
    centred = centred - jnp.mean(centred, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
    rate = jax.lax.rsqrt(variance + epsilon)
    y = centred * (rate if scale is None else rate * scale.reshape(along))
    return (y if bias is None else y + bias.reshape(along)).astype(dtype)
