"""Inputs that are vectors: `size_and_crop`, `feature`."""

import numpy as np

from ldm_jax.data.crops import SIZE_AND_CROP, whole_size
from ldm_jax.data.inputs.kind import Input, require


class SizeAndCrop(Input):
    """Size and crop of an image, SDXL's micro-conditioning: float32 [6] in pixels.

    Height and width of the original, top and left of the crop in the image as it was
    resized (and mirrored), height and width of the result (Podell et al. 2023, Sec.
    2.2). Samples are uncropped by default: the original has the size of the result.
    """

    ways = (
        ("original_size", "crop_corner"),
        ("original_size",),
        ("crop_corner",),
        (),
    )

    def _make(self, example, rng):
        found = example.get(SIZE_AND_CROP)
        if found is None:
            require("image" in example, 'the example has no "image"')
            found = whole_size(example["image"].shape[:2])
        found = np.array(found, np.float32)
        # Flags may set parts of it.
        for place, name in enumerate(("original_size", "crop_corner")):
            if name in example:
                found[2 * place : 2 * place + 2] = example[name]
        return found


class Feature(Input):
    """Any array of the source, such as an embedding, as float32."""

    ways = (("features",),)

    def __init__(self, key: str, feature: str | None = None) -> None:
        """Stores the keys.

        Args:
          key: Key of the input.
          feature: The source's name for it; None for the key of the input.
        """
        self._key = key
        self.needs = (feature or key,)

    def _make(self, example, rng):
        value = example.get(self._key)
        return np.asarray(example[self.needs[0]] if value is None else value, "f4")

    def _place(self, modality, value):
        return {self.needs[0]: value}
