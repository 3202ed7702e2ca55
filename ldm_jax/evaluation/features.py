"""Networks whose features two sets of images are compared by: one row each.

A feature network maps a batch of 8-bit images to one vector each, in one compiled
program on all devices. Networks with published weights come with a file of them; the
seeded random one needs none and stands in where there are none. What is measured with
it ranks models of one data set, but is not comparable to a published number.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax

from ldm_jax.annotations import Array, Float, UInt8
from ldm_jax.images import to_float


class FeatureNetwork(NamedTuple):
    """A row of FEATURES.

    Attributes:
      label: What a distance of these features is called in reports.
      load: Path of a file of weights, or None -> parameters, NumPy or JAX arrays.
      apply: (parameters, uint8 [B, H, W, C]) -> float32 [B, D].
    """

    label: str
    load: Callable[[str | None], Any]
    apply: Callable[[Any, UInt8[Array, "batch h w c"]], Float[Array, "batch features"]]


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
        return jax.numpy.concatenate([x.mean(axis=axes), x.std(axis=axes)], axis=-1)


def _load_random(path):
    del path
    # Of three channels, whatever the images: grey ones are repeated in `_apply_random`.
    images = jax.numpy.zeros((1, 8, 8, 3))
    return RandomFeatures().init(jax.random.key(0), images)["params"]


def _apply_random(params, images):
    images = jax.numpy.broadcast_to(to_float(images), (*images.shape[:-1], 3))
    return RandomFeatures().apply({"params": params}, images)


# Feature networks by name.
FEATURES = {
    "random": FeatureNetwork("random-features", _load_random, _apply_random),
}
