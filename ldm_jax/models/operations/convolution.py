"""Convolutions whose kernels get gradients that lie in memory as they do."""

from typing import Any

import jax
from jax.experimental.layout import Layout, with_layout_constraint

from ldm_jax.annotations import Array, Float
from ldm_jax.models.operations.rows import gather, kernels_are_split


def conv_general_dilated(
    x: Float[Array, "batch *space channels"],
    kernel: Float[Array, "*window channels_of_group features"],
    *arguments: Any,
    **named: Any,
) -> Float[Array, "batch *new_space features"]:
    """`jax.lax.conv_general_dilated`, differentiable in reverse mode alone.

    NVIDIA's convolutions make gradients of kernels with output channels first. XLA
    would compute the optimiser in that order, and turn its moments there and back at
    each step, in float32; here the gradient alone is turned, in its own type.

    Args:
      x: [B, ..., c].
      kernel: [..., c, f] in the type of `x`.
      *arguments: What else `jax.lax.conv_general_dilated` takes.
      **named: Likewise.

    Returns:
      [B, ..., f].
    """
    # XLA cannot split the constraint: where parameters are split it would gather all
    # gradients for it.
    kernel = gather(kernel) if kernels_are_split() else _in_order(kernel)
    return jax.lax.conv_general_dilated(x, kernel, *arguments, **named)


@jax.custom_vjp
def _in_order(kernel):
    """The same, whose gradient has its axes in memory in the order of their numbers."""
    return kernel


# Jitted, it is traced and lowered once for all kernels of one shape.
@jax.jit
def _backward(kept, gradient):
    del kept
    turned = jax.lax.platform_dependent(gradient, cuda=_turn, default=lambda g: g)
    return (turned,)


_in_order.defvjp(lambda kernel: (kernel, None), _backward)


def _turn(gradient):
    gradient = with_layout_constraint(gradient, Layout(tuple(range(gradient.ndim))))
    # Else it is turned, in float32, in each part of the optimiser that reads it.
    return jax.lax.optimization_barrier(gradient)
