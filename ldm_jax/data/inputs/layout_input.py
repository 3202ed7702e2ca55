"""The input `layout`: token ids of boxes with classes."""

import numpy as np

from ldm_jax.config import choose
from ldm_jax.data.crops import MAX_BOXES
from ldm_jax.data.inputs.kind import Input, require
from ldm_jax.data.layout import decode_layout, encode_layout
from ldm_jax.data.modalities import MODALITIES


class Layout(Input):
    """Token ids of "boxes" and "box_labels", int32 [3 * max_objects + 2].

    Attributes:
      vocab_size: Number of ids.
      max_objects: Largest number of objects.
      max_length: Number of tokens.
    """

    needs = ("boxes", "box_labels")
    ways = (("layout",),)

    def __init__(
        self,
        vocab_size: int = 8192,
        max_objects: int = 30,
        num_classes: int | None = None,
        order: str = "random",
    ) -> None:
        """Stores the format of the tokens; see `layout.py`.

        Args:
          vocab_size: Number of ids, shared by classes and corners.
          max_objects: Largest number of objects.
          num_classes: Number of classes, to reject larger labels; None for no check.
          order: Row of ORDERS, the order of the objects; random in CompVis.
        """
        require(
            vocab_size > max(num_classes or 0, 4),
            f"vocab_size={vocab_size} is too small: it must exceed the number of "
            "classes, and 4",
        )
        require(
            1 <= max_objects <= MAX_BOXES,
            f"max_objects must be from 1 to {MAX_BOXES}, got {max_objects}",
        )
        self.vocab_size, self.max_objects = vocab_size, max_objects
        self.max_length = 3 * max_objects + 2
        self._num_classes = num_classes
        self._order = choose(ORDERS, order, "order")

    def _make(self, example, rng):
        boxes, labels = np.asarray(example["boxes"]), np.asarray(example["box_labels"])
        require(
            self._num_classes is None or labels.max(initial=-1) < self._num_classes,
            f"box label {labels.max(initial=-1)} is out of range: the layout has "
            f"num_classes={self._num_classes}",
        )
        order = self._order(boxes, rng)
        return encode_layout(
            boxes[order], labels[order], self.vocab_size, self.max_objects
        )

    def _is_truncated(self, example, value):
        return bool(np.sum(np.asarray(example["box_labels"]) >= 0) > self.max_objects)

    def _place(self, modality, value):
        count = np.sum(value[1] >= 0)
        require(
            count <= self.max_objects,
            f"a layout has {count} objects; this model is conditioned on up to "
            f"{self.max_objects}",
        )
        return super()._place(modality, value)

    def _draw(self, value, shape, names):
        boxes, labels, _ = decode_layout(value, self.vocab_size)
        return MODALITIES["layout"].draw((boxes, labels), shape, names)


def _shuffled(boxes, rng):
    return rng.permutation(len(boxes))


def _as_given(boxes, rng):
    return np.arange(len(boxes))


def _by_area(boxes, rng):
    top, left, bottom, right = boxes.reshape(-1, 4).T
    return np.argsort(-(bottom - top) * (right - left), kind="stable")


# Orders of the objects of a layout: (boxes [n, 4], rng) -> indices [n].
ORDERS = {
    "random": _shuffled,
    "given": _as_given,
    # The largest first, so that each position of the sequence has a meaning of its own.
    "area": _by_area,
}
