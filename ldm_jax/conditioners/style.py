"""What an image looks like as a condition, by CLIP's image tower."""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp

from ldm_jax.conditioners.checks import check_images
from ldm_jax.models.image_encoder import ImageEncoder
from ldm_jax.models.layers import dense


class ClipImage(ImageEncoder):
    """Images through CLIP's image tower, frozen; fields of ImageEncoder and these.

    Attributes:
      slot: "context" for tokens, "vector" for one embedding.
      pooled: Whether the context is the embedding of the whole image alone, without
        those of its patches.
      features: Width of a learned projection behind the tower, for a context the width
        of others, or 4 x channels of the U-Net for a vector; None for none.
      frozen: Whether training leaves the tower as it is.
    """

    slot: str = "context"
    pooled: bool = True
    features: int | None = None
    frozen: bool = True

    slots = ("context", "vector")
    tower_name = "tower"

    def __post_init__(self):
        super().__post_init__()
        if self.slot == "vector" and not self.pooled:
            raise ValueError(
                "a vector is of the whole image: leave pooled=True, or take slot "
                "'context'"
            )

    @nn.compact
    def __call__(self, images):
        """Embeds images.

        Args:
          images: [B, H, W, 3], uint8 or floats in [-1, 1].

        Returns:
          [B, 1 or 1 + patches, features or embed_dim], or without the middle axis in
          the slot "vector".
        """
        tower = self.tower(name="tower")
        x = tower(tower.prepare(images))
        if self.pooled:
            x = x[:, :1]
        if self.features:
            x = dense(self.features, dtype=self.dtype, name="project")(x)
        return x[:, 0] if self.slot == "vector" else x

    @nn.nowrap
    def tower(self, name=None):
        """The image tower, whose weights may come from elsewhere."""
        fields = [field.name for field in dataclasses.fields(ImageEncoder)]
        options = {f: getattr(self, f) for f in fields if f not in ("parent", "name")}
        return ImageEncoder(**options, name=name)

    @nn.nowrap
    def null(self, images):
        """Grey images, shaped like `images`."""
        return jnp.full_like(images, 128 if images.dtype == jnp.uint8 else 0)

    @nn.nowrap
    def check(self, images):
        """Raises ValueError on other than images [B, H, W, 3]."""
        check_images(images)
