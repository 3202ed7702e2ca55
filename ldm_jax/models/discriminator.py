"""The patch discriminator of the first stage's adversarial loss (Isola et al. 2017)."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from ldm_jax import draws
from ldm_jax.annotations import Array, Float
from ldm_jax.models.layers import GroupNorm
from ldm_jax.models.operations.parameters import Conv, param

Features = Float[Array, "batch height width channels"]


class BatchNorm(nn.Module):
    """Batch normalisation with PyTorch's running statistics.

    The running variance is unbiased. Under `jit` the batch is the global one, so no
    synchronisation across devices is needed.

    Attributes:
      momentum: Weight of each batch in the running moments.
      epsilon: Added to the variance.
      dtype: Type of the output; the computation is in float32.
    """

    momentum: float = 0.1
    epsilon: float = 1e-5
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Features, train: bool) -> Features:
        """Normalises features.

        Args:
          x: [B, h, w, c].
          train: Whether to use the batch's moments instead of the running ones.

        Returns:
          [B, h, w, c].
        """
        c = x.shape[-1]
        scale = param(self, "scale", _normal(mean=1.0), (c,))
        bias = param(self, "bias", nn.initializers.zeros, (c,))
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (c,))
        running_var = self.variable("batch_stats", "var", jnp.ones, (c,))
        x = x.astype(jnp.float32)
        mean, variance = running_mean.value, running_var.value
        if train:
            mean = jnp.mean(x, axis=(0, 1, 2))
            variance = jnp.mean(jnp.square(x - _row(mean)), axis=(0, 1, 2))
            if self.is_mutable_collection("batch_stats") and not self.is_initializing():
                count = x.size // c
                unbiased = variance * count / max(count - 1, 1)
                running_mean.value += self.momentum * (mean - running_mean.value)
                running_var.value += self.momentum * (unbiased - running_var.value)
        weight = scale * jax.lax.rsqrt(variance + self.epsilon)
        return ((x - _row(mean)) * _row(weight) + _row(bias)).astype(self.dtype)


class ActNorm(nn.Module):
    """A learnt shift and scale that standardise the first batch (Kingma et al. 2018).

    The shift and scale that standardise the first training batch are variables. The
    parameters start at zero and are added to them, with the gradients of the sums.

    Attributes:
      dtype: Type of the output; the computation is in float32.
    """

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Features, train: bool) -> Features:
        """Computes scale * (x + shift).

        Args:
          x: [B, h, w, c].
          train: Whether the first batch sets the stored shift and scale.

        Returns:
          [B, h, w, c].
        """
        c = x.shape[-1]
        shift = param(self, "shift", nn.initializers.zeros, (c,))
        scale = param(self, "scale", nn.initializers.zeros, (c,))
        first_shift = self.variable("batch_stats", "shift", jnp.zeros, (c,))
        first_scale = self.variable("batch_stats", "scale", jnp.ones, (c,))
        seen = self.variable("batch_stats", "seen", jnp.zeros, ())
        x = x.astype(jnp.float32)
        if train and not self.is_initializing():
            fixed = jax.lax.stop_gradient(x)
            mean = jnp.mean(fixed, axis=(0, 1, 2))
            std = jnp.std(fixed, axis=(0, 1, 2), ddof=1)
            first = jax.tree.map(
                lambda kept, new: jnp.where(seen.value > 0, kept, new),
                (first_shift.value, first_scale.value),
                (-mean, 1 / (std + 1e-6)),
            )
            if self.is_mutable_collection("batch_stats"):
                first_shift.value, first_scale.value = first
                seen.value = jnp.ones_like(seen.value)
        else:
            first = first_shift.value, first_scale.value
        x = x + _row(first[0]) + _row(shift)
        return (_row(first[1] + scale) * x).astype(self.dtype)


class PatchDiscriminator(nn.Module):
    """Classifies patches as real or reconstructed: one logit per patch.

    Attributes:
      channels: Width of the first layer; doubled by every further one, up to 8 times.
      num_layers: Convolutions of stride 2; with 3 a patch has 70 pixels.
      norm: Row of NORMS: "batch" as published, "actnorm" (the alternative in CompVis),
        "group", or "none".
      dtype: Compute type; parameters, norms and logits are float32.
    """

    channels: int = 64
    num_layers: int = 3
    norm: str = "batch"
    dtype: Any = jnp.float32

    def __post_init__(self):
        super().__post_init__()
        if self.norm not in NORMS:
            raise ValueError(f"norm is {self.norm!r}: choose {', '.join(NORMS)}")

    @nn.nowrap
    def patches(self, image_size: int) -> int:
        """Returns the number of patches along a side of an image.

        Args:
          image_size: Side of the image in pixels.

        Returns:
          Number of patches; less than 1 if the image is too small.
        """
        side = image_size
        for _ in range(self.num_layers):
            side = side // 2
        return side - 2

    @nn.compact
    def __call__(
        self, images: Features, *, train: bool = False
    ) -> Float[Array, "batch h w 1"]:
        """Classifies the patches of images.

        Args:
          images: [B, H, W, C] in [-1, 1].
          train: Whether batch norm uses the batch's statistics. They update the running
            ones if the collection "batch_stats" is mutable.

        Returns:
          float32 logits [B, h, w, 1]; positive means real.
        """
        x = nn.leaky_relu(self._conv(self.channels, 2, "conv_0")(images), 0.2)
        for i in range(1, self.num_layers + 1):
            features = self.channels * 2 ** min(i, 3)
            stride = 2 if i < self.num_layers else 1
            # A batch norm subtracts the mean, and thus any bias.
            biased = self.norm != "batch"
            x = self._conv(features, stride, f"conv_{i}", biased)(x)
            x = NORMS[self.norm](x, train, self.dtype, f"norm_{i}")
            x = nn.leaky_relu(x, 0.2)
        x = self._conv(1, 1, "conv_out")(x)
        return x.astype(jnp.float32)

    def _conv(self, features, stride, name, use_bias=True):
        return Conv(
            features,
            (4, 4),
            stride,
            padding=1,
            use_bias=use_bias,
            dtype=self.dtype,
            kernel_init=_normal(),
            name=name,
        )


def _row(values):
    """Reshapes values per channel [c] to [1, 1, 1, c], to broadcast with images."""
    return values[None, None, None]


@functools.cache
def _normal(mean=0.0):
    """Initialiser N(mean, 0.02), the usual one of adversarial training."""

    def init(rng, shape, dtype=jnp.float32):
        return mean + 0.02 * jax.random.normal(rng, shape, dtype)

    return draws.kernels(init)


def _group_norm(x, train, dtype, name):
    del train
    groups = math.gcd(32, x.shape[-1])
    return GroupNorm(groups, dtype=dtype, name=name)(x)


# Norms of the discriminator: (x, train, dtype, name) -> x.
NORMS = {
    "batch": lambda x, train, dtype, name: BatchNorm(dtype=dtype, name=name)(x, train),
    "actnorm": lambda x, train, dtype, name: ActNorm(dtype, name=name)(x, train),
    "group": _group_norm,
    "none": lambda x, train, dtype, name: x,
}
