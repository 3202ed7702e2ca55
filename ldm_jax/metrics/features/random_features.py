"""Features of untrained convolutions, cheap and without a file of weights.

Metrics with them rank models of one data set, but are not comparable to published
numbers.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from ldm_jax.annotations import Array, Float
from ldm_jax.errors import ConfigError
from ldm_jax.metrics.features.network import FeatureNetwork, Loaded, to_rgb
from ldm_jax.metrics.features.weight_files import checksum

TAP = "pooled"


class RandomFeatures(nn.Module):
    """Untrained convolutions, then mean and standard deviation of each channel.

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


def _load(path):
    if path is not None:
        raise ConfigError(f"random features take no file of weights, got {path}")
    # Always three channels: grey images are repeated in `_apply`.
    images = jnp.zeros((1, 8, 8, 3))
    params = RandomFeatures().init(jax.random.key(0), images)["params"]
    params = jax.tree.map(np.asarray, params)
    return Loaded(params, checksum(flatten_dict(params, sep="/")))


def _apply(params, images, taps):
    images = to_rgb(images) / 127.5 - 1
    features = RandomFeatures().apply({"params": params}, images)
    return dict.fromkeys(taps, features)


RANDOM = FeatureNetwork(
    "untrained convolutions",
    "it has none: its weights are seeded random numbers",
    {TAP: 2 * RandomFeatures.channels[-1]},
    _load,
    _apply,
)
