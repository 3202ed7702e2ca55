"""Concatenation of two feature maps, written to memory once."""

import functools

import jax
import jax.numpy as jnp

from ldm_jax.annotations import Array, Float


def join(
    x: Float[Array, "batch height width channels"],
    skip: Float[Array, "batch height width more"],
) -> Float[Array, "batch height width all"]:
    """Concatenates channels.

    Without this, XLA for GPUs concatenates twice, and keeps both results, if a matrix
    product reads the result in another shape than a norm.

    Args:
      x: [B, h, w, c].
      skip: [B, h, w, d].

    Returns:
      [B, h, w, c + d].
    """
    return _join(x.shape[-1], x, skip)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _join(width, x, skip):
    del width
    return jax.lax.optimization_barrier(jnp.concatenate([x, skip], axis=-1))


def _forward(width, x, skip):
    return _join(width, x, skip), None


def _backward(width, kept, gradient):
    del kept
    # Without a barrier: the gradient's computation is fused into each part.
    return tuple(jnp.split(gradient, [width], axis=-1))


_join.defvjp(_forward, _backward)
