"""Features of untrained convolutions, where there are no weights of a trained network.

What is measured with them ranks models of one data set, but is not comparable to a
published number.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ldm_jax.annotations import Array, Float, UInt8
from ldm_jax.images import to_float

# The only tap.
TAP = "moments"


class RandomFeatures(nn.Module):
    """Untrained convolutions with the mean and the deviation of each channel.

    Attributes:
      channels: Channels of each layer; every layer halves height and width.
    """

    channels: tuple[int, ...] = (32, 64, 128)

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch h w c"]
    ) -> Float[Array, "batch features"]:
        """Maps images to features.

        Args:
          images: [B, H, W, C] in [-1, 1], at least 8 pixels high and wide.

        Returns:
          float32 [B, 2 * channels[-1]].
        """
        x = images
        for width in self.channels:
            x = nn.relu(nn.Conv(width, (3, 3), strides=2)(x))
        axes = (1, 2)
        return jnp.concatenate([x.mean(axis=axes), x.std(axis=axes)], axis=-1)


def load_random() -> Any:
    """Draws the weights, always the same.

    Returns:
      Parameters.
    """
    # Of three channels, whatever the images: grey ones are repeated.
    images = jnp.zeros((1, 8, 8, 3))
    return RandomFeatures().init(jax.random.key(0), images)["params"]


def apply_random(
    params: Any, images: UInt8[Array, "batch h w c"], taps: tuple[str, ...]
) -> dict[str, Float[Array, "batch features"]]:
    """Computes the features.

    Args:
      params: See `load_random`.
      images: uint8 [B, H, W, C] of one or three channels.
      taps: Names of taps.

    Returns:
      Dict of tap -> float32 [B, D].
    """
    images = jnp.broadcast_to(to_float(images), (*images.shape[:-1], 3))
    return {tap: RandomFeatures().apply({"params": params}, images) for tap in taps}
