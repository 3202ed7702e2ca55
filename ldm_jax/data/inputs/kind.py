"""Base class of the inputs."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ldm_jax.annotations import Bool, Shaped, UInt8
from ldm_jax.data.modalities import unpack


class Input:
    """Base class of the inputs.

    Attributes:
      needs: Keys of the example that it uses.
      optional: Those of them that an example may lack.
      ways: Modalities from which it can be made: tuples of rows of MODALITIES that are
        used together, the usual tuple first.
    """

    needs: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    ways: tuple[tuple[str, ...], ...] = ()
    rgb_alone: bool = False

    def check_size(self, image_size: int) -> None:
        """Checks that the input can be made from images of a size.

        Args:
          image_size: Side in pixels.

        Raises:
          ValueError: If it cannot.
        """
        self._check_size(image_size)

    def __call__(
        self, example: Mapping[str, Any], rng: np.random.Generator | None
    ) -> Shaped[np.ndarray, "..."]:
        """Makes the input of one example.

        Args:
          example: Dict as `transforms.transform` makes it; images may have any size
            [H, W].
          rng: NumPy generator; needed if anything is random.

        Returns:
          Array without batch axis.

        Raises:
          ValueError: If a value of the example is invalid.
        """
        return self._make(example, rng)

    @property
    def drops(self) -> bool:
        """Whether the input has dropout, so that `drop` may replace its value."""
        return self._drops()

    def missing(self, example: Mapping[str, Any]) -> str | None:
        """Finds a key that the input needs and an example lacks.

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
        """Applies the dropout of training to a value that was made before.

        Args:
          value: Value made by the input of `held_out`, [...] without batch axis, or one
            computed from it.
          rng: NumPy generator; needed if anything is random.
          nothing: Replacement of a dropped value, like `value`; None for the input's
            own value of an empty condition.

        Returns:
          The value or its replacement, of the same shape [...].
        """
        return self._drop(value, rng, nothing)

    def held_out(self) -> "Input":
        """Makes the input for everything but training.

        Returns:
          The same without dropout.
        """
        return self._held_out()

    def is_truncated(self, example: Mapping[str, Any], value: Any) -> bool:
        """Returns whether the input truncated what the example holds.

        Args:
          example: Dict as `transforms.transform` makes it.
          value: Value made from it.

        Returns:
          Whether the value was truncated.
        """
        return self._is_truncated(example, value)

    def place(self, modality: str, value: Any) -> dict[str, Any]:
        """Stores a value of a modality under the keys that the input reads.

        Args:
          modality: Row of MODALITIES, of one of `ways`.
          value: Result of that row's `fit`.

        Returns:
          The part of an example that holds it.

        Raises:
          ValueError: If it exceeds what the input supports.
        """
        return self._place(modality, value)

    def size_for(
        self, modality: str, size: tuple[int, int], image_size: int
    ) -> tuple[int, int]:
        """Returns the size to which the value of a flag is cropped and resized.

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
          value: Value made by the input, without batch axis.

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
          value: Value made by the input, without batch axis.
          shape: (height, width) of the result in pixels.
          names: Names of the classes of boxes, if known.

        Returns:
          uint8 [height, width, 3]; None if the input cannot be drawn.
        """
        return self._draw(np.asarray(value), shape, names)

    # Methods that subclasses override.

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
    """Checks a condition on the arguments or values of an input.

    Args:
      condition: What must hold.
      message: The error's message.

    Raises:
      ValueError: If the condition is false.
    """
    if not condition:
        raise ValueError(message)
