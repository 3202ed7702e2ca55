"""Classes as a condition."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np


class ClassLabel(nn.Module):
    """A learned embedding of the class.

    Attributes:
      num_classes: Number of classes K; labels are in [0, K).
      features: Width of the embedding: the U-Net's context width, or in the slot
        "vector" the width of its timestep embedding (4 x channels).
      slot: "context" for one token [B, 1, features], "vector" for [B, features],
        "concat" for a map that is the same everywhere, one pixel [B, 1, 1, features].
      null_class: Whether there is a row K that means "no class", which guidance and
        dropout need.
      dtype: Type of the output.
    """

    num_classes: int
    features: int
    slot: str = "context"
    null_class: bool = True
    dtype: Any = jnp.float32

    slots = ("context", "concat", "vector")

    @nn.compact
    def __call__(self, labels):
        embedding = nn.Embed(
            self.num_classes + self.null_class,
            self.features,
            # PyTorch's default, which the original was trained from.
            embedding_init=nn.initializers.normal(1.0),
            dtype=self.dtype,
            name="embed",
        )(labels)
        ones = {"context": (1,), "concat": (1, 1), "vector": ()}[self.slot]
        return embedding.reshape(len(labels), *ones, self.features)

    @nn.nowrap
    def null(self, labels):
        """Labels of the null class, shaped like `labels`."""
        if not self.null_class:
            raise ValueError(
                "this class_label has no null class, which guidance and dropout need: "
                "set null_class=True"
            )
        return jnp.full_like(labels, self.num_classes)

    @nn.nowrap
    def check(self, labels):
        """Raises ValueError if a label is no integer in [0, K], K being the null."""
        labels = np.asarray(labels)
        if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
            raise ValueError(
                f"labels must be integers [B], got {labels.dtype} {labels.shape}"
            )
        count = self.num_classes + self.null_class
        wrong = labels[(labels < 0) | (labels >= count)]
        if wrong.size:
            raise ValueError(
                f"label {wrong[0]} is out of range: there are {self.num_classes} "
                f"classes, so give labels from 0 to {self.num_classes - 1}"
            )
