"""What the weights of a module mean beyond what their names and shapes say.

Two checkpoints whose identities differ hold weights that work differently, though one
may be loaded in place of the other: a width is cut into other heads, a norm has other
groups. A run that starts from another's weights compares the two and says so.
"""

import dataclasses
from typing import Any

from flax import linen as nn

# Fields that do not say what weights mean, and those that shapes show, which may be
# written in more than one way.
FREE_FIELDS = (
    *("parent", "name", "dtype", "remat", "attention_kernel", "dropout", "frozen"),
)
_SHOWN_FIELDS = (
    *("attention_factors", "num_res_blocks", "transformer_depth"),
    "quant_conv",
)


def identity_of(module: nn.Module) -> dict[str, Any]:
    """Says what the weights of a module mean beyond what shapes show.

    Args:
      module: Linen module.

    Returns:
      JSON-like dict: what its method `identity` returns, or else its fields.
    """
    if hasattr(module, "identity"):
        return module.identity()
    names = [field.name for field in dataclasses.fields(module)]
    free = (*FREE_FIELDS, *_SHOWN_FIELDS)
    return {name: getattr(module, name) for name in names if name not in free}
