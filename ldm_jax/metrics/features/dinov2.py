"""DINOv2's vision transformer (Oquab et al. 2024), without registers.

FD-DINOv2 (Stein et al. 2023) uses the class token of ViT-L/14 after the last norm. The
layer scales are folded into the matrix products before them.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from ldm_jax.annotations import Array, Float, UInt8
from ldm_jax.metrics.features.network import to_rgb
from ldm_jax.models.layers import LayerNorm
from ldm_jax.models.operations.parameters import Conv, param
from ldm_jax.models.text_encoder import EncoderBlock, embedding_init

SIZE, PATCH_SIZE, HEAD_CHANNELS = 224, 14, 64
# Mean and standard deviation of ImageNet's images, in [0, 1].
_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
_STD = np.array([0.229, 0.224, 0.225], np.float32)
_EPSILON = 1e-6


class DinoV2(nn.Module):
    """Maps images to the class token.

    The defaults are ViT-L/14.

    Attributes:
      width: Width of the transformer, a multiple of HEAD_CHANNELS.
      num_layers: Number of blocks.
    """

    width: int = 1024
    num_layers: int = 24

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch side side 3"]
    ) -> Float[Array, "batch {self.width}"]:
        """Encodes images.

        Args:
          images: [B, side, side, 3], the result of `prepare`.

        Returns:
          float32 [B, width].
        """
        x = Conv(
            self.width,
            (PATCH_SIZE, PATCH_SIZE),
            PATCH_SIZE,
            padding="VALID",
            name="patches",
        )(images)
        whole = param(self, "whole", embedding_init, (self.width,))
        whole = jnp.broadcast_to(whole, (len(x), 1, self.width))
        x = jnp.concatenate([whole, x.reshape(len(x), -1, self.width)], axis=1)
        positions = param(self, "positions", embedding_init, x.shape[1:])
        x = x + positions[None]
        for i in range(self.num_layers):
            x = EncoderBlock(
                self.width // HEAD_CHANNELS,
                HEAD_CHANNELS,
                use_bias=True,
                epsilon=_EPSILON,
                name=f"block_{i}",
            )(x)
        return LayerNorm(epsilon=_EPSILON, name="norm_out")(x[:, 0])


def prepare(
    images: UInt8[Array, "batch height width channels"],
) -> Float[Array, f"batch {SIZE} {SIZE} 3"]:
    """Resizes and normalises images as the network was trained on.

    Bicubic with antialiasing, as in EDM2 (Karras et al. 2024), which is close to PIL's
    resize of 8-bit images.

    Args:
      images: uint8 [B, H, W, C] of one or three channels.

    Returns:
      float32 [B, 224, 224, 3].
    """
    shape = len(images), SIZE, SIZE, 3
    images = jax.image.resize(to_rgb(images), shape, "cubic", antialias=True) / 255
    return (images - _MEAN[None, None, None]) / _STD[None, None, None]
