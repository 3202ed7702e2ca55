"""CLIP's two encoders, which embed images and captions in one space.

Radford et al. 2021. CLIP scores compare the two; CMMD (Jayasumana et al. 2024) uses
only images, and OpenAI's ViT-L/14 at 336 pixels.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ldm_jax.annotations import Array, Float, Int, UInt8
from ldm_jax.metrics.features.network import to_rgb
from ldm_jax.models.image_encoder import MEAN, STD, ImageEncoder
from ldm_jax.models.text_encoder import TextEncoder


class Clip(NamedTuple):
    """The two encoders of a CLIP model.

    Parameters are {"image": of `image`, "text": of `text`, "text_projection":
    [width, D]}, only the first if there is no text encoder.

    Attributes:
      image: ImageEncoder module.
      text: TextEncoder module, or None.
    """

    image: ImageEncoder
    text: TextEncoder | None = None

    def embed_images(
        self,
        params: dict[str, Any],
        images: UInt8[Array, "batch height width channels"],
        taps: tuple[str, ...],
    ) -> dict[str, Float[Array, "batch features"]]:
        """Embeds images.

        Args:
          params: See the class.
          images: uint8 [B, H, W, C] of one or three channels.
          taps: Names for the embedding, the only tap.

        Returns:
          Dict of tap -> float32 [B, D] of length 1.
        """
        with jax.default_matmul_precision("float32"):
            images = prepare(images, self.image.image_size)
            whole = self.image.apply({"params": params["image"]}, images)[:, 0]
            return dict.fromkeys(taps, _unit(whole))

    def embed_text(
        self,
        params: dict[str, Any],
        ids: Int[Array, "batch length"],
    ) -> Float[Array, "batch features"]:
        """Embeds captions.

        Args:
          params: See the class.
          ids: Token ids [B, L] of CLIP's tokenizer; the end token has the largest id.

        Returns:
          float32 [B, D] of length 1.
        """
        with jax.default_matmul_precision("float32"):
            tokens = self.text.apply({"params": params["text"]}, ids)
            # Attention is causal: tokens after the end, even its repetitions, have no
            # effect on it.
            ends = jnp.argmax(ids, axis=1)[:, None, None]
            end = jnp.take_along_axis(tokens, ends, axis=1)[:, 0]
            return _unit(jnp.matmul(end, params["text_projection"]))


def prepare(
    images: UInt8[Array, "batch height width channels"], size: int
) -> Float[Array, "batch {size} {size} 3"]:
    """Crops, resizes and normalises images as CLIP was trained on.

    The centre crop, bicubic with antialiasing, as in CMMD; OpenAI's own code rounds to
    8 bits after the resize.

    Args:
      images: uint8 [B, H, W, C] of one or three channels.
      size: Side of the encoder's images.

    Returns:
      float32 [B, size, size, 3].
    """
    _, height, width, _ = images.shape
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    images = to_rgb(images[:, top : top + side, left : left + side]) / 255
    shape = len(images), size, size, 3
    images = jax.image.resize(images, shape, "cubic", antialias=True)
    return (images - MEAN[None, None, None]) / STD[None, None, None]


def _unit(x):
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)
