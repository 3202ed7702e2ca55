"""GELU, and the gate that it makes, with a gradient that keeps its input alone."""

import math

import jax
import jax.numpy as jnp

from ldm_jax.annotations import Array, Float


def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The exact GELU (Hendrycks & Gimpel 2016), x times the normal distribution.

    Arithmetic is float32, of x (1 + erf(x / sqrt(2))) / 2, PyTorch's form, which is a
    fraction of the work of one with erfc; far below zero its absolute error is
    float32's of 1, times x.

    Args:
      x: [...].

    Returns:
      [...] in the type of `x`.
    """
    wide = x.astype(jnp.float32)
    return (wide * _distribution(wide)).astype(x.dtype)


@jax.custom_vjp
def geglu(x: Float[Array, "... both"]) -> Float[Array, "... channels"]:
    """The first half of the channels times the GELU of the other (Shazeer 2020).

    Arithmetic is float32. Derivatives of any order are there in reverse mode alone.

    Args:
      x: [..., 2 c].

    Returns:
      [..., c].
    """
    value, gate = _halves(x)
    return (value * gelu(gate)).astype(x.dtype)


def _forward(x):
    return geglu(x), x


def _backward(x, gradient):
    gradient = gradient.astype(jnp.float32)
    value, gate = _halves(x)
    density = jnp.exp(-jnp.square(gate) / 2) / math.sqrt(2 * math.pi)
    # As `gelu` has it, to the same bits, and from the other side: compilers would write
    # to memory what both halves have in common, and do not know that erf is odd.
    distribution = (1 - jax.lax.erf(gate / -math.sqrt(2))) / 2
    by_gate = gradient * value * (distribution + gate * density)
    halves = [gradient * gelu(gate), by_gate]
    both = jnp.concatenate(halves, axis=-1).astype(x.dtype)
    # XLA for GPUs takes the concatenation up into each of the two products that read
    # it, and where they turn out to be cuBLAS's it copies the halves for either.
    return (jax.lax.optimization_barrier(both),)


geglu.defvjp(_forward, _backward)


def _halves(x):
    return jnp.split(x.astype(jnp.float32), 2, axis=-1)


def _distribution(x):
    return (1 + jax.lax.erf(x / math.sqrt(2))) / 2
