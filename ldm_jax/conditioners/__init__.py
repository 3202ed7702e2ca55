"""Conditioning: what steers the denoiser, in three optional slots.

A conditioner is a linen module with a field `slot` and two methods: `__call__(inputs)`
gives the array that fills the slot, `null(inputs)` gives inputs that mean "nothing
known" and needs no parameters. A third, `check(inputs)`, raises on the host what a
compiled program could not. Training leaves a module with a true field `frozen` alone.
To add one, write the module in a file of this folder and add a row to CONDITIONERS in
`conditioner.py`; configs then name it under the batch key it reads.
"""

from ldm_jax.conditioners.conditioner import (
    CONDITIONERS,
    Conditioner,
    Conditioning,
    make_conditioner,
)
from ldm_jax.conditioners.label import ClassLabel
from ldm_jax.conditioners.maps import Spatial
from ldm_jax.conditioners.raw import Raw
from ldm_jax.conditioners.tokens import ClipText, Layout, Text

__all__ = [
    "CONDITIONERS",
    "ClassLabel",
    "ClipText",
    "Conditioner",
    "Conditioning",
    "Layout",
    "Raw",
    "Spatial",
    "Text",
    "make_conditioner",
]
