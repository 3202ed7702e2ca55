"""Conditioning on classes, on whole images through CLIP, and on arrays as they are."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from numpy.typing import ArrayLike

from ldm_jax.annotations import Array, Float, Int, Num
from ldm_jax.conditioners.checks import check_classes, check_floats, check_images
from ldm_jax.models.image_encoder import ImageEncoder
from ldm_jax.models.layers import dense
from ldm_jax.models.operations.parameters import Embed


class ClassLabel(nn.Module):
    """A learned embedding of the class (Rombach et al. 2022, App. E.2.1).

    Attributes:
      num_classes: Number of classes K; labels are in [0, K).
      features: Width of the embedding: that of the context, or in the slot "vector"
        that of the backbone's timestep embedding.
      slot: "context" for one token [B, 1, features], "vector" for [B, features],
        "concat" for a constant map, one pixel [B, 1, 1, features].
      null_class: Whether there is a row K for "without a class", which guidance and
        dropout need.
      ignore_label: The label of examples without a class, such as -1; if it is the
        label of a class, that class counts as none. None if all examples have a class.
      dtype: Type of the output.
    """

    num_classes: int
    features: int
    slot: str = "context"
    null_class: bool = True
    ignore_label: int | None = None
    dtype: Any = jnp.float32

    slots = ("context", "concat", "vector")
    from_dataset = ("num_classes",)
    from_backbone = ("features",)

    def __post_init__(self):
        super().__post_init__()
        if self.ignore_label is not None and not self.null_class:
            raise ValueError(
                f"ignore_label={self.ignore_label} means the null class: set "
                "null_class=True"
            )

    @nn.compact
    def __call__(
        self, labels: Int[Array, " batch"]
    ) -> Float[Array, "batch *ones {self.features}"]:
        """Embeds labels.

        Args:
          labels: Integers [B] in [0, K], K being the null class, or `ignore_label`.

        Returns:
          [B, 1, features], or the shape of the slot.
        """
        if self.ignore_label is not None:
            labels = jnp.where(labels == self.ignore_label, self.num_classes, labels)
        embedding = Embed(
            self.num_classes + self.null_class,
            self.features,
            # PyTorch's default, with which CompVis's models were initialised.
            embedding_init=nn.initializers.normal(1.0),
            dtype=self.dtype,
            name="embed",
        )(labels)
        ones = {"context": (1,), "concat": (1, 1), "vector": ()}[self.slot]
        return embedding.reshape(len(labels), *ones, self.features)

    @nn.nowrap
    def null(self, labels: Int[Array, " batch"]) -> Int[Array, " batch"]:
        """Returns labels of the null class.

        Args:
          labels: Integers [B].

        Returns:
          Integers [B].

        Raises:
          ValueError: If there is no null class.
        """
        if not self.null_class:
            raise ValueError(
                "this class_label has no null class, which guidance and dropout need: "
                "set null_class=True"
            )
        return jnp.full_like(labels, self.num_classes)

    @nn.nowrap
    def check(self, labels: ArrayLike) -> None:
        """Checks labels on the host.

        Args:
          labels: Array or list.

        Raises:
          ValueError: If they are not integers [B] that are classes or `ignore_label`.
        """
        check_classes(labels, "B", self.num_classes, self.ignore_label)


# Slot -> axes of its array.
AXES = {"context": "BLD", "concat": "Bhwc", "vector": "BE"}


class Raw(nn.Module):
    """Inputs used as they are: embeddings of neighbours, a low-resolution image.

    Attributes:
      slot: "context" for tokens [B, L, D], "concat" for maps of the latents' size
        [B, h, w, c], "vector" for [B, E].
      features: Width of a learned projection, for a vector that of the backbone's
        timestep embedding; None for no projection.
      dtype: Compute type.
    """

    slot: str
    features: int | None = None
    dtype: Any = jnp.float32

    slots = tuple(AXES)

    @nn.compact
    def __call__(
        self, inputs: Num[Array, "batch *axes width"]
    ) -> Float[Array, "batch *axes new_width"]:
        """Projects inputs, if `features` is given.

        Args:
          inputs: [B, ...], the axes of the slot.

        Returns:
          [B, ..., features], or shaped like `inputs`.
        """
        inputs = inputs.astype(self.dtype)
        if self.features:
            inputs = dense(self.features, dtype=self.dtype, name="project")(inputs)
        return inputs

    @nn.nowrap
    def null(self, inputs: Num[Array, "*shape"]) -> Num[Array, "*shape"]:
        """Returns zeros.

        Args:
          inputs: [B, ...].

        Returns:
          Zeros shaped like `inputs`.
        """
        return jnp.zeros_like(inputs)

    @nn.nowrap
    def check(self, inputs: ArrayLike) -> None:
        """Checks inputs on the host.

        Args:
          inputs: Array or nested lists.

        Raises:
          ValueError: If they are not finite floats with the axes of the slot.
        """
        check_floats(inputs, len(AXES[self.slot]), f"inputs of slot {self.slot!r}")


class ClipImage(ImageEncoder):
    """Images through CLIP's image tower, frozen; fields as in ImageEncoder, and these.

    Attributes:
      slot: "context" for tokens, "vector" for one embedding.
      pooled: Whether to use only the embedding of the whole image, without those of its
        patches.
      features: Width of a learned projection after the tower: for a context that of
        other conditions in the slot, for a vector that of the backbone's timestep
        embedding; None for no projection.
      frozen: Whether training leaves the tower unchanged.
    """

    slot: str = "context"
    pooled: bool = True
    features: int | None = None
    frozen: bool = True

    slots = ("context", "vector")
    from_backbone = ("features",)
    tower_name = "tower"

    def __post_init__(self):
        super().__post_init__()
        if self.slot == "vector" and not self.pooled:
            raise ValueError(
                "a vector is of the whole image: leave pooled=True, or take slot "
                "'context'"
            )

    @nn.compact
    def __call__(
        self, images: Num[Array, "batch height width 3"]
    ) -> Float[Array, "batch *tokens features"]:
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
    def tower(self, name: str | None = None) -> ImageEncoder:
        """Returns the image tower, whose weights can be pretrained elsewhere.

        Args:
          name: Parameter scope.

        Returns:
          An ImageEncoder with the fields of this module.
        """
        fields = [field.name for field in dataclasses.fields(ImageEncoder)]
        options = {f: getattr(self, f) for f in fields if f not in ("parent", "name")}
        return ImageEncoder(**options, name=name)

    @nn.nowrap
    def null(self, images: Num[Array, "*shape"]) -> Num[Array, "*shape"]:
        """Returns grey images.

        Args:
          images: [B, H, W, 3], uint8 or floats in [-1, 1].

        Returns:
          Images shaped like `images`, in their type.
        """
        return jnp.full_like(images, 128 if images.dtype == jnp.uint8 else 0)

    @nn.nowrap
    def check(self, images: ArrayLike) -> None:
        """Checks images on the host.

        Args:
          images: Array or nested lists.

        Raises:
          ValueError: If they are not images [B, H, W, 3], see `checks.check_images`.
        """
        check_images(images)
