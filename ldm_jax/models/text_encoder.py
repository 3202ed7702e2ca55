"""The transformer that turns token ids into a context, for captions and layouts.

The same pre-norm transformer implements two families, which differ in a few fields:

- the text and layout encoders of Rombach et al. 2022 (App. E.2.1), trained jointly with
  the denoiser: every token attends to every other, 8 heads of 64 channels whatever the
  width, queries, keys and values without biases. These are the defaults.
- the text tower of CLIP (Radford et al. 2021, Sec. 2.4), used frozen: causal, with
  biases, and heads that add up to the width.

Neither masks padding.
"""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from ldm_jax.annotations import Array, Bool, Float, Int
from ldm_jax.models.attention import Attention
from ldm_jax.models.layers import LayerNorm, dense
from ldm_jax.models.operations.geglu import gelu
from ldm_jax.models.operations.parameters import Embed, param

embedding_init = nn.initializers.normal(0.02)


class TextEncoder(nn.Module):
    """Maps token ids to one vector per token.

    Stable Diffusion 2 uses the penultimate layer of its CLIP tower, with the final norm
    applied: that is a tower with one layer less.

    Attributes:
      vocab_size: Number of token ids.
      features: Width of the transformer and of its output.
      num_layers: Number of blocks.
      max_length: Maximum number of tokens of an input.
      num_heads: Heads.
      head_channels: Channels of one head.
      use_bias: Whether queries, keys and values have biases.
      causal: Whether a token attends only to itself and those before it.
      mlp_ratio: Width inside the feed-forward layers over `features`.
      activation: Activation of the feed-forward layers, a row of ACTIVATIONS.
      remat: Recompute the blocks' activations in the backward pass to save memory.
      dtype: Compute type; parameters, norms and softmax are float32.
    """

    vocab_size: int
    features: int
    num_layers: int
    max_length: int = 77
    num_heads: int = 8
    head_channels: int = 64
    use_bias: bool = False
    causal: bool = False
    mlp_ratio: int = 4
    activation: str = "gelu"
    remat: bool = False
    dtype: Any = jnp.float32

    def __post_init__(self):
        super().__post_init__()
        if self.activation not in ACTIVATIONS:
            raise ValueError(
                f"unknown activation {self.activation!r}: choose one of "
                f"{', '.join(ACTIVATIONS)}"
            )

    @nn.compact
    def __call__(
        self, ids: Int[Array, "batch length"]
    ) -> Float[Array, "batch length {self.features}"]:
        """Encodes tokens.

        Args:
          ids: Integers [B, L] in [0, vocab_size), L at most `max_length`.

        Returns:
          [B, L, features] in `dtype`, after the final norm.

        Raises:
          ValueError: If L is larger than `max_length`.
        """
        length = ids.shape[1]
        self.check_length(length)
        shape = self.max_length, self.features
        positions = param(self, "positions", embedding_init, shape)
        x = Embed(
            self.vocab_size,
            self.features,
            embedding_init=embedding_init,
            dtype=self.dtype,
            name="tokens",
        )(ids)
        x = x + positions[None, :length].astype(self.dtype)
        mask = jnp.tril(jnp.ones((length, length), bool)) if self.causal else None
        make = nn.remat(EncoderBlock) if self.remat else EncoderBlock
        for i in range(self.num_layers):
            x = make(
                self.num_heads,
                self.head_channels,
                self.use_bias,
                self.mlp_ratio,
                self.activation,
                self.dtype,
                name=f"block_{i}",
            )(x, mask)
        return LayerNorm(dtype=self.dtype, name="norm_out")(x)

    @nn.nowrap
    def check_length(self, length: int) -> None:
        """Checks the number of tokens of an input.

        Args:
          length: Number of tokens.

        Raises:
          ValueError: If there are more than `max_length`.
        """
        if length > self.max_length:
            raise ValueError(
                f"{length} tokens are more than max_length={self.max_length}: cut them "
                "or raise max_length"
            )


class EncoderBlock(nn.Module):
    """A pre-norm transformer block (Radford et al. 2019, Sec. 2.3).

    Self-attention and a feed-forward layer, for tokens of texts and of images.

    Attributes:
      num_heads: Heads.
      head_channels: Channels of one head.
      use_bias: Whether queries, keys and values have biases.
      mlp_ratio: Width inside the feed-forward layer over that of the tokens.
      activation: Activation of the feed-forward layer, a row of ACTIVATIONS.
      dtype: Compute type.
      epsilon: Epsilon of the norms.
    """

    num_heads: int
    head_channels: int
    use_bias: bool = False
    mlp_ratio: int = 4
    activation: str = "gelu"
    dtype: Any = jnp.float32
    epsilon: float = 1e-5

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch length channels"],
        mask: Bool[Array, "length length"] | None = None,
    ) -> Float[Array, "batch length channels"]:
        """Maps tokens to tokens.

        Args:
          x: [B, T, c].
          mask: Bool [T, T], whether a token attends to another, as in Attention; None
            if all attend to all.

        Returns:
          [B, T, c].
        """
        made = dict(epsilon=self.epsilon, dtype=self.dtype)
        y = LayerNorm(**made, name="norm_attention")(x)
        x = x + Attention(
            self.num_heads,
            self.head_channels,
            use_bias=self.use_bias,
            dtype=self.dtype,
            name="attention",
        )(y, mask=mask)
        y = LayerNorm(**made, name="norm_feed_forward")(x)
        width = x.shape[-1]
        y = dense(self.mlp_ratio * width, dtype=self.dtype, name="proj_in")(y)
        y = ACTIVATIONS[self.activation](y)
        return x + dense(width, dtype=self.dtype, name="proj_out")(y)


# "gelu" is exact (Hendrycks & Gimpel 2016); "quick_gelu" is an approximation of the
# same paper, which OpenAI's CLIP weights were trained with.
ACTIVATIONS = {
    "gelu": gelu,
    "quick_gelu": lambda x: x * nn.sigmoid(1.702 * x),
}
