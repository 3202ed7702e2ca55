"""Layers of the U-Net, the autoencoder and the discriminator.

All work on NHWC, keep parameters in float32, compute in `dtype` and take statistics in
float32. Biases start at zero; the initialiser of weights is the argument `kernel_init`
everywhere.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import DTypeLike

from ldm_jax import draws
from ldm_jax.annotations import Array, Float, Num
from ldm_jax.models.operations.convolution import conv_general_dilated
from ldm_jax.models.operations.group_norm import GroupNormOptions, group_norm
from ldm_jax.models.operations.layer_norm import layer_norm
from ldm_jax.models.operations.parameters import (
    Conv,
    Dense,
    Initializer,
    kernel_init,
    param,
)
from ldm_jax.models.operations.rows import gather


def dense(
    features: int,
    *,
    use_bias: bool = True,
    kernel_init: Initializer = kernel_init,
    zero: bool = False,
    dtype: DTypeLike = jnp.float32,
    name: str | None = None,
) -> Dense:
    """Makes a dense layer over channels; also used for every 1x1 convolution.

    Args:
      features: Output channels.
      use_bias: Whether a bias is added.
      kernel_init: Initialiser of the weights.
      zero: Whether the weights start at zero instead.
      dtype: Compute type.
      name: Parameter scope.

    Returns:
      A module [..., c] -> [..., features].
    """
    init = nn.initializers.zeros if zero else kernel_init
    return Dense(
        features,
        use_bias,
        dtype,
        kernel_init=init,
        dot_general=_rows_dot_general,
        name=name,
    )


def _rows_dot_general(x, kernel, dimensions, precision=None):
    """The `dot_general` of nn.Dense, with `x` of any shape flattened to a matrix.

    With more axes the gradient of the kernel contracts several of them, for which XLA
    on the CPU first transposes the outer gradient: the backward pass takes up to four
    times as long. On other platforms both compile to the same.
    """
    del dimensions  # The last axis of x, the first of the kernel.
    rows, kernel = x.reshape(-1, x.shape[-1]), gather(kernel)
    y = jnp.matmul(rows, kernel, precision=precision)
    return y.reshape(*x.shape[:-1], kernel.shape[-1])


def conv(
    features: int,
    size: int = 3,
    *,
    stride: int = 1,
    padding: int | Sequence[int] = 1,
    kernel_init: Initializer = kernel_init,
    zero: bool = False,
    dtype: DTypeLike = jnp.float32,
    name: str | None = None,
) -> Conv:
    """Makes a convolution with PyTorch's explicit padding ("SAME" differs at stride 2).

    Args:
      features: Output channels.
      size: Kernel height and width.
      stride: Stride of the window.
      padding: Zeros on every side, or (before, after) of height and width.
      kernel_init: Initialiser of the weights.
      zero: Whether the weights start at zero instead.
      dtype: Compute type.
      name: Parameter scope.

    Returns:
      A module [B, h, w, c] -> [B, h', w', features].
    """
    pad = (padding, padding) if isinstance(padding, int) else tuple(padding)
    return Conv(
        features,
        (size, size),
        stride,
        padding=(pad, pad),
        dtype=dtype,
        kernel_init=nn.initializers.zeros if zero else kernel_init,
        name=name,
    )


class LayerNorm(nn.Module):
    """Layer normalisation (Ba et al. 2016), with statistics in float32.

    Attributes:
      affine: Whether there are a scale and a bias.
      epsilon: Added to the variance; the default is PyTorch's.
      dtype: Type of the output.
    """

    affine: bool = True
    epsilon: float = 1e-5
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "... channels"]) -> Float[Array, "... channels"]:
        """Normalises over channels.

        Args:
          x: [..., c].

        Returns:
          [..., c] in `dtype`.
        """
        scale = bias = None
        if self.affine:
            scale = param(self, "scale", nn.initializers.ones, x.shape[-1:])
            bias = param(self, "bias", nn.initializers.zeros, x.shape[-1:])
        return layer_norm(x, scale, bias, self.epsilon, self.dtype)


class GroupNorm(nn.Module):
    """Group normalisation (Wu & He 2018), optionally with modulation and SiLU.

    Attributes:
      num_groups: Groups, a divisor of the channels.
      epsilon: Added to the variance.
      silu: Whether SiLU follows.
      dtype: Type of the output.
    """

    num_groups: int = 32
    epsilon: float = 1e-5
    silu: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch height width channels"],
        modulation: Sequence[Float[Array, "batch channels"]] | None = None,
        added: Float[Array, "batch channels"] | None = None,
    ) -> Float[Array, "batch height width channels"]:
        """Normalises over height, width and the channels of a group.

        Args:
          x: [B, h, w, c].
          modulation: None or (scale, shift), each [B, c]: the normalised values times
            (1 + scale) plus shift, before SiLU (AdaGN, Dhariwal & Nichol 2021, Sec. 3).
          added: None, or float32 [B, c], added to all pixels of `x` before the norm.

        Returns:
          [B, h, w, c] in `dtype`.

        Raises:
          ValueError: If c is not a multiple of `num_groups`.
        """
        channels, groups = x.shape[-1], self.num_groups
        if channels % groups:
            raise ValueError(
                f"{channels} channels do not divide into {groups} groups: choose "
                f"channels so that every level has a multiple of {groups}"
            )
        scale = param(self, "scale", nn.initializers.ones, (channels,))
        bias = param(self, "bias", nn.initializers.zeros, (channels,))
        options = GroupNormOptions(groups, self.epsilon, self.silu, self.dtype)
        return group_norm(x, scale, bias, modulation, added, options)


def timestep_embedding(
    timesteps: Num[Array, " batch"], features: int, max_period: float = 10_000
) -> Float[Array, "batch {features}"]:
    """Sinusoidal embedding of timesteps, cosines first (Vaswani et al. 2017, Sec. 3.5).

    Args:
      timesteps: [B], integer or float.
      features: Size of the embedding; if odd, the last value is zero.
      max_period: The longest wavelength over 2 pi.

    Returns:
      float32 [B, features].
    """
    half = features // 2
    # At timestep 999 an error in the last bit shows in the fifth digit: the exponent is
    # rounded to float32 as in CompVis, the rest is exact.
    exponents = np.float32(-np.log(max_period)) * np.arange(half, dtype=np.float32)
    frequencies = np.exp(np.float64(exponents / np.float32(half))).astype(np.float32)
    angles = timesteps.astype(jnp.float32)[:, None] * frequencies[None]
    embedding = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)
    return jnp.pad(embedding, ((0, 0), (0, features % 2)))


def upsample_nearest(
    x: Float[Array, "batch height width channels"],
) -> Float[Array, "batch {2*x.shape[1]} {2*x.shape[2]} channels"]:
    """Repeats every pixel 2 x 2 times.

    Args:
      x: [B, h, w, c].

    Returns:
      [B, 2h, 2w, c].
    """
    b, h, w, c = x.shape
    x = jnp.broadcast_to(x[:, :, None, :, None], (b, h, 2, w, 2, c))
    return x.reshape(b, 2 * h, 2 * w, c)


def average_pool(
    x: Float[Array, "batch height width channels"],
) -> Float[Array, "batch {x.shape[1]//2} {x.shape[2]//2} channels"]:
    """Averages blocks of 2 x 2 pixels.

    Args:
      x: [B, h, w, c], h and w even.

    Returns:
      [B, h/2, w/2, c].
    """
    b, h, w, c = x.shape
    return jnp.mean(x.reshape(b, h // 2, 2, w // 2, 2, c), axis=(2, 4))


class Downsample(nn.Module):
    """Halves height and width: a 3x3 convolution of stride 2, or average pooling.

    Attributes:
      with_conv: Whether to use the convolution.
      padding: Zeros of the convolution before and after each axis: (1, 1) in the U-Net,
        (0, 1) in the autoencoder.
      kernel_init: Initialiser of the weights.
      dtype: Compute type.
    """

    with_conv: bool = True
    padding: tuple = (1, 1)
    kernel_init: Initializer = kernel_init
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch half_height half_width channels"]:
        """Halves the size.

        Args:
          x: [B, h, w, c].

        Returns:
          [B, h/2, w/2, c].
        """
        if not self.with_conv:
            return average_pool(x)
        return conv(
            x.shape[-1],
            stride=2,
            padding=self.padding,
            kernel_init=self.kernel_init,
            dtype=self.dtype,
            name="conv",
        )(x)


class Upsample(nn.Module):
    """Doubles height and width by repetition, optionally with a 3x3 convolution after.

    Attributes:
      with_conv: Whether there is a convolution.
      kernel_init: Initialiser of the weights.
      dtype: Compute type.
    """

    with_conv: bool = True
    kernel_init: Initializer = kernel_init
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch twice_height twice_width channels"]:
        """Doubles the size.

        Args:
          x: [B, h, w, c].

        Returns:
          [B, 2h, 2w, c].
        """
        if not self.with_conv:
            return upsample_nearest(x)
        c = x.shape[-1]
        kernel = param(self, "kernel", self.kernel_init, (3, 3, c, c))
        bias = param(self, "bias", nn.initializers.zeros, (c,))
        x = upsample_conv(x.astype(self.dtype), kernel)
        return x + bias[None, None, None].astype(self.dtype)


def upsample_conv(
    x: Float[Array, "batch height width channels"],
    kernel: Float[Array, "3 3 channels features"],
) -> Float[Array, "batch {2*x.shape[1]} {2*x.shape[2]} features"]:
    """Computes a 3x3 convolution of nearest-upsampled `x` without upsampling it.

    A 3x3 window covers only 2x2 different pixels of `x`, in one of four ways: for each
    parity of an output pixel along an axis, two taps of the kernel sum to one. So four
    2x2 convolutions of `x` do the same with 4/9 of the multiplications.

    Args:
      x: [B, h, w, c].
      kernel: [3, 3, c, f] for the upsampled image with one zero of padding.

    Returns:
      [B, 2h, 2w, f].
    """
    b, h, w, _ = x.shape

    def taps(kernel, parity):  # [3, ...] -> [2, ...]
        first, middle, last = kernel
        pair = (first, middle + last) if parity == 0 else (first + middle, last)
        return jnp.stack(pair)

    def convolve(row, column):
        small = taps(kernel, row).swapaxes(0, 1)
        small = taps(small, column).swapaxes(0, 1).astype(x.dtype)
        padding = ((1 - row, row), (1 - column, column))
        return conv_general_dilated(
            x, small, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    rows = [jnp.stack([convolve(i, 0), convolve(i, 1)], axis=3) for i in (0, 1)]
    return jnp.stack(rows, axis=2).reshape(b, 2 * h, 2 * w, -1)


class ConvBeforeNorm(nn.Module):
    """A 3x3 convolution whose bias is added in the norm after it, see `GroupNorm`.

    Attributes:
      features: Output channels.
      kernel_init: Initialiser of the weights.
      dtype: Compute type.
    """

    features: int
    kernel_init: Initializer = kernel_init
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"]
    ) -> tuple[
        Float[Array, "batch height width {self.features}"],
        Float[Array, " {self.features}"],
    ]:
        """Convolves, with one zero of padding.

        Args:
          x: [B, h, w, c].

        Returns:
          (output without the bias [B, h, w, features], bias [features]).
        """
        shape = (3, 3, x.shape[-1], self.features)
        kernel = param(self, "kernel", self.kernel_init, shape)
        bias = param(self, "bias", nn.initializers.zeros, shape[-1:])
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        names = ("NHWC", "HWIO", "NHWC")
        pad = ((1, 1), (1, 1))
        y = conv_general_dilated(x, kernel, (1, 1), pad, dimension_numbers=names)
        return y, bias


class Dropout(nn.Dropout):
    """nn.Dropout that compiles quickly, see `draws`."""

    @nn.compact
    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """Drops values at random and scales up the others.

        Args:
          x: Array [...].

        Returns:
          Array of the same shape and expected value.
        """
        if self.deterministic or not self.rate:
            return x
        rng, kept = self.make_rng(self.rng_collection), 1 - self.rate
        return jnp.where(draws.bernoulli(rng, x.shape, kept), x / kept, 0)


class ResBlock(nn.Module):
    """Residual block: twice norm, SiLU and convolution, with a shortcut.

    Used in the U-Net (with the timestep embedding; Dhariwal & Nichol 2021) and in the
    autoencoder (without).

    Attributes:
      features: Output channels; if not those of the input, the shortcut is a 1x1
        convolution.
      norm_groups: Groups of both norms.
      epsilon: Epsilon of both norms.
      dropout: Dropout rate before the second convolution.
      scale_shift_norm: The embedding scales and shifts the second norm instead of being
        added before it.
      resample: None, "up" or "down": both paths change size after the first norm.
      kernel_init: Initialiser of the weights.
      zero_init: The second convolution starts at zero.
      dtype: Compute type.
    """

    features: int
    norm_groups: int = 32
    epsilon: float = 1e-5
    dropout: float = 0.0
    scale_shift_norm: bool = False
    resample: str | None = None
    kernel_init: Initializer = kernel_init
    zero_init: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch height width channels"],
        embedding: Float[Array, "batch embedding_width"] | None = None,
        train: bool = False,
    ) -> Float[Array, "batch new_height new_width {self.features}"]:
        """Applies the block.

        Args:
          x: [B, h, w, c].
          embedding: None, or [B, E], of the timestep and of vector conditions.
          train: Whether dropout is on (rng "dropout").

        Returns:
          [B, h', w', features]; h' is h, 2h or h/2.
        """
        dtype, features = self.dtype, self.features
        made = dict(kernel_init=self.kernel_init, dtype=dtype)

        def norm(name):
            return GroupNorm(self.norm_groups, self.epsilon, True, dtype, name=name)

        h = norm("norm_in")(x)
        if self.resample:
            change = {"up": upsample_nearest, "down": average_pool}[self.resample]
            h, x = change(h), change(x)
        h, bias = ConvBeforeNorm(features, **made, name="conv_in")(h)
        added, modulation = jnp.broadcast_to(bias, (len(h), features)), None
        if embedding is not None:
            width = features * (2 if self.scale_shift_norm else 1)
            embedding = dense(width, **made, name="embedding")(nn.silu(embedding))
            if self.scale_shift_norm:
                modulation = jnp.split(embedding, 2, axis=-1)
            else:
                added = added + embedding.astype(jnp.float32)
        h = norm("norm_out")(h, modulation, added)
        h = Dropout(self.dropout, deterministic=not train)(h)
        h = conv(features, zero=self.zero_init, **made, name="conv_out")(h)
        if x.shape[-1] != features:
            x = dense(features, **made, name="shortcut")(x)
        return x + h
