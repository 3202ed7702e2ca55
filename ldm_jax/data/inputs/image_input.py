"""Inputs that are images: `low_res`, `masked_image`, `image`."""

import numpy as np
from PIL import Image as PilImage

from ldm_jax.config import choose
from ldm_jax.data.crops import choose_crop, resize_image
from ldm_jax.data.degradation import DEGRADATIONS, degrade
from ldm_jax.data.draw import draw_masked
from ldm_jax.data.inputs.kind import Input, require
from ldm_jax.data.masks import STYLES, random_mask
from ldm_jax.data.modalities import MODALITIES
from ldm_jax.images import Pixels, decode, to_float, to_uint8


class LowRes(Input):
    """A small version of the image, float32 [H / factor, W / factor, 3] in [-1, 1].

    It is the example's "low_res", uint8 [h, w, 3], if there is one, resized to that
    size if there is an image, too; else the degraded image.

    Attributes:
      factor: Size of the image over that of the input.
      degradation: Row of DEGRADATIONS.
    """

    ways = (("low_res",), ("image",))
    # Degradations are made for photos.
    rgb_alone = True

    def __init__(self, factor: int = 4, degradation: str = "bicubic") -> None:
        """Stores how to degrade.

        Args:
          factor: Size of the image over that of the input, 2 to 8.
          degradation: Row of DEGRADATIONS.
        """
        require(factor in range(2, 9), f"factor must be 2 to 8, got {factor}")
        choose(DEGRADATIONS, degradation, "degradation")
        self.factor, self.degradation = factor, degradation

    def _check_size(self, image_size):
        require(
            image_size % self.factor == 0,
            f"image_size={image_size} does not divide by the factor {self.factor}",
        )

    def _make(self, example, rng):
        small, image = example.get("low_res"), example.get("image")
        if small is None:
            require(image is not None, 'the example has neither "low_res" nor "image"')
            small = degrade(image, self.factor, self.degradation, rng)
        elif image is not None:
            height, width = (n // self.factor for n in image.shape[:2])
            small = _resize(small, height, width)
        return to_float(small)

    def _size_for(self, modality, size, image_size):
        factor = self.factor if modality == "low_res" else 1
        return tuple(side // factor for side in size)

    def _draw(self, value, shape, names):
        return MODALITIES["low_res"].draw(to_uint8(value), shape, names)


class MaskedImage(Input):
    """The image with its region to fill masked, and the mask: float32 [H, W, C + 1].

    The first C channels are the image in [-1, 1], with `fill` under the mask; the last
    is 1 under the mask and 0 elsewhere. The mask is that of the example, if there is
    one, [H, W] or [H, W, 1], true or >= 0.5 where the image is to be filled; else it is
    drawn at random.
    """

    needs = ("image",)
    ways = (("image", "mask"),)

    def __init__(
        self,
        style: str = "mixed",
        min_fraction: float = 0.05,
        max_fraction: float = 0.6,
        fill: float = -1.0,
    ) -> None:
        """Stores how to draw masks.

        Args:
          style: Row of masks.STYLES.
          min_fraction: Smallest masked fraction of the image.
          max_fraction: Largest masked fraction, at least 0.1 more.
          fill: Value under the mask: -1 in CompVis, 0 in Stable Diffusion.
        """
        choose(STYLES, style, "style")
        require(
            0 <= min_fraction <= max_fraction <= 1
            and max_fraction - min_fraction > 0.099,
            "the fractions must be in [0, 1] and max_fraction >= min_fraction + 0.1, "
            f"got {min_fraction} and {max_fraction}",
        )
        self._style, self._fill = style, fill
        self._fractions = min_fraction, max_fraction

    def _make(self, example, rng):
        image, mask = example["image"], example.get("mask")
        if mask is None:
            mask = random_mask(*image.shape[:2], rng, self._style, *self._fractions)
        mask = np.asarray(mask)
        require(
            mask.shape in (image.shape[:2], (*image.shape[:2], 1)),
            f"the mask is {mask.shape}, the image {image.shape}: give both one size",
        )
        mask = mask.reshape(*image.shape[:2], 1) >= 0.5
        masked = np.where(mask, np.float32(self._fill), to_float(image))
        return np.concatenate([masked, mask], axis=-1, dtype=np.float32)

    def _mask_of(self, value):
        return value[..., -1:] >= 0.5

    def _draw(self, value, shape, names):
        return draw_masked(to_uint8(_rgb(value)), self._mask_of(value), shape)


class Image(Input):
    """An image as the condition, such as a style: uint8 [H, W, 3].

    It is the example's value under the input's own key, uint8 or an encoded file, with
    a centre crop and resized; else the example's image. It is another image, so it is
    neither cropped nor mirrored with that one.
    """

    ways = (("style",), ("image",))
    rgb_alone = True

    def __init__(self, key: str, size: int | None = None) -> None:
        """Stores the key and the size.

        Args:
          key: Key of the input.
          size: Side of the result in pixels; None for the height and width of the
            example's image, or of this one if there is no other.
        """
        self._key, self._size = key, size

    def _make(self, example, rng):
        image, own = example.get("image"), example.get(self._key)
        if own is None:
            require(image is not None, f'the example has no "{self._key}" nor "image"')
            own = image
        own = np.asarray(decode(own))
        height, width = (own if image is None else image).shape[:2]
        return _resize(own, self._size or height, self._size or width)

    def _place(self, modality, value):
        return {self._key if modality == "style" else modality: value}

    def _size_for(self, modality, size, image_size):
        return (image_size, image_size) if modality == "style" else size

    def _draw(self, value, shape, names):
        return MODALITIES["style"].draw(value, shape, names)


def _rgb(value):
    """The image of a value [H, W, C + 1] as RGB; see `Pixels.to_rgb`."""
    image = value[..., :-1]
    return Pixels(image.shape[-1]).to_rgb(image)


def _resize(image, height, width):
    """Crops an image at the centre to the proportions of a shape and resizes it."""
    if image.shape[:2] == (height, width):
        return image
    image, size = PilImage.fromarray(image), (height, width)
    return resize_image(image, choose_crop(*image.size, size), size)
