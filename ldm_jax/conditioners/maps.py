"""Maps larger than the latents as a condition, such as segmentations."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax.conditioners.checks import check_floats
from ldm_jax.models.layers import dense
from ldm_jax.models.resize import METHODS, rescale


class Spatial(nn.Module):
    """Maps brought to the size of the latents, with fewer channels if asked.

    Channels are mapped before rescaling, which gives the same as after, as the original
    does it, for less: both are linear, and weights of pixels sum to 1.

    Attributes:
      num_stages: Number of rescalings.
      method: How each rescales, a row of METHODS.
      multiplier: New over old height and width in each.
      features: Channels of the output; None for those of the input.
      use_bias: Whether the map of channels has a bias.
      num_classes: If given, inputs are labels, which become one channel per class.
      slot: "concat".
      dtype: Compute type.
    """

    num_stages: int
    method: str = "bilinear"
    multiplier: float = 0.5
    features: int | None = None
    use_bias: bool = False
    num_classes: int | None = None
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
    def __call__(self, maps):
        """Rescales maps.

        Args:
          maps: Floats [B, H, W, C]; with `num_classes` integers [B, H, W], where one
            outside of [0, num_classes) is no class.

        Returns:
          [B, h, w, features or C] in `dtype`.
        """
        if self.num_classes:
            maps = jax.nn.one_hot(maps, self.num_classes, dtype=self.dtype)
        maps = maps.astype(self.dtype)
        if self.features:
            project = dense(
                self.features,
                use_bias=self.use_bias,
                dtype=self.dtype,
                name="channel_map",
            )
            maps = project(maps)
        return rescale(maps, self.multiplier, self.method, self.num_stages)

    @nn.nowrap
    def null(self, maps):
        """Zero maps, shaped like `maps`; of labels, those of no class."""
        if self.num_classes:
            return jnp.full(maps.shape, self.num_classes, jnp.int32)
        return jnp.zeros_like(maps)

    @nn.nowrap
    def check(self, maps):
        """Raises ValueError on other than floats [B, H, W, C], or labels [B, H, W]."""
        if not self.num_classes:
            check_floats(maps, 4, "maps")
            return
        maps = np.asarray(maps)
        if maps.ndim != 3 or not np.issubdtype(maps.dtype, np.integer):
            raise ValueError(
                f"label maps must be integers [B, H, W], got {maps.dtype} {maps.shape}"
            )
        wrong = maps[(maps < 0) | (maps > self.num_classes)]
        if wrong.size:
            raise ValueError(
                f"label {wrong[0]} is out of range: there are {self.num_classes} "
                f"classes, so give labels from 0 to {self.num_classes - 1}"
            )
