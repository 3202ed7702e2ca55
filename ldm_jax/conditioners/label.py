"""Classes as a condition."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from ldm_jax.conditioners.checks import check_floats, check_images
from ldm_jax.models.image_encoder import ImageEncoder
from ldm_jax.models.layers import dense


class ClassLabel(nn.Module):
    """A learned embedding of the class.

    Attributes:
      num_classes: Number of classes K; labels are in [0, K).
      features: Width of the embedding: the U-Net's context width, or in the slot
        "vector" the width of its timestep embedding (4 x channels).
      slot: "context" for one token [B, 1, features], "vector" for [B, features],
        "concat" for a map that is the same everywhere, one pixel [B, 1, 1, features].
      null_class: Whether there is a row K that means "no class", which guidance and
        dropout need.
      dtype: Type of the output.
    """

    num_classes: int
    features: int
    slot: str = "context"
    null_class: bool = True
    dtype: Any = jnp.float32

    slots = ("context", "concat", "vector")

    @nn.compact
    def __call__(self, labels):
        embedding = nn.Embed(
            self.num_classes + self.null_class,
            self.features,
            # PyTorch's default, which the original was trained from.
            embedding_init=nn.initializers.normal(1.0),
            dtype=self.dtype,
            name="embed",
        )(labels)
        ones = {"context": (1,), "concat": (1, 1), "vector": ()}[self.slot]
        return embedding.reshape(len(labels), *ones, self.features)

    @nn.nowrap
    def null(self, labels):
        """Labels of the null class, shaped like `labels`."""
        if not self.null_class:
            raise ValueError(
                "this class_label has no null class, which guidance and dropout need: "
                "set null_class=True"
            )
        return jnp.full_like(labels, self.num_classes)

    @nn.nowrap
    def check(self, labels):
        """Raises ValueError if a label is no integer in [0, K], K being the null."""
        labels = np.asarray(labels)
        if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
            raise ValueError(
                f"labels must be integers [B], got {labels.dtype} {labels.shape}"
            )
        count = self.num_classes + self.null_class
        wrong = labels[(labels < 0) | (labels >= count)]
        if wrong.size:
            raise ValueError(
                f"label {wrong[0]} is out of range: there are {self.num_classes} "
                f"classes, so give labels from 0 to {self.num_classes - 1}"
            )


# Slot -> axes of what fills it.
AXES = {"context": "BLD", "concat": "Bhwc", "vector": "BE"}


class Raw(nn.Module):
    """Inputs taken as they are: embeddings of neighbours, a low-resolution image.

    Attributes:
      slot: "context" for tokens [B, L, D], "concat" for maps of the latents' size
        [B, h, w, c], "vector" for [B, E].
      features: Width of a learned projection, such as 4 x channels of the U-Net for a
        vector; None for none.
      dtype: Compute type.
    """

    slot: str
    features: int | None = None
    dtype: Any = jnp.float32

    slots = tuple(AXES)

    @nn.compact
    def __call__(self, inputs):
        """Maps inputs to the same shape, but `features` wide if that is given."""
        inputs = inputs.astype(self.dtype)
        if self.features:
            inputs = dense(self.features, dtype=self.dtype, name="project")(inputs)
        return inputs

    @nn.nowrap
    def null(self, inputs):
        """Zeros, shaped like `inputs`."""
        return jnp.zeros_like(inputs)

    @nn.nowrap
    def check(self, inputs):
        """Raises ValueError if the inputs are not floats with the slot's axes."""
        check_floats(inputs, len(AXES[self.slot]), f"inputs of slot {self.slot!r}")


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
