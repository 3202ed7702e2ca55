"""Data sources: where examples come from, by the name of `data.source`.

A source is a class that is opened with `split` and the options of its own that the
config section `data` gives. It has

- `len(source)` and `source[index]`, a dict with "image" (encoded bytes, or a uint8
  array [H, W, C]), "label" (int) where there are classes, and the further `keys`;
- `describe(index)`, which names the example in a message;
- `num_classes` and `class_names`, None where there are none;

it raises ValueError where it cannot be opened, and can be pickled, as every worker
process gets a copy.
"""

from ldm_jax.data.folder import FolderSource
from ldm_jax.data.prepared import TfdsSource

SOURCES = {"tfds": TfdsSource, "folder": FolderSource}
