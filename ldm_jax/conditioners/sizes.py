"""The size and the crop of an image as a condition: SDXL's micro-conditioning."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from numpy.typing import ArrayLike

from ldm_jax.annotations import Array, Float, Num
from ldm_jax.conditioners.checks import check_floats
from ldm_jax.models.layers import dense, timestep_embedding


class SizeAndCrop(nn.Module):
    """Embeds sizes and crops (Podell et al. 2023, Sec. 2.2).

    Each number has a sinusoidal embedding, and two layers are applied to all of them
    together. So the model does not learn to generate blurred or cropped images from
    those that were enlarged or cropped.

    Attributes:
      features: Width of the output, that of the backbone's timestep embedding.
      width: Width of the embedding of each number.
      slot: "vector".
      dtype: Type of the output.
    """

    features: int
    width: int = 256
    slot: str = "vector"
    dtype: Any = jnp.float32

    slots = ("vector",)
    from_backbone = ("features",)

    @nn.compact
    def __call__(
        self, numbers: Num[Array, "batch count"]
    ) -> Float[Array, "batch {self.features}"]:
        """Embeds numbers.

        Args:
          numbers: [B, n] in pixels; see `data.inputs.SizeAndCrop`.

        Returns:
          [B, features].
        """
        count, parts = numbers.shape
        x = timestep_embedding(numbers.reshape(-1), self.width)
        x = x.reshape(count, parts * self.width).astype(self.dtype)
        x = dense(self.features, dtype=self.dtype, name="dense_1")(x)
        return dense(self.features, dtype=self.dtype, name="dense_2")(nn.silu(x))

    @nn.nowrap
    def null(self, numbers: Num[Array, "*shape"]) -> Num[Array, "*shape"]:
        """Returns zeros; guidance only by other conditions keeps the numbers.

        Args:
          numbers: [B, n].

        Returns:
          Zeros shaped like `numbers`.
        """
        return jnp.zeros_like(numbers)

    @nn.nowrap
    def check(self, numbers: ArrayLike) -> None:
        """Checks the numbers on the host.

        Args:
          numbers: Array or nested lists.

        Raises:
          ValueError: If they are not finite floats [B, n].
        """
        check_floats(numbers, 2, "sizes and crops")
