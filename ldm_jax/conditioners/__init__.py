"""Conditioning: what the denoiser is conditioned on, in three optional slots.

| slot | array | goes to |
| --- | --- | --- |
| context | tokens [B, L, D] | cross-attention (Rombach et al. 2022, Sec. 3.3) |
| concat | maps [B, h, w, c] | channels beside the noisy latents (Sec. 4.3.2) |
| vector | [B, E] | the timestep embedding (AdaGN, AdaLN-Zero) |

The room:

- `conditioner.py`: `Conditioner`, all conditions of a model as one module; the table
  CONDITIONERS.
- `label.py`: a class, an image through CLIP, and arrays taken as they are.
- `tokens.py`: captions and layouts, token ids through a transformer.
- `maps.py`: segmentations and depth, latents of images, masked images.
- `sizes.py`: the size and the crop of an image.
- `checks.py`: checks of inputs that several of them share.

A conditioner is a linen module for one condition. To add one, write it in a file of
this folder and add a row to CONDITIONERS; configs then name its kind under the batch
key that it reads, and its fields are the options of such an entry:

    conditions=dict(label=dict(kind="class_label", features=512, dropout=0.1))

It has

- `slots`, a class attribute: the slots that it can fill, and a field `slot`, the one
  that it fills;
- `__call__(inputs)`, inputs [B, ...] to the array that fills the slot, in its `dtype`;
- `null(inputs)`, inputs of the same shape that stand for "without this condition",
  which dropout in training and guidance in sampling swap in (Ho & Salimans 2022). It
  needs no parameters, so it is decorated with `nn.nowrap`, as are those below;
- `check(inputs)`, which raises on the host what a compiled program could not.

These are for those that need them:

- `encode(inputs, encode_images)` has the first stage make latents of images; all but
  `check` then take what it returns.
- `tower()` is the network in it that may be taken over from elsewhere, by the option
  `weights` of an entry; its parameters lie under `tower_name`, and training leaves them
  alone where the field `frozen` is true.

And class attributes say from where options come that an entry leaves open:

- `from_dataset`: names of those that follow from the data set, of which there is
  `num_classes`;
- `from_input`: names of those that follow from the entry of `data.inputs` under the
  same key, as attributes of that input or of its tokenizer, and `input_kind`, the kind
  that this must have;
- `from_backbone`: names of those that in the slot "vector" are the width of the
  backbone's timestep embedding.
"""

from ldm_jax.conditioners.conditioner import (
    CONDITIONERS,
    Conditioner,
    Conditioning,
    check_entry,
    entry_identity,
    make_conditioner,
)
from ldm_jax.conditioners.label import ClassLabel, ClipImage, Raw
from ldm_jax.conditioners.maps import Encoded, MaskedLatents, Spatial
from ldm_jax.conditioners.sizes import SizeAndCrop
from ldm_jax.conditioners.tokens import ClipText, LayoutTokens, States, Text

__all__ = [
    "CONDITIONERS",
    "ClassLabel",
    "ClipImage",
    "ClipText",
    "Conditioner",
    "Conditioning",
    "Encoded",
    "LayoutTokens",
    "MaskedLatents",
    "Raw",
    "SizeAndCrop",
    "Spatial",
    "States",
    "Text",
    "check_entry",
    "entry_identity",
    "make_conditioner",
]
