"""What all inputs share."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ldm_jax.annotations import Bool, Shaped, UInt8
from ldm_jax.data.modalities import unpack


class Input:
    """What all inputs share.

    Attributes:
      needs: Keys of the example that are taken.
      optional: Those of them that an example may lack.
      ways: Of which modalities it can be made: tuples of rows of MODALITIES that go
        together, the usual tuple first.
    """

    needs: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    ways: tuple[tuple[str, ...], ...] = ()
    rgb_alone: bool = False

    def check_size(self, image_size: int) -> None:
        """Checks that images of a size will do.

        Args:
          image_size: Side in pixels.

        Raises:
          ValueError: If they do not.
        """
        self._check_size(image_size)

    def __call__(
        self, example: Mapping[str, Any], rng: np.random.Generator | None
    ) -> Shaped[np.ndarray, "..."]:
        """Makes the input of one example.

        Args:
          example: Dict as `transforms.transform` makes it; images may have any size
            [H, W].
          rng: NumPy generator; needed for what is random.

        Returns:
          Array without batch axis.

        Raises:
          ValueError: If the example holds something else than expected.
        """
        return self._make(example, rng)

    @property
    def drops(self) -> bool:
        """Whether `drop` may leave anything out."""
        return self._drops()

    def missing(self, example: Mapping[str, Any]) -> str | None:
        """Finds what an example lacks.

        Args:
          example: Dict by key.

        Returns:
          A key; None if the input can be made.
        """
        return self._missing(example)

    def drop(
        self,
        value: Shaped[np.ndarray, "..."],
        rng: np.random.Generator | None,
        nothing: Shaped[np.ndarray, "..."] | None = None,
    ) -> Shaped[np.ndarray, "..."]:
        """Leaves out at random what training goes without, of what was made before.

        Args:
          value: What the input of `held_out` made, [...] without batch axis, or what
            was made of that.
          rng: NumPy generator; needed for what is random.
          nothing: What then takes its place, like `value`; None for what the input
            itself makes of nothing.

        Returns:
          The value, or that of nothing in its place, of the same shape [...].
        """
        return self._drop(value, rng, nothing)

    def held_out(self) -> "Input":
        """Makes the input of all but training.

        Returns:
          The same without what is left out at random.
        """
        return self._held_out()

    def is_truncated(self, example: Mapping[str, Any], value: Any) -> bool:
        """Says whether the example held more than was kept.

        Args:
          example: Dict as `transforms.transform` makes it.
          value: What was made of it.

        Returns:
          Whether the rest was cut off.
        """
        return self._is_truncated(example, value)

    def place(self, modality: str, value: Any) -> dict[str, Any]:
        """Puts a value where the input looks for it.

        Args:
          modality: Row of MODALITIES, of one of `ways`.
          value: What that row's `fit` gives.

        Returns:
          The part of an example that holds it.

        Raises:
          ValueError: If it is more than the input takes.
        """
        return self._place(modality, value)

    def size_for(
        self, modality: str, size: tuple[int, int], image_size: int
    ) -> tuple[int, int]:
        """Says to which size a modality is brought that a flag gives.

        Args:
          modality: Row of MODALITIES, of one of `ways`.
          size: (height, width) of the samples in pixels.
          image_size: Side of the images in training, in pixels.

        Returns:
          (height, width) in pixels.
        """
        return self._size_for(modality, size, image_size)

    def mask_of(
        self, value: Shaped[np.ndarray, "..."]
    ) -> Bool[np.ndarray, "H W 1"] | None:
        """Finds the region of the image that is to be filled.

        Args:
          value: What the input made, without batch axis.

        Returns:
          bool [H, W, 1], true where it is to be filled; None if the input has no mask.
        """
        return self._mask_of(value)

    def draw(
        self,
        value: Shaped[Any, "..."],
        shape: tuple[int, int],
        names: Sequence[str] = (),
    ) -> UInt8[np.ndarray, "height width 3"] | None:
        """Draws the input.

        Args:
          value: What the input made, without batch axis.
          shape: (height, width) of the result in pixels.
          names: Names of the classes of boxes, if known.

        Returns:
          uint8 [height, width, 3]; None where there is nothing to draw.
        """
        return self._draw(np.asarray(value), shape, names)

    # What kinds of inputs replace.

    def _check_size(self, image_size):
        pass

    def _missing(self, example):
        return next((key for key in self.needs if key not in example), None)

    def _held_out(self):
        return self

    def _drops(self):
        return False

    def _drop(self, value, rng, nothing):
        return value

    def _is_truncated(self, example, value):
        return False

    def _make(self, example, rng):
        raise NotImplementedError

    def _place(self, modality, value):
        return unpack(modality, value)

    def _size_for(self, modality, size, image_size):
        return size

    def _mask_of(self, value):
        return None

    def _draw(self, value, shape, names):
        return None


def require(condition: bool | np.bool_, message: str) -> None:
    """Checks what an input is given.

    Args:
      condition: What must hold.
      message: What is wrong where it does not.

    Raises:
      ValueError: If it does not.
    """
    if not condition:
        raise ValueError(message)
