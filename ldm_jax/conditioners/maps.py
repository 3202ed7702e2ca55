"""Conditioning on maps and images: segmentations, depth, masked images."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from ldm_jax.annotations import Array, Float, Integer, Num
from ldm_jax.conditioners.checks import check_classes, check_floats, check_images
from ldm_jax.models.layers import dense
from ldm_jax.models.operations.parameters import kernel_init, param
from ldm_jax.models.resize import METHODS, rescale

# The usual value of pixels without a class in 8-bit files.
VOID = 255


class Spatial(nn.Module):
    """Maps rescaled to the size of the latents, optionally with fewer channels.

    Channels are mapped before rescaling, which is cheaper and gives the same result as
    after it, the order of CompVis: both are linear, and weights of pixels sum to 1.

    Attributes:
      num_stages: Number of rescalings.
      method: Method of each rescaling, a row of METHODS.
      multiplier: Ratio of new to old height and width in each rescaling.
      features: Channels of the output; None for those of the input.
      use_bias: Whether the channel map has a bias.
      num_classes: If given, inputs are labels, which become one channel per class.
      ignore_label: The label of pixels without a class; if it is the label of a class,
        that class counts as none. None for 255, unless that is a class.
      stretch: Whether each map is normalised to [-1, 1] after rescaling, as for depth
        in Stable Diffusion 2; a constant map, such as that of `null`, becomes 0.
      slot: "concat".
      dtype: Compute type.
    """

    num_stages: int
    method: str = "bilinear"
    multiplier: float = 0.5
    features: int | None = None
    use_bias: bool = False
    num_classes: int | None = None
    ignore_label: int | None = None
    stretch: bool = False
    slot: str = "concat"
    dtype: Any = jnp.float32

    slots = ("concat",)

    def __post_init__(self):
        super().__post_init__()
        if self.method not in METHODS:
            raise ValueError(
                f"unknown method {self.method!r}: choose one of {', '.join(METHODS)}"
            )

    @nn.compact
    def __call__(
        self, maps: Num[Array, "batch height width *channels"]
    ) -> Float[Array, "batch new_height new_width features"]:
        """Rescales maps.

        Args:
          maps: Floats [B, H, W, C]; with `num_classes` integers [B, H, W], which mean
            "without a class" if they are `ignore_label` or, like those of `null`,
            outside of [0, num_classes).

        Returns:
          [B, h, w, features or C] in `dtype`.
        """
        if self.num_classes and self.ignore_label in range(self.num_classes):
            maps = jnp.where(maps == self.ignore_label, self.num_classes, maps)
        options = dict(use_bias=self.use_bias, dtype=self.dtype, name="channel_map")
        if self.num_classes and self.features:
            maps = ChannelsOfLabels(self.features, self.num_classes, **options)(maps)
        elif self.num_classes:
            maps = jax.nn.one_hot(maps, self.num_classes, dtype=self.dtype)
        elif self.features:
            maps = dense(self.features, **options)(maps.astype(self.dtype))
        maps = maps.astype(self.dtype)
        maps = rescale(maps, self.multiplier, self.method, self.num_stages)
        return _stretched(maps) if self.stretch else maps

    @nn.nowrap
    def null(self, maps: Num[Array, "*shape"]) -> Num[Array, "*shape"]:
        """Returns zero maps; for labels `num_classes`, which means without a class.

        Args:
          maps: [B, H, W, C], or labels [B, H, W].

        Returns:
          Maps shaped like `maps`.
        """
        if self.num_classes:
            return jnp.full(maps.shape, self.num_classes, jnp.int32)
        return jnp.zeros_like(maps)

    @nn.nowrap
    def check(self, maps: ArrayLike) -> None:
        """Checks maps on the host.

        Args:
          maps: Array or nested lists.

        Raises:
          ValueError: If they are not finite floats [B, H, W, C], or with `num_classes`
            integers [B, H, W] that are classes or `ignore_label`.
        """
        if not self.num_classes:
            check_floats(maps, 4, "maps")
            return
        ignored = self.ignore_label
        if ignored is None and self.num_classes <= VOID:
            ignored = VOID
        check_classes(maps, "B, H, W", self.num_classes, ignored)


def _stretched(maps):
    """Normalises each map to the range from -1 to 1."""
    axes = tuple(range(1, maps.ndim))
    low, high = (f(maps, axis=axes, keepdims=True) for f in (jnp.min, jnp.max))
    return (2 * maps - low - high) / jnp.where(high > low, high - low, 1)


class ChannelsOfLabels(nn.Module):
    """Dense layer on one-hot labels, as a lookup of kernel rows instead of a product.

    The product would need the channels of all classes at the size of the maps. The
    parameters are those of `layers.dense`.

    Attributes:
      features: Channels of the output.
      num_classes: Number of classes.
      use_bias: Whether a bias is added.
      dtype: Type of the output.
    """

    features: int
    num_classes: int
    use_bias: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, labels: Integer[Array, "batch height width"]
    ) -> Float[Array, "batch height width {self.features}"]:
        """Looks up the kernel rows of labels.

        Args:
          labels: Integers [B, H, W]; those outside of [0, num_classes) mean "without a
            class".

        Returns:
          [B, H, W, features].
        """
        shape = self.num_classes, self.features
        kernel = param(self, "kernel", kernel_init, shape).astype(self.dtype)
        # The last row is for pixels without a class.
        kernel = jnp.pad(kernel, ((0, 1), (0, 0)))
        known = (labels >= 0) & (labels < self.num_classes)
        maps = kernel[jnp.where(known, labels, self.num_classes)]
        if self.use_bias:
            bias = param(self, "bias", nn.initializers.zeros, (self.features,))
            maps += bias[None, None, None].astype(self.dtype)
        return maps


class Encoded(nn.Module):
    """Latents of an image, concatenated to the noisy latents.

    Attributes:
      slot: "concat".
      dtype: Type of the output.
      scale: Factor on the latents, which have unit variance; 1 / scaling_factor gives
        the unscaled latents of the first stage, as InstructPix2Pix uses.
    """

    slot: str = "concat"
    dtype: Any = jnp.float32
    scale: float = 1.0

    slots = ("concat",)

    def __call__(
        self, latents: Num[Array, "batch height width channels"]
    ) -> Float[Array, "batch height width channels"]:
        """Casts the latents to the type of the output.

        Args:
          latents: [B, h, w, c], from `encode`.

        Returns:
          [B, h, w, c].
        """
        return latents.astype(self.dtype)

    @nn.nowrap
    def encode(
        self,
        images: Num[Array, "batch height width 3"],
        encode_images: Callable[[Any], Any],
    ) -> Float[Array, "batch new_height new_width channels"]:
        """Encodes the inputs of a batch.

        Args:
          images: [B, H, W, 3], uint8 or floats in [-1, 1].
          encode_images: Maps such images to latents of unit variance.

        Returns:
          Latents [B, h, w, c], times `scale`.
        """
        return self.scale * encode_images(images)

    @nn.nowrap
    def null(
        self, latents: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch height width channels"]:
        """Returns zeros, the mean of latents.

        Args:
          latents: [B, h, w, c], from `encode`.

        Returns:
          [B, h, w, c].
        """
        return jnp.zeros_like(latents)

    @nn.nowrap
    def check(self, images: ArrayLike) -> None:
        """Checks images on the host.

        Args:
          images: Array or nested lists.

        Raises:
          ValueError: If they are not images [B, H, W, 3], see `checks.check_images`.
        """
        check_images(images)


class MaskedLatents(Encoded):
    """An image and the mask of the part to inpaint; fields as in Encoded, and these.

    Rombach et al. 2022, Sec. 4.5. The defaults are those of CompVis's inpainting model;
    Stable Diffusion's has mask_first=True and signed_mask=False.

    Attributes:
      mask_first: Whether the mask comes before the latents instead of after.
      signed_mask: Whether the mask is 1 where the image is to be inpainted and -1
        elsewhere, instead of 1 and 0.
    """

    mask_first: bool = False
    signed_mask: bool = True

    @nn.nowrap
    def encode(
        self,
        inputs: Float[Array, "batch height width channels"],
        encode_images: Callable[[Any], Any],
    ) -> Float[Array, "batch new_height new_width new_channels"]:
        """Encodes the inputs of a batch.

        Args:
          inputs: Floats [B, H, W, C + 1]: the image in [-1, 1], blanked where it is to
            be inpainted, and the mask, 1 there and 0 elsewhere.
          encode_images: Maps images [B, H, W, C] to latents of unit variance.

        Returns:
          [B, h, w, c + 1]: the latents, and the mask, downsampled like PyTorch's
          "nearest".
        """
        latents = self.scale * encode_images(inputs[..., :-1])
        factor = latents.shape[1] / inputs.shape[1]
        mask = rescale(inputs[..., -1:], factor, "nearest")
        if self.signed_mask:
            mask = 2 * mask - 1
        parts = (mask, latents) if self.mask_first else (latents, mask)
        return jnp.concatenate(parts, axis=-1)

    @nn.nowrap
    def null(
        self, encoded: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch height width channels"]:
        """Returns zeros, and a mask that is 1 everywhere.

        Args:
          encoded: [B, h, w, c + 1], from `encode`.

        Returns:
          [B, h, w, c + 1].
        """
        place = 0 if self.mask_first else -1
        return jnp.zeros_like(encoded).at[..., place].set(1)

    @nn.nowrap
    def check(self, inputs: ArrayLike) -> None:
        """Checks masked images on the host.

        Args:
          inputs: Array or nested lists.

        Raises:
          ValueError: If they are not finite floats [B, H, W, C + 1], or the last
            channel, the mask, is not 0 or 1.
        """
        check_floats(inputs, 4, "masked images")
        inputs = np.asarray(inputs)
        if inputs.shape[-1] < 2:
            raise ValueError(
                "masked images must be [B, H, W, C + 1], the mask last, got "
                f"{inputs.shape}"
            )
        mask = inputs[..., -1]
        wrong = mask[(mask != 0) & (mask != 1)]
        if wrong.size:
            raise ValueError(
                "masks must be 0 or 1, 1 where the image is to be filled, got "
                f"{wrong[0]:g}"
            )
