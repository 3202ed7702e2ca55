"""Convolutions and their gradients, in the form that is fastest on each platform."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jax.experimental.layout import Layout, with_layout_constraint

from ldm_jax.annotations import Array, Float
from ldm_jax.models.operations import im2col
from ldm_jax.models.operations.kernel_gradient import by_products, window_of
from ldm_jax.models.operations.rows import gather, is_alone, kernels_are_split

# The layout of all our convolutions.
_NAMES = "NHWC", "HWIO", "NHWC"

# Minimum channels of an input for which `by_products` is faster on a CPU.
_CHANNELS = 16


def conv_general_dilated(
    x: Float[Array, "batch *space channels"],
    kernel: Float[Array, "*window channels_of_group features"],
    strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    **named: Any,
) -> Float[Array, "batch *new_space features"]:
    """`jax.lax.conv_general_dilated`, differentiable in reverse mode only.

    NVIDIA's convolutions return gradients of kernels with output channels first. XLA
    would compute the optimiser in that layout, and transpose its moments there and back
    at each step, in float32; here only the gradient is transposed, in its own type. On
    a CPU kernel gradients of stride 1 are matrix products, see `kernel_gradient`, and
    so are input gradients with few pixels and wide kernels, and in bfloat16 their
    forward passes, see `im2col`; for a batch that is split over devices they are XLA's
    own.

    Args:
      x: [B, ..., c].
      kernel: [..., c, f] in the type of `x`.
      strides: Strides of the window.
      padding: Zeros before and after each spatial axis, or the name of a padding.
      **named: Other arguments of `jax.lax.conv_general_dilated`.

    Returns:
      [B, ..., f].
    """
    # XLA cannot shard the layout constraint: with sharded parameters it would gather
    # all gradients for it.
    kernel = gather(kernel) if kernels_are_split() else _in_order(kernel)
    if _has_products(x, kernel, strides, named):
        if isinstance(padding, str):
            padding = jax.lax.padtype_to_pads(
                x.shape[1:3], kernel.shape[:2], strides, padding
            )
        # The output is empty for images that are smaller than the window.
        if min(window_of(x.shape[1:3], kernel.shape[:2], padding)) > 0:
            return _convolve(x, kernel, tuple(map(tuple, padding)))
    return jax.lax.conv_general_dilated(x, kernel, strides, padding, **named)


def _has_products(x, kernel, strides, named):
    """Whether it, or one of its gradients, is computed as products on a CPU."""
    if x.ndim != 4 or 0 in x.shape or not is_alone():
        return False
    if set(strides) != {1} or kernel.shape[:2] == (1, 1):
        return False
    if not _kernel_has_products(x) and not im2col.is_quicker(x, kernel):
        return False
    # It is set by a context, which is no longer active when gradients are traced.
    if jax.config.jax_default_matmul_precision is not None:
        return False
    others = dict(named)
    given = others.pop("dimension_numbers", None)
    given, ours = (
        jax.lax.conv_dimension_numbers(x.shape, kernel.shape, names)
        for names in (given, _NAMES)
    )
    # All others must have their default values.
    return given == ours and all(o in (None, 1, (1, 1)) for o in others.values())


def _kernel_has_products(x):
    return x.dtype == jnp.float32 and x.shape[3] >= _CHANNELS


def _forward(x, kernel, padding):
    convolve = functools.partial(_by_xla, padding=padding)
    if not im2col.is_quicker(x, kernel):
        return convolve(x, kernel)
    return _on_cpu(im2col.convolve, convolve, padding)(x, kernel)


def _by_xla(x, kernel, padding):
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), padding, dimension_numbers=_NAMES
    )


def _on_cpu(ours, xla, padding):
    ours = functools.partial(ours, padding=padding)
    return functools.partial(jax.lax.platform_dependent, cpu=ours, default=xla)


_convolve = jax.custom_vjp(_forward, nondiff_argnums=(2,))


def _keep(x, kernel, padding):
    # Frozen inputs need no gradient; without this it would be traced, and counted.
    kept = x.value if kernel.perturbed else None, kernel.value if x.perturbed else None
    return _convolve(x.value, kernel.value, padding), kept


def _gradients(padding, kept, gradient):
    if isinstance(gradient, SymbolicZero):
        return None, None
    x, kernel = kept
    of_input = None if kernel is None else _of_input(padding, kernel, gradient)
    of_kernel = None if x is None else _of_kernel(padding, x, gradient)
    return of_input, of_kernel


_convolve.defvjp(_keep, _gradients, symbolic_zeros=True)


# Jitted for the same reason as `_backward` below.
@functools.partial(jax.jit, static_argnums=0)
def _of_input(padding, kernel, gradient):
    def by_convolution(kernel, gradient):
        """By XLA's own convolution."""
        windows = zip(gradient.shape[1:3], kernel.shape[:2], padding, strict=True)
        size = (n + window - 1 - sum(zeros) for n, window, zeros in windows)
        x = jax.ShapeDtypeStruct((len(gradient), *size, kernel.shape[2]), kernel.dtype)
        convolve = functools.partial(_by_xla, kernel=kernel, padding=padding)
        return jax.linear_transpose(convolve, x)(gradient)[0]

    if not im2col.is_quicker(gradient, kernel, gradient=True):
        return by_convolution(kernel, gradient)
    return _on_cpu(im2col.gradient_by_input, by_convolution, padding)(kernel, gradient)


@functools.partial(jax.jit, static_argnums=0)
def _of_kernel(padding, x, gradient):
    def by_convolution(x, gradient):
        """By XLA's own convolution."""
        window = window_of(x.shape[1:3], gradient.shape[1:3], padding)
        shape = *window, x.shape[3], gradient.shape[3]
        kernel = jax.ShapeDtypeStruct(shape, x.dtype)
        convolve = functools.partial(_by_xla, x, padding=padding)
        return jax.linear_transpose(convolve, kernel)(gradient)[0]

    if not _kernel_has_products(x):
        return by_convolution(x, gradient)
    return _on_cpu(by_products, by_convolution, padding)(x, gradient)


@jax.custom_vjp
def _in_order(kernel):
    """The identity, whose gradient has the default (row-major) layout in memory."""
    return kernel


# Jitted, so that it is traced and lowered once for all kernels of one shape.
@jax.jit
def _backward(kept, gradient):
    del kept
    turned = jax.lax.platform_dependent(gradient, cuda=_turn, default=lambda g: g)
    return (turned,)


_in_order.defvjp(lambda kernel: (kernel, None), _backward)


def _turn(gradient):
    gradient = with_layout_constraint(gradient, Layout(tuple(range(gradient.ndim))))
    # Else it is transposed, in float32, in each part of the optimiser that reads it.
    return jax.lax.optimization_barrier(gradient)
