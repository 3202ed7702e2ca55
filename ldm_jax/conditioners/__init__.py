"""Conditioning: what steers the denoiser, in three optional slots.

A conditioner is a linen module with a field `slot` and two methods: `__call__(inputs)`
gives the array that fills the slot, `null(inputs)` gives inputs that mean "nothing
known" and needs no parameters. A third, `check(inputs)`, raises on the host what a
compiled program could not. Two more are for those that need them:

- `encode(inputs, encode_images)` has the first stage make latents of images; all but
  `check` then take what it returns.
- `tower()` is the network in it that may be taken over from elsewhere, by the option
  `weights` of an entry; its parameters lie under `tower_name`, and training leaves them
  alone where the field `frozen` is true.

To add one, write the module in a file of this folder and add a row to CONDITIONERS in
`conditioner.py`; configs then name it under the batch key it reads.
"""

from ldm_jax.conditioners.conditioner import (
    CONDITIONERS,
    Conditioner,
    Conditioning,
    make_conditioner,
)
from ldm_jax.conditioners.label import ClassLabel, ClipImage, Raw
from ldm_jax.conditioners.maps import Encoded, MaskedImage, Spatial
from ldm_jax.conditioners.tokens import ClipText, Layout, Text

__all__ = [
    "CONDITIONERS",
    "ClassLabel",
    "ClipImage",
    "ClipText",
    "Conditioner",
    "Conditioning",
    "Encoded",
    "Layout",
    "MaskedImage",
    "Raw",
    "Spatial",
    "Text",
    "make_conditioner",
]
