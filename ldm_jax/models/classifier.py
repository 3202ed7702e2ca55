"""The classifier of noisy latents: the U-Net's down path and a pooling.

Dhariwal & Nichol 2021, Sec. 4. Its gradient with respect to the latents guides an
unconditional denoiser, see `diffusion.gradient_guidance.classifier_guidance`.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from ldm_jax.annotations import Array, Float, Int, Num
from ldm_jax.models.attention import Attention
from ldm_jax.models.layers import GroupNorm, dense
from ldm_jax.models.operations.parameters import Initializer, kernel_init, param
from ldm_jax.models.unet import UNet


class Classifier(UNet):
    """Predicts the class of noisy latents; fields as in UNet.

    Attributes:
      out_channels: Number of classes.
      pool: Row of POOLS, how features are pooled to one vector. "attention" only works
        for latents of one size, the others for any.
    """

    pool: str = "attention"

    def __post_init__(self):
        super().__post_init__()
        if self.pool not in POOLS:
            raise ValueError(
                f"unknown pool {self.pool!r}: choose one of {', '.join(POOLS)}"
            )

    @nn.nowrap
    def identity(self) -> dict[str, Any]:
        """Returns the settings that the weights depend on beyond their shapes.

        Returns:
          Those of a U-Net, without the up path, and "pool".
        """
        fields = super().identity() | {"pool": self.pool}
        return {name: value for name, value in fields.items() if name != "up_heads"}

    @nn.compact
    def __call__(
        self,
        latents: Float[Array, "batch height width channels"],
        timesteps: Num[Array, " batch"],
        *,
        train: bool = False,
    ) -> Float[Array, "batch classes"]:
        """Applies the network.

        Args:
          latents: Noisy latents [B, h, w, c], in the scale of unit-variance latents.
          timesteps: [B]; 0 is the least noisy.
          train: Whether dropout is on (rng "dropout").

        Returns:
          Logits, float32 [B, out_channels].

        Raises:
          ValueError: If the size does not halve evenly at every level, or is not the
            one that attention pooling was trained on.
        """
        self._check(latents, None, None, None)
        condition = (self._embed(timesteps, None), None, train)
        x, features = self._encode(latents, condition)
        return POOLS[self.pool](self, x, features).astype(jnp.float32)

    def norm(
        self, x: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch height width channels"]:
        """Applies the norm and SiLU at the start of the pooling.

        Args:
          x: Features [B, h, w, c].

        Returns:
          [B, h, w, c].
        """
        return GroupNorm(
            self.norm_groups, silu=True, dtype=self.dtype, name="norm_out"
        )(x)


class AttentionPool(nn.Module):
    """Attention of the mean pixel to all pixels and itself (Radford et al. 2021).

    Attributes:
      num_heads: Heads, a divisor of the channels.
      out_channels: Channels of the output.
      kernel_init: Initialiser of the weights.
      dtype: Compute type.
    """

    num_heads: int
    out_channels: int
    kernel_init: Initializer = kernel_init
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch {self.out_channels}"]:
        """Pools features to one vector.

        Args:
          x: Features [B, h, w, c], of the size with which the weights were initialised.

        Returns:
          [B, out_channels].

        Raises:
          ValueError: If the features have another size.
        """
        b, h, w, c = x.shape
        x = x.reshape(b, h * w, c)
        x = jnp.concatenate([jnp.mean(x, axis=1, keepdims=True), x], axis=1)
        shape = x.shape[1:]
        if self.has_variable("params", "position"):
            known = self.get_variable("params", "position").shape
            if known != shape:
                raise ValueError(
                    f"this classifier pools {known[0] - 1} pixels by attention, got "
                    f"{h} x {w}: give latents of the size it was trained on"
                )
        init = nn.initializers.normal(c**-0.5)
        x = x + param(self, "position", init, shape)[None].astype(x.dtype)
        return Attention(
            self.num_heads,
            c // self.num_heads,
            out_channels=self.out_channels,
            kernel_init=self.kernel_init,
            dtype=self.dtype,
            name="attention",
        )(x[:, :1], x)[:, 0]


def log_prob(
    classifier: Classifier,
    params: Mapping[str, Any],
    latents: Float[Array, "batch height width channels"],
    timesteps: Num[Array, " batch"],
    labels: Int[Array, " batch"],
) -> Float[Array, " batch"]:
    """Computes the log-probability of classes given noisy latents.

    Args:
      classifier: Classifier.
      params: Its weights.
      latents: Noisy latents [B, h, w, c].
      timesteps: [B].
      labels: int32 [B].

    Returns:
      log p(labels | latents), float32 [B].
    """
    logits = classifier.apply({"params": params}, latents, timesteps)
    return jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1)[
        :, 0
    ]


def _attention(classifier, x, features):
    num_heads, _ = classifier.heads_at(len(classifier.channel_mult) - 1)
    pool = AttentionPool(
        num_heads, classifier.out_channels, **classifier.made, name="pool"
    )
    return pool(classifier.norm(x))


def _adaptive(classifier, x, features):
    x = jnp.mean(classifier.norm(x), axis=(1, 2))
    width, made = classifier.out_channels, classifier.made
    return dense(width, zero=True, **made, name="pool_out")(x)


def _spatial(classifier, x, features, activate=None):
    """Applies two dense layers to the mean features of every layer."""
    means = [jnp.mean(feature, axis=(1, 2)) for feature in (*features, x)]
    made = classifier.made
    x = dense(2048, **made, name="pool_in")(jnp.concatenate(means, axis=-1))
    x = activate(x) if activate else nn.relu(x)
    return dense(classifier.out_channels, **made, name="pool_out")(x)


def _spatial_v2(classifier, x, features):
    norm = lambda x: classifier.norm(x[:, None, None])[:, 0, 0]  # noqa: E731
    return _spatial(classifier, x, features, norm)


# Poolings of CompVis: (classifier, last features, earlier features) -> logits.
POOLS = {
    "attention": _attention,
    "adaptive": _adaptive,
    "spatial": _spatial,
    "spatial_v2": _spatial_v2,
}
