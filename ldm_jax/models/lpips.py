"""LPIPS, the perceptual distance of images (Zhang et al. 2018), on VGG16."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from ldm_jax.annotations import Array, Float
from ldm_jax.models.layers import conv

Images = Float[Array, "batch height width 3"]

# Width and number of the convolutions between two poolings (Simonyan & Zisserman 2015,
# configuration D).
BLOCKS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
# Of smaller images the poolings would leave nothing.
MIN_SIZE = 16
# As published: normalises images in [-1, 1] by the colour statistics of ImageNet.
SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)


class LPIPS(nn.Module):
    """Weighted squared distance of unit-length features, summed over five layers.

    Its dropout is off as in evaluation; CompVis leaves it on in training.

    Attributes:
      dtype: Compute type of the convolutions; the rest is float32.
    """

    dtype: Any = jnp.float32

    def setup(self) -> None:
        """Makes the convolutions and the weights of their features."""
        for block, (width, count) in enumerate(BLOCKS, start=1):
            for i in range(1, count + 1):
                setattr(self, f"conv{block}_{i}", conv(width, dtype=self.dtype))
            init = nn.initializers.constant(1 / width)
            setattr(self, f"head{block}", self.param(f"head{block}", init, (width,)))

    def __call__(
        self, images: Images, reconstructions: Images
    ) -> Float[Array, " batch"]:
        """Compares images.

        Args:
          images: [B, H, W, 3] in [-1, 1], height and width at least MIN_SIZE.
          reconstructions: Like `images`.

        Returns:
          float32 distances [B], 0 for equal images.
        """
        distance = 0.0
        # Two passes, not one of the concatenation: images need no gradient.
        both = zip(self.features(images), self.features(reconstructions), strict=True)
        for block, (x, y) in enumerate(both, start=1):
            squares = jnp.square(_unit(x) - _unit(y))
            head = getattr(self, f"head{block}")[None, None, None]
            weighted = jnp.sum(squares * head, axis=-1)
            distance += jnp.mean(weighted, axis=(1, 2))
        return distance

    def features(self, images: Images) -> list[Float[Array, "batch _h _w _c"]]:
        """Computes the last activations of each block.

        Args:
          images: [B, H, W, 3] in [-1, 1].

        Returns:
          Five arrays [B, h, w, c].
        """
        shift, scale = (jnp.array(c)[None, None, None] for c in (SHIFT, SCALE))
        x = (images.astype(jnp.float32) - shift) / scale
        features = []
        for block, (_, count) in enumerate(BLOCKS, start=1):
            if block > 1:
                x = _max_pool(x)
            for i in range(1, count + 1):
                x = jax.nn.relu(getattr(self, f"conv{block}_{i}")(x))
            features.append(x)
        return features


def _max_pool(x):
    """Max pooling over 2 x 2 pixels; an odd last row or column is left out.

    The gradient goes to the first maximum, as in PyTorch. The gradient of `max_pool` is
    bit-identical, but a scatter, which on a CPU alone takes twenty times as long.
    """
    height, width = (size // 2 * 2 for size in x.shape[1:3])
    upper, lower = (
        _larger(x[:, row:height:2, 0:width:2], x[:, row:height:2, 1:width:2])
        for row in (0, 1)
    )
    return _larger(upper, lower)


def _larger(a, b):
    return jnp.where((a >= b) | jnp.isnan(a), a, b)


def _unit(x):
    """Scales features [..., c] to unit length; all-zero features stay zero."""
    x = x.astype(jnp.float32)
    squares = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    # An epsilon inside the root, too, as its gradient at zero is not finite.
    return x / (jnp.sqrt(squares + 1e-20) + 1e-10)
