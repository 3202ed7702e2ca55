"""Layer normalisation that stores only its input and two numbers per row."""

import functools

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from ldm_jax.annotations import Array, Float
from ldm_jax.models.operations.sums import on_platform


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def layer_norm(
    x: Float[Array, "... channels"],
    scale: Float[Array, " channels"] | None,
    bias: Float[Array, " channels"] | None,
    epsilon: float,
    dtype: DTypeLike,
) -> Float[Array, "... channels"]:
    """Normalises over channels (Ba et al. 2016), with two-pass statistics in float32.

    Derivatives of any order work in reverse mode only.

    Args:
      x: [..., c].
      scale: [c], or None.
      bias: [c], or None.
      epsilon: Added to the variance.
      dtype: Type of the output.

    Returns:
      [..., c] in `dtype`.
    """
    return _forward(x, scale, bias, epsilon, dtype)[0]


# Jitted, so that they are traced and lowered once for all norms of one shape.
@functools.partial(jax.jit, static_argnums=(3, 4))
def _forward(x, scale, bias, epsilon, dtype):
    wide = x.astype(jnp.float32)
    mean = jnp.mean(wide, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(wide - mean), axis=-1, keepdims=True)
    rate = jax.lax.rsqrt(variance + epsilon)
    y = (wide - mean) * (rate if scale is None else rate * _row(scale, x))
    y = y if bias is None else y + _row(bias, x)
    return y.astype(dtype), (x, scale, bias, mean, rate)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _backward(epsilon, dtype, kept, gradient):
    del epsilon, dtype
    return on_platform(_pull, kept, gradient)


layer_norm.defvjp(_forward, _backward)


def _pull(sums, kept, gradient):
    """Gradients of the arguments of `layer_norm`."""
    x, scale, bias, mean, rate = kept

    def recompute(x, gradient):
        """The normalised rows, and the gradient by the output, in float32."""
        return (x.astype(jnp.float32) - mean) * rate, gradient.astype(jnp.float32)

    # As in group_norm.py: without barriers, results from x are stored in float32.
    inputs = jax.lax.optimization_barrier((x, gradient))
    by_scale = by_bias = None
    if scale is not None or bias is not None:
        rows, outer = recompute(*inputs)
        # Sums per example first, as devices would otherwise communicate here to sum
        # over the batch.
        tokens = tuple(range(1, x.ndim - 1))
        found = sums.both(outer * rows, outer, tokens)
        inputs, found = jax.lax.optimization_barrier((inputs, found))
        by_scale, by_bias = (
            jnp.sum(part, axis=tuple(range(part.ndim - 1)))
            for part in sums.parts(found)
        )
    rows, outer = recompute(*inputs)
    outer = outer if scale is None else outer * _row(scale, x)
    along = jnp.mean(outer * rows, axis=-1, keepdims=True)
    result = rate * (outer - jnp.mean(outer, axis=-1, keepdims=True) - rows * along)
    given = (None if scale is None else by_scale), (None if bias is None else by_bias)
    return result.astype(x.dtype), *given


def _row(values, x):
    """Reshapes [c] to broadcast with x."""
    return values.reshape((1,) * (x.ndim - 1) + (-1,))
