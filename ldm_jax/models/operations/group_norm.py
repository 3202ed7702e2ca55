"""Group normalisation, modulation and SiLU as a function that stores only its input.

Automatic differentiation of the plain form stores float32 copies of the activations,
several times the size of an input in bfloat16. Here the backward pass recomputes them:
it reads the input and the outer gradient for two sums per channel, and once more for
the result.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from ldm_jax.annotations import Array, Float
from ldm_jax.models.operations.sums import on_platform


class GroupNormOptions(NamedTuple):
    """How to normalise.

    Attributes:
      groups: Groups, a divisor of the channels.
      epsilon: Added to the variance.
      silu: Whether SiLU follows.
      dtype: Type of the output.
    """

    groups: int
    epsilon: float
    silu: bool
    dtype: DTypeLike


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def group_norm(
    x: Float[Array, "batch height width channels"],
    scale: Float[Array, " channels"],
    bias: Float[Array, " channels"],
    modulation: Sequence[Float[Array, "batch channels"]] | None,
    added: Float[Array, "batch channels"] | None,
    options: GroupNormOptions,
) -> Float[Array, "batch height width channels"]:
    """Normalises over height, width and the channels of a group (Wu & He 2018).

    Computed in float32. For accuracy, squares are taken about the mean of the first row
    of each channel, and the channel's mean about that of a channel of the group. So the
    relative error of the variance stays below about 1e-7 times the height and the
    channels of a group, however large the mean is: the spread within the tensor bounds
    how far these reference values can be from its mean. Derivatives of any order work
    in reverse mode only.

    Args:
      x: [B, h, w, c].
      scale: [c].
      bias: [c].
      modulation: None or (scale, shift), each [B, c]: the result times (1 + scale) plus
        shift, before SiLU (AdaGN, Dhariwal & Nichol 2021, Sec. 3).
      added: None, or float32 [B, c], added to all pixels of `x` before the norm. Its
        gradient follows from sums that are computed anyway, without the additional pass
        over memory that a separate addition would need.
      options: GroupNormOptions.

    Returns:
      [B, h, w, c] in `options.dtype`.
    """
    return _forward(x, scale, bias, modulation, added, options)[0]


# Jitted, so that they are traced and lowered once for all norms of one shape.
@functools.partial(jax.jit, static_argnums=5)
def _forward(x, scale, bias, modulation, added, options):
    groups, epsilon, silu, dtype = options
    wide = x.astype(jnp.float32)
    moments = functools.partial(_moments, groups)
    mean, variance, distance = on_platform(moments, wide, added)
    rate = jax.lax.rsqrt(variance + epsilon)
    weight, offset = _affine(scale, bias, modulation, rate)
    y = (wide - _pixel(mean)) * _pixel(weight) + _pixel(offset)
    y = (y * jax.nn.sigmoid(y) if silu else y).astype(dtype)
    distance = None if added is None else distance
    return y, (x, scale, bias, modulation, mean, rate, distance)


@functools.partial(jax.jit, static_argnums=0)
def _backward(options, kept, gradient):
    pull = functools.partial(_pull, options.groups, options.silu)
    return on_platform(pull, kept, gradient)


group_norm.defvjp(_forward, _backward)


def _pull(groups, silu, sums, kept, gradient):
    """Gradients of the arguments of `group_norm`."""
    x, scale, bias, modulation, mean, rate, distance = kept
    (weight, offset), pull = jax.vjp(_affine, scale, bias, modulation, rate)

    def recompute(x, gradient):
        """`x` minus its mean, and the gradient before SiLU, in float32."""
        centred = x.astype(jnp.float32) - _pixel(mean)
        gradient = gradient.astype(jnp.float32)
        if silu:
            y = centred * _pixel(weight) + _pixel(offset)
            gate = jax.nn.sigmoid(y)
            gradient = gradient * (gate * (1 + y * (1 - gate)))
        return centred, gradient

    # Without the barriers compilers merge this with the same computation in the forward
    # pass or in the first sweep, and store the result in float32.
    inputs = jax.lax.optimization_barrier((x, gradient))
    centred, gradient = recompute(*inputs)
    found = sums.both(gradient, gradient * centred, (1, 2))
    inputs, found = jax.lax.optimization_barrier((inputs, found))
    by_offset, by_weight = sums.parts(found)
    *by_parameters, by_rate = pull((by_weight, by_offset))
    # Gradients by the mean and by the variance: the variance's derivative by an element
    # is 2 / n of its distance from the mean, the rate's by the variance -rate^3 / 2.
    both = jnp.stack([by_offset * weight, by_rate * rate**3])
    shift, slope = -sums.fold(both, groups) / (x.shape[1] * x.shape[2])
    centred, gradient = recompute(*inputs)
    result = gradient * _pixel(weight) + centred * _pixel(slope) + _pixel(shift)
    by_added = None
    if distance is not None:
        # The sum of the result over the pixels.
        pixels = x.shape[1] * x.shape[2]
        by_added = by_offset * weight + pixels * (distance * slope + shift)
    return result.astype(x.dtype), *by_parameters, by_added


def _affine(scale, bias, modulation, rate):
    """The weight and the offset of centred elements: two [B, c]."""
    weight = scale[None] * rate
    if modulation is None:
        return weight, jnp.broadcast_to(bias[None], weight.shape)
    scale, shift = (m.astype(jnp.float32) for m in modulation)
    return weight * (1 + scale), bias[None] * (1 + scale) + shift


def _moments(groups, sums, x, added):
    """Moments of every group, repeated for its channels: three [B, c].

    Returns:
      (mean, minus what is added to the channel; variance; mean of the channel minus
      that of the group).
    """
    added = 0.0 if added is None else added
    # Divided before the sum: after it, that would be a separate kernel.
    row = jnp.sum(x[:, 0] / x.shape[2], axis=1)
    centred = x - _pixel(row)
    found = sums.parts(sums.both(centred, jnp.square(centred), (1, 2)))
    distance, square = (part / (x.shape[1] * x.shape[2]) for part in found)
    within = square - jnp.square(distance)
    # Means of channels are taken about a reference: the mean of one channel or of all,
    # whichever is cheaper on the platform.
    level = sums.level(row + added, groups)
    distance += row + added - level
    both = jnp.stack([distance, within + jnp.square(distance)])
    mean, square = sums.fold(both, groups)
    variance = jnp.maximum(square - jnp.square(mean), 0.0)
    return level + mean - added, variance, distance - mean


def _pixel(values):
    """Reshapes values of channels [B, c] to [B, 1, 1, c]."""
    return values[:, None, None]
