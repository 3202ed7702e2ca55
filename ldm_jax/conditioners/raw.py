"""What was computed beforehand as a condition, in any slot."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from ldm_jax.conditioners.checks import check_floats
from ldm_jax.models.layers import dense

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
