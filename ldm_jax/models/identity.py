"""Identity of a module: the settings its weights depend on beyond names and shapes.

Weights of two checkpoints with different identities work differently, although one can
be loaded in place of the other: a width is split into other heads, a norm has other
groups. A run that starts from another's weights compares the two and reports this.
"""

import dataclasses
from typing import Any

from flax import linen as nn

# Fields that do not affect the weights' meaning, and those that shapes show, which may
# be written in more than one way.
FREE_FIELDS = (
    *("parent", "name", "dtype", "remat", "attention_kernel", "dropout", "frozen"),
)
_SHOWN_FIELDS = (
    *("attention_factors", "num_res_blocks", "transformer_depth"),
    "quant_conv",
)


def identity_of(module: nn.Module) -> dict[str, Any]:
    """Returns the identity of a module: what its weights depend on beyond shapes.

    Args:
      module: Linen module.

    Returns:
      JSON-like dict: the result of its method `identity`, or else its fields.
    """
    if hasattr(module, "identity"):
        return module.identity()
    names = [field.name for field in dataclasses.fields(module)]
    free = (*FREE_FIELDS, *_SHOWN_FIELDS)
    return {name: getattr(module, name) for name in names if name not in free}
