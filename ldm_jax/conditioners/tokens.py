"""Conditioning on token ids: captions and layouts."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from ldm_jax.annotations import Array, Float, Int, Num
from ldm_jax.models.text_encoder import TextEncoder


class States(NamedTuple):
    """Stored outputs of a frozen text tower, instead of the captions' token ids.

    Attributes:
      values: Its outputs for the captions, [B, L, D].
      null: Its output for the empty caption, [B, L, D].
    """

    values: Any
    null: Any


class Tokens(TextEncoder):
    """Base class of this file's conditioners; fields as in TextEncoder, and `slot`.

    Attributes:
      slot: "context".
    """

    slot: str = "context"

    slots = ("context",)
    from_input = ("vocab_size", "max_length")

    @nn.nowrap
    def check(self, ids: ArrayLike) -> None:
        """Checks token ids on the host.

        Args:
          ids: Array or nested lists.

        Raises:
          ValueError: If they are not integers [B, L] in [0, vocab_size), L at most
            `max_length`.
        """
        ids = np.asarray(ids)
        if ids.ndim != 2 or not np.issubdtype(ids.dtype, np.integer):
            raise ValueError(
                f"token ids must be integers [B, L], got {ids.dtype} {ids.shape}: "
                "tokenize the text first"
            )
        self.check_length(ids.shape[1])
        wrong = ids[(ids < 0) | (ids >= self.vocab_size)]
        if wrong.size:
            raise ValueError(
                f"token id {wrong[0]} is out of range: vocab_size is "
                f"{self.vocab_size}, so use the tokenizer that the model was trained "
                "with"
            )


class Text(Tokens):
    """Captions through a transformer; fields as in Tokens, and these.

    The paper trains one from scratch, together with the denoiser, on the ids of BERT's
    tokenizer (App. E.2.1): `bert-base-uncased`, vocab_size 30522, 77 tokens.

    Attributes:
      null_ids: First ids of the empty caption; the last one is repeated. The default is
        for `bert-base-uncased`.
      frozen: Whether training leaves the parameters unchanged.
    """

    null_ids: Sequence[int] = (101, 102, 0)
    frozen: bool = False

    from_input = ("vocab_size", "max_length", "null_ids")
    input_kind = "caption"
    tower_name = ""  # The conditioner itself is the tower.

    def __call__(
        self,
        ids: Int[Array, "batch length"] | Num[Array, "batch length width"] | States,
    ) -> Float[Array, "batch length {self.features}"]:
        """Encodes tokens, or returns stored outputs of the tower.

        Args:
          ids: Integers [B, L]; or `States`, or only the values of States, which need no
            parameters.

        Returns:
          [B, L, features] in `dtype`.

        Raises:
          ValueError: See TextEncoder.
        """
        states = ids.values if isinstance(ids, States) else ids
        return states.astype(self.dtype) if states.ndim == 3 else super().__call__(ids)

    @nn.nowrap
    def check(self, ids: ArrayLike) -> None:
        """Checks token ids, or stored outputs of the tower, on the host.

        Args:
          ids: Array or nested lists.

        Raises:
          ValueError: If they are neither token ids, see Tokens, nor outputs of the
            tower, [B, L, features].
        """
        if np.ndim(ids) != 3:
            super().check(ids)
            return
        self.check_length(np.shape(ids)[1])
        if np.shape(ids)[2] != self.features:
            raise ValueError(
                f"text states are {np.shape(ids)[2]} wide, and those of this tower "
                f"{self.features}: encode the data with the tower of the config"
            )

    def __post_init__(self):
        super().__post_init__()
        known = all(0 <= i < self.vocab_size for i in self.null_ids)
        if not self.null_ids or not known:
            raise ValueError(
                f"null_ids {tuple(self.null_ids)} must be ids in [0, {self.vocab_size})"
                ": give those of the empty caption"
            )

    @nn.nowrap
    def tower(self) -> TextEncoder:
        """Returns the transformer, whose weights can be pretrained elsewhere.

        Returns:
          This module.
        """
        return self

    @nn.nowrap
    def null(
        self,
        ids: Int[Array, "batch length"] | Num[Array, "batch length width"] | States,
    ) -> Int[Array, "batch length"] | States:
        """Returns the empty caption.

        Args:
          ids: Integers [B, L], or States; only the values of States, [B, L, D], are not
            enough.

        Returns:
          Integers [B, L] in the type of `ids`; for States their null.

        Raises:
          ValueError: If `ids` are the values of States, without their null.
        """
        if isinstance(ids, States):
            return States(ids.null, ids.null)
        if ids.ndim == 3:
            raise ValueError("text states come without those of the empty caption")
        length = ids.shape[1]
        caption = (*self.null_ids, *self.null_ids[-1:] * length)[:length]
        return jnp.broadcast_to(jnp.asarray(caption, ids.dtype), ids.shape)


class ClipText(Text):
    """Captions through CLIP's text tower, frozen; fields as in Text.

    The defaults are the ViT-L/14 of Stable Diffusion 1. Stable Diffusion 2 uses
    OpenCLIP's ViT-H/14 up to the penultimate of its 24 layers: features=1024,
    num_layers=23, num_heads=16, activation="gelu", null_ids=(49406, 49407, 0).
    """

    vocab_size: int = 49408
    features: int = 768
    num_layers: int = 12
    num_heads: int = 12
    use_bias: bool = True
    causal: bool = True
    activation: str = "quick_gelu"
    null_ids: Sequence[int] = (49406, 49407)
    frozen: bool = True


class LayoutTokens(Tokens):
    """Boxes as tokens through a transformer; fields as in Tokens.

    The paper encodes a layout as up to 30 objects of three tokens, the class and two
    corners on a grid, and two tokens for the crop (Table 17). The last id of the
    vocabulary pads absent objects; the null layout consists only of it.
    """

    max_length: int = 92

    input_kind = "layout"

    @nn.nowrap
    def null(self, ids: Int[Array, "batch length"]) -> Int[Array, "batch length"]:
        """Returns the layout without objects.

        Args:
          ids: Integers [B, L].

        Returns:
          Integers [B, L] in the type of `ids`.
        """
        return jnp.full_like(ids, self.vocab_size - 1)
