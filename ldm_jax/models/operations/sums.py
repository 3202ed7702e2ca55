"""Sums of normalisations, in the form that each platform's compiler fuses best."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax.annotations import Array, Float


class Sums(NamedTuple):
    """Implementations of sums for a platform.

    Attributes:
      both: (a, b, axes) -> the sums of two float32 arrays, as one value.
      parts: That value -> the two sums.
      fold: (values [k, B, c], groups) -> their means over the channels of a group,
        repeated for each channel.
      level: (values [B, c], groups) -> for each group a value within the range of its
        channels, repeated for each channel.
    """

    both: Callable[[Array, Array, Sequence[int]], Any]
    parts: Callable[[Any], Sequence[Array]]
    fold: Callable[[Array, int], Array]
    level: Callable[[Array, int], Array]


def on_platform(function: Callable, *arguments: Any) -> Any:
    """Calls a function with the Sums of the platform that the program is compiled for.

    Args:
      function: (Sums, *arguments) -> arrays.
      *arguments: Pytrees of arrays.

    Returns:
      The result of the function.
    """
    cuda, default = (functools.partial(function, sums) for sums in (CUDA, DEFAULT))
    return jax.lax.platform_dependent(*arguments, cuda=cuda, default=default)


def _two(a, b, axes):
    return jnp.sum(a, axis=axes), jnp.sum(b, axis=axes)


def _one_of_complex_numbers(a, b, axes):
    """Computes both sums as one.

    For two sums XLA for GPUs writes their common inputs to memory in float32 and reads
    them for each; into a single sum it fuses the whole computation.
    """
    return jnp.sum(jax.lax.complex(a, b), axis=axes)


def _fold_by_products(
    values: Float[Array, "kinds batch channels"], groups: int
) -> Float[Array, "kinds batch channels"]:
    """Computes `fold` as products with a small matrix.

    XLA on the CPU would fuse sums and repetitions into the loop over all pixels, and
    repeat them for each. Axes are not merged, as rows of a batch that is split over
    devices would then be communicated.
    """
    channels = values.shape[-1]
    member = np.repeat(np.eye(groups, dtype=np.float32), channels // groups, axis=0)
    means = jnp.matmul(values, member, precision="highest") / (channels // groups)
    return jnp.matmul(means, member.T, precision="highest")


def _fold_by_axes(
    values: Float[Array, "kinds batch channels"], groups: int
) -> Float[Array, "kinds batch channels"]:
    """Computes `fold` over an axis: one kernel on a GPU, while products take four."""
    apart = values.reshape(*values.shape[:-1], groups, values.shape[-1] // groups)
    means = jnp.mean(apart, axis=-1, keepdims=True)
    return jnp.broadcast_to(means, apart.shape).reshape(values.shape)


def _first_of_group(
    values: Float[Array, "batch channels"], groups: int
) -> Float[Array, "batch channels"]:
    """Takes the first channel, which needs no separate kernel, unlike a mean."""
    apart = values.reshape(len(values), groups, -1)
    return jnp.broadcast_to(apart[..., :1], apart.shape).reshape(values.shape)


def _mean_of_group(
    values: Float[Array, "batch channels"], groups: int
) -> Float[Array, "batch channels"]:
    """Takes the mean: XLA on the CPU would fuse a slice into the loop over pixels."""
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
