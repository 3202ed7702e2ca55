"""Random arrays of many axes that compile quickly, bit-identical to jax.random.

With partitionable random numbers, its default, JAX computes each number from its index
along every axis. For each array that is drawn, this takes XLA's CPU compiler 2 to 4
seconds with four axes and 0.6 with two. The numbers depend only on the order of the
values, so arrays are drawn with fewer axes and reshaped afterwards. Measured: see
benchmarks/RESULTS.md.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax

from ldm_jax.annotations import Array, Bool, Float, Key


def _in_rows(draw):
    """Makes `draw` sample a matrix and reshape it; axis 0 may stay sharded."""

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
    """Draws from a Bernoulli distribution.

    Args:
      rng: Typed key.
      shape: Shape of the result.
      probability: Probability of True, in [0, 1].

    Returns:
      bool of that shape.
    """
    return jax.random.bernoulli(rng, probability, shape)


def kernels(init: jax.nn.initializers.Initializer) -> jax.nn.initializers.Initializer:
    """Wraps an initialiser to draw convolution kernels with one flat spatial axis.

    The channel axes, over which large kernels are split, are kept.

    Args:
      init: Initialiser that depends only on the number of spatial positions, like those
        of `jax.nn.initializers`.

    Returns:
      Initialiser that gives the same values.
    """

    def drawn(rng: Key[Array, ""], shape: Sequence[int], *rest: Any) -> Array:
        if len(shape) < 4:
            return init(rng, shape, *rest)
        *places, inputs, features = shape
        return init(rng, (math.prod(places), inputs, features), *rest).reshape(shape)

    return drawn
