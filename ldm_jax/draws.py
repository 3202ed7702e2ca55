"""Random numbers of many axes that compile quickly: jax.random's, to the bit.

Where JAX lets random numbers be split over devices, as it does by default, it computes
each from its index along every axis, for which XLA's CPU compiler takes 2 to 4 seconds
with four axes and 0.6 with two, wherever an array is drawn. The numbers depend on the
order of the values alone, so arrays are drawn with fewer axes and get their shape
afterwards. Measured: see benchmarks/RESULTS.md.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax

from ldm_jax.annotations import Array, Bool, Float, Key


def _in_rows(draw):
    """Has a function of keys and shapes draw rows; the first axis may stay split."""

    @functools.wraps(draw)
    def drawn(rng, shape, *rest):
        rows = (shape[0], math.prod(shape[1:])) if len(shape) > 2 else shape
        return draw(rng, rows, *rest).reshape(shape)

    return drawn


@_in_rows
def normal(rng: Key[Array, ""], shape: Sequence[int]) -> Float[Array, "*shape"]:
    """Draws from the standard normal distribution.

    Args:
      rng: Typed key.
      shape: Shape of the result.

    Returns:
      float32 of that shape.
    """
    return jax.random.normal(rng, shape)


@_in_rows
def gumbel(rng: Key[Array, ""], shape: Sequence[int]) -> Float[Array, "*shape"]:
    """Draws from the standard Gumbel distribution.

    Args:
      rng: Typed key.
      shape: Shape of the result.

    Returns:
      float32 of that shape.
    """
    return jax.random.gumbel(rng, shape)


@_in_rows
def bernoulli(
    rng: Key[Array, ""], shape: Sequence[int], probability: float
) -> Bool[Array, "*shape"]:
    """Draws what is true with a probability.

    Args:
      rng: Typed key.
      shape: Shape of the result.
      probability: Of each value, in [0, 1].

    Returns:
      bool of that shape.
    """
    return jax.random.bernoulli(rng, probability, shape)


def kernels(init: jax.nn.initializers.Initializer) -> jax.nn.initializers.Initializer:
    """Has an initialiser draw the kernels of convolutions with one axis for all places.

    The axes of channels, over which large kernels are split, stay.

    Args:
      init: Initialiser for which only the number of places counts, as for those of
        `jax.nn.initializers`.

    Returns:
      Initialiser that gives the same values.
    """

    def drawn(rng: Key[Array, ""], shape: Sequence[int], *rest: Any) -> Array:
        if len(shape) < 4:
            return init(rng, shape, *rest)
        *places, inputs, features = shape
        return init(rng, (math.prod(places), inputs, features), *rest).reshape(shape)

    return drawn
