"""Sums of normalisations, in the form that the compiler of each platform takes up."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax.annotations import Array, Float


class Sums(NamedTuple):
    """How a platform sums.

    Attributes:
      both: (a, b, axes) -> the sums of two float32 arrays, as one value.
      parts: That value -> the two sums.
      fold: (values [k, B, c], groups) -> their means over the channels of a group,
        repeated for each of them.
      level: (values [B, c], groups) -> of each group a value among or between those of
        its channels, repeated for each of them.
    """

    both: Callable[[Array, Array, Sequence[int]], Any]
    parts: Callable[[Any], Sequence[Array]]
    fold: Callable[[Array, int], Array]
    level: Callable[[Array, int], Array]


def on_platform(function: Callable, *arguments: Any) -> Any:
    """Calls a function with the sums of the platform that a program is compiled for.

    Args:
      function: (Sums, *arguments) -> arrays.
      *arguments: Arrays, in any tree.

    Returns:
      What the function returns.
    """
    cuda, default = (functools.partial(function, sums) for sums in (CUDA, DEFAULT))
    return jax.lax.platform_dependent(*arguments, cuda=cuda, default=default)


def _two(a, b, axes):
    return jnp.sum(a, axis=axes), jnp.sum(b, axis=axes)


def _one_of_complex_numbers(a, b, axes):
    """Both sums at once.

    For two sums XLA for GPUs writes what they have in common to memory in float32 and
    reads it for each; into one sum it takes up all that leads there.
    """
    return jnp.sum(jax.lax.complex(a, b), axis=axes)


def _fold_by_products(
    values: Float[Array, "kinds batch channels"], groups: int
) -> Float[Array, "kinds batch channels"]:
    """By products with a small matrix.

    XLA on the CPU would take up sums and repetitions into the loop over all pixels, and
    do them anew for each. Axes are not joined: rows of a batch that is split over
    devices would travel between them.
    """
    channels = values.shape[-1]
    member = np.repeat(np.eye(groups, dtype=np.float32), channels // groups, axis=0)
    means = jnp.matmul(values, member, precision="highest") / (channels // groups)
    return jnp.matmul(means, member.T, precision="highest")


def _fold_by_axes(
    values: Float[Array, "kinds batch channels"], groups: int
) -> Float[Array, "kinds batch channels"]:
    """By an axis of its own, in one kernel on a GPU where products are four."""
    apart = values.reshape(*values.shape[:-1], groups, values.shape[-1] // groups)
    means = jnp.mean(apart, axis=-1, keepdims=True)
    return jnp.broadcast_to(means, apart.shape).reshape(values.shape)


def _first_of_group(
    values: Float[Array, "batch channels"], groups: int
) -> Float[Array, "batch channels"]:
    """In no kernel of its own, as a mean would be."""
    apart = values.reshape(len(values), groups, -1)
    return jnp.broadcast_to(apart[..., :1], apart.shape).reshape(values.shape)


def _mean_of_group(
    values: Float[Array, "batch channels"], groups: int
) -> Float[Array, "batch channels"]:
    """XLA on the CPU would take up the first of the group in the loop over pixels."""
    return _fold_by_products(values[None], groups)[0]


CUDA = Sums(
    both=_one_of_complex_numbers,
    parts=lambda both: (both.real, both.imag),
    fold=_fold_by_axes,
    level=_first_of_group,
)
DEFAULT = Sums(
    both=_two, parts=lambda both: both, fold=_fold_by_products, level=_mean_of_group
)
