"""Inputs that are maps aligned with the image: `map`, `segmentation`, `depth`."""

import numpy as np

from ldm_jax.config import choose
from ldm_jax.data.inputs.kind import Input
from ldm_jax.data.modalities import MODALITIES, keys_of


class Map(Input):
    """A map of any modality, int32 [H, W] or float32 [H, W, C] as in the example."""

    def __init__(
        self, key: str, modality: str | None = None, stretch: bool = False
    ) -> None:
        """Stores which map to use.

        Args:
          key: Key of the input.
          modality: Row of MODALITIES; None for the key of the input.
          stretch: Whether to rescale each map to [-1, 1].
        """
        name = modality or key
        choose(MODALITIES, name, "modality")
        self._modality, self._stretch = name, stretch
        self.needs, self.ways = keys_of(name), ((name,),)

    def _make(self, example, rng):
        values = np.asarray(example[self.needs[0]])
        if values.ndim not in (2, 3) or values.dtype.kind not in "iuf":
            raise ValueError(
                f'"{self._modality}" has {values.dtype} {list(values.shape)}: a map is '
                "integers [H, W] or floats [H, W, C]"
            )
        if not self._stretch:
            return values.astype(np.float32 if values.dtype.kind == "f" else np.int32)
        values = values.astype(np.float32)
        low, high = values.min(), values.max()
        # A constant map becomes zeros.
        return (2 * values - low - high) / (high - low if high > low else 1)

    def _draw(self, value, shape, names):
        draw = MODALITIES[self._modality].draw
        return None if draw is None else draw(value, shape, names)


class Segmentation(Map):
    """The map of classes "segmentation", int32 [H, W]."""

    def __init__(self) -> None:
        """Uses the modality "segmentation"."""
        super().__init__("segmentation")


class Depth(Map):
    """The map "depth", rescaled to [-1, 1]: float32 [H, W, 1].

    Stable Diffusion 2 rescales it after resizing it to the latents, where the extremes
    of small objects are lost: its condition sets `stretch`.
    """

    def __init__(self) -> None:
        """Uses the modality "depth", rescaled."""
        super().__init__("depth", stretch=True)
