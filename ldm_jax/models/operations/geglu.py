"""GELU and GEGLU, with a gradient that stores only the input."""

import math

import jax
import jax.numpy as jnp

from ldm_jax.annotations import Array, Float


def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The exact GELU (Hendrycks & Gimpel 2016), x times the normal CDF.

    Computed in float32 as x (1 + erf(x / sqrt(2))) / 2, as in PyTorch, which takes a
    fraction of the time of a form with erfc; far below zero its absolute error is
    float32's precision at 1, times x.

    Args:
      x: [...].

    Returns:
      [...] in the type of `x`.
    """
    wide = x.astype(jnp.float32)
    return (wide * _distribution(wide)).astype(x.dtype)


@jax.custom_vjp
def geglu(x: Float[Array, "... both"]) -> Float[Array, "... channels"]:
    """The first half of the channels times the GELU of the second (Shazeer 2020).

    Computed in float32. Derivatives of any order work in reverse mode only.

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
    # Bit-identical to that in `gelu`, but of the negated argument: compilers would
    # otherwise write the common subexpression to memory; they do not know that erf is
    # odd.
    distribution = (1 - jax.lax.erf(gate / -math.sqrt(2))) / 2
    by_gate = gradient * value * (distribution + gate * density)
    halves = [gradient * gelu(gate), by_gate]
    both = jnp.concatenate(halves, axis=-1).astype(x.dtype)
    # XLA for GPUs fuses the concatenation into each of the two products that read it,
    # and if these become cuBLAS calls it copies the halves for both.
    return (jax.lax.optimization_barrier(both),)


geglu.defvjp(_forward, _backward)


def _halves(x):
    return jnp.split(x.astype(jnp.float32), 2, axis=-1)


def _distribution(x):
    return (1 + jax.lax.erf(x / math.sqrt(2))) / 2
