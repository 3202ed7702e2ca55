"""Conditioning of the denoiser, in three optional slots.

| slot | array | used in |
| --- | --- | --- |
| context | tokens [B, L, D] | cross-attention (Rombach et al. 2022, Sec. 3.3) |
| concat | maps [B, h, w, c] | channels concatenated to noisy latents (Sec. 4.3.2) |
| vector | [B, E] | the timestep embedding (AdaGN, AdaLN-Zero) |

The files:

- `conditioner.py`: `Conditioner`, all conditions of a model as one module; the table
  CONDITIONERS.
- `label.py`: a class, an image through CLIP, and arrays used as they are.
- `tokens.py`: captions and layouts, token ids through a transformer.
- `maps.py`: segmentations and depth, latents of images, masked images.
- `sizes.py`: the size and the crop of an image.
- `checks.py`: checks of inputs that several of them use.

A conditioner is a linen module for one condition. To add one, write it in a file of
this folder and add a row to CONDITIONERS; configs then name its kind under the batch
key that it reads, and its fields are the options of such an entry:

    conditions=dict(label=dict(kind="class_label", features=512, dropout=0.1))

It has

- `slots`, a class attribute: the slots that it can fill, and a field `slot`, the one
  that it fills;
- `__call__(inputs)`, which maps inputs [B, ...] to the array of the slot, in its
  `dtype`;
- `null(inputs)`, which returns inputs of the same shape that mean "without this
  condition", used by dropout in training and by guidance in sampling (Ho & Salimans
  2022). It needs no parameters, so it is decorated with `nn.nowrap`, as are those
  below;
- `check(inputs)`, which raises on the host for inputs that a compiled program cannot
  check.

Optional methods:

- `encode(inputs, encode_images)` encodes images to latents with the first stage; all
  methods except `check` then get its output as inputs.
- `tower()` returns the network in it whose weights can be loaded from elsewhere, with
  the option `weights` of an entry; its parameters are under `tower_name`, and training
  does not change them if the field `frozen` is true.

Class attributes define where options come from that an entry does not set:

- `from_dataset`: names of options from the data set, which has `num_classes`;
- `from_input`: names of options from the entry of `data.inputs` under the same key, as
  attributes of that input or of its tokenizer, and `input_kind`, the required kind of
  that entry;
- `from_backbone`: names of options that in the slot "vector" default to the width of
  the backbone's timestep embedding.
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
