"""Images as a condition, as the latents that the first stage makes of them.

What lies in a batch is the image; `encode` makes of it what `null`, `__call__` and the
dropout of conditions work on.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from ldm_jax.conditioners.checks import check_floats, check_images
from ldm_jax.models.resize import rescale


class Encoded(nn.Module):
    """Latents of an image beside the noisy latents.

    Attributes:
      slot: "concat".
      dtype: Type of the output.
    """

    slot: str = "concat"
    dtype: Any = jnp.float32

    slots = ("concat",)

    def __call__(self, latents):
        return latents.astype(self.dtype)

    @nn.nowrap
    def encode(self, images, encode_images):
        """Encodes the inputs of a batch.

        Args:
          images: [B, H, W, 3], uint8 or floats in [-1, 1].
          encode_images: Maps such images to latents of unit variance.

        Returns:
          Latents [B, h, w, c].
        """
        return encode_images(images)

    @nn.nowrap
    def null(self, latents):
        """Zeros, the mean of latents, shaped like `latents`."""
        return jnp.zeros_like(latents)

    @nn.nowrap
    def check(self, images):
        """Raises ValueError on other than images [B, H, W, 3]."""
        check_images(images)


class MaskedImage(Encoded):
    """An image with a hole, and the hole; fields of Encoded and these.

    The defaults are those of the original's inpainting model; Stable Diffusion's takes
    mask_first=True and signed_mask=False.

    Attributes:
      mask_first: Whether the mask comes before the latents, not behind them.
      signed_mask: Whether the mask is 1 in the hole and -1 around it, not 1 and 0.
    """

    mask_first: bool = False
    signed_mask: bool = True

    @nn.nowrap
    def encode(self, inputs, encode_images):
        """Encodes the inputs of a batch.

        Args:
          inputs: Floats [B, H, W, 4]: the image in [-1, 1], painted over in the hole,
            and the mask, 1 in the hole and 0 around it.
          encode_images: Maps images [B, H, W, 3] to latents of unit variance.

        Returns:
          [B, h, w, c + 1]: the latents, and the mask at the pixels where PyTorch's
          "nearest" reads it.
        """
        latents = encode_images(inputs[..., :-1])
        factor = latents.shape[1] / inputs.shape[1]
        mask = rescale(inputs[..., -1:], factor, "nearest")
        if self.signed_mask:
            mask = 2 * mask - 1
        parts = (mask, latents) if self.mask_first else (latents, mask)
        return jnp.concatenate(parts, axis=-1)

    @nn.nowrap
    def null(self, encoded):
        """A hole all over, shaped like `encoded`."""
        place = 0 if self.mask_first else -1
        return jnp.zeros_like(encoded).at[..., place].set(1)

    @nn.nowrap
    def check(self, inputs):
        """Raises ValueError on other than floats [B, H, W, 4], the mask 0 or 1."""
        check_floats(inputs, 4, "masked images")
        inputs = np.asarray(inputs)
        if inputs.shape[-1] != 4:
            raise ValueError(
                f"masked images must be [B, H, W, 4], the mask last, got {inputs.shape}"
            )
        mask = inputs[..., -1]
        wrong = mask[(mask != 0) & (mask != 1)]
        if wrong.size:
            raise ValueError(f"masks must be 0 or 1, 1 in the hole, got {wrong[0]:g}")
