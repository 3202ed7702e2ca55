"""CLIP's image tower: a vision transformer that embeds a whole image.

Radford et al. 2021, Sec. 2.4, after Dosovitskiy et al. 2021. Used frozen, to condition
the denoiser on the content of an image.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from ldm_jax.annotations import Array, Float, Num
from ldm_jax.models.layers import LayerNorm, dense
from ldm_jax.models.operations.parameters import Conv, kernel_init, param
from ldm_jax.models.resize import resize_corners
from ldm_jax.models.text_encoder import EncoderBlock, embedding_init

# Statistics of the images that CLIP was trained on, in [0, 1].
MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)


class ImageEncoder(nn.Module):
    """Maps images to one embedding of the whole image and one per patch.

    The defaults are OpenAI's ViT-L/14. OpenCLIP's ViT-H/14 has width=1280,
    num_layers=32, head_channels=80, embed_dim=1024, activation="gelu".

    Attributes:
      image_size: Height and width of the images.
      patch_size: Height and width of a patch, a divisor of `image_size`.
      width: Width of the transformer.
      num_layers: Number of blocks.
      num_heads: Heads.
      head_channels: Channels of one head.
      embed_dim: Width of the embeddings.
      mlp_ratio: Width inside the feed-forward layers over `width`.
      activation: Activation of the feed-forward layers, a row of ACTIVATIONS.
      dtype: Compute type; parameters, norms and softmax are float32.
    """

    image_size: int = 224
    patch_size: int = 14
    width: int = 1024
    num_layers: int = 24
    num_heads: int = 16
    head_channels: int = 64
    embed_dim: int = 768
    mlp_ratio: int = 4
    activation: str = "quick_gelu"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch {self.image_size} {self.image_size} 3"]
    ) -> Float[Array, "batch tokens {self.embed_dim}"]:
        """Encodes images.

        Args:
          images: [B, image_size, image_size, 3] from `prepare`.

        Returns:
          [B, 1 + patches, embed_dim]: the embedding of the whole image, then those of
          the patches row by row. The final norm and the projection are applied to all,
          although CLIP trained them only for the whole image.
        """
        x = Conv(
            self.width,
            (self.patch_size,) * 2,
            self.patch_size,
            padding="VALID",
            use_bias=False,
            dtype=self.dtype,
            kernel_init=kernel_init,
            name="patches",
        )(images)
        whole = param(self, "whole", embedding_init, (self.width,))
        whole = jnp.broadcast_to(whole.astype(self.dtype), (len(x), 1, self.width))
        x = jnp.concatenate([whole, x.reshape(len(x), -1, self.width)], axis=1)
        positions = param(self, "positions", embedding_init, x.shape[1:])
        x = x + positions[None].astype(self.dtype)
        x = LayerNorm(dtype=self.dtype, name="norm_in")(x)
        for i in range(self.num_layers):
            x = EncoderBlock(
                self.num_heads,
                self.head_channels,
                True,
                self.mlp_ratio,
                self.activation,
                self.dtype,
                name=f"block_{i}",
            )(x)
        x = LayerNorm(dtype=self.dtype, name="norm_out")(x)
        return dense(
            self.embed_dim, use_bias=False, dtype=self.dtype, name="projection"
        )(x)

    @nn.nowrap
    def prepare(
        self, images: Num[Array, "batch height width 3"]
    ) -> Float[Array, "batch {self.image_size} {self.image_size} 3"]:
        """Resizes and normalises images as the tower expects.

        As in CompVis: bicubic, without antialiasing, ignoring the aspect ratio.

        Args:
          images: [B, H, W, 3], uint8 or floats in [-1, 1].

        Returns:
          float32 [B, image_size, image_size, 3].
        """
        whole = images.dtype == jnp.uint8
        images = images.astype(jnp.float32)
        images = images / 255 if whole else (images + 1) / 2
        images = resize_corners(images, self.image_size, self.image_size)
        return (images - MEAN[None, None, None]) / STD[None, None, None]
