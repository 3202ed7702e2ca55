"""Attention: on feature maps, and in transformer blocks with a context.

Queries, keys and values have separate kernels in one layout everywhere: output channels
are head-major, [heads * head_channels].
"""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from ldm_jax.annotations import Array, Bool, Float
from ldm_jax.models.layers import GroupNorm, LayerNorm, dense
from ldm_jax.models.operations.dot_product import dot_product_attention
from ldm_jax.models.operations.geglu import geglu
from ldm_jax.models.operations.kernels import AUTO
from ldm_jax.models.operations.parameters import Initializer, kernel_init


class Attention(nn.Module):
    """Multi-head attention: self-attention, or cross-attention to a context.

    Vaswani et al. 2017, Sec. 3.2.2; with a context, the cross-attention of Rombach et
    al. 2022, Sec. 3.3.

    Attributes:
      num_heads: Heads.
      head_channels: Channels of one head; times `num_heads` it is the inner width.
      use_bias: Whether queries, keys and values have biases.
      kernel_init: Initialiser of the weights.
      zero_init: The output projection starts at zero.
      out_channels: Channels of the output; None for those of `x`.
      attention_kernel: Row of KERNELS (operations/kernels.py), or "auto".
      dtype: Compute type.
    """

    num_heads: int
    head_channels: int
    use_bias: bool = True
    kernel_init: Initializer = kernel_init
    zero_init: bool = False
    out_channels: int | None = None
    attention_kernel: str = AUTO
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch length channels"],
        context: Float[Array, "batch source width"] | None = None,
        mask: Bool[Array, "length source"] | None = None,
    ) -> Float[Array, "batch length out_channels"]:
        """Maps tokens to tokens.

        Args:
          x: [B, T, c], source of the queries.
          context: [B, S, d], source of keys and values; None for `x` itself.
          mask: Bool [T, S], whether a token of `x` attends to a token of the context,
            at least one for each; None if all attend to all.

        Returns:
          [B, T, out_channels or c].
        """
        context = x if context is None else context.astype(self.dtype)
        inner = self.num_heads * self.head_channels
        width = self.out_channels or x.shape[-1]
        made = dict(kernel_init=self.kernel_init, dtype=self.dtype)

        def project(name, inputs):
            return dense(inner, use_bias=self.use_bias, **made, name=name)(inputs)

        # The softmax of a single score is one, whatever queries and keys are: they are
        # then only computed to initialise their parameters.
        scored = context.shape[1] > 1 or self.is_initializing()
        if scored:
            query, key = project("query", x), project("key", context)
        value = project("value", context)
        out = dense(width, zero=self.zero_init, **made, name="out")
        if not scored:
            return jnp.broadcast_to(out(value), (*x.shape[:2], width))
        heads = (self._heads(y) for y in (query, key, value))
        y = dot_product_attention(*heads, mask, self.attention_kernel)
        return out(y.swapaxes(1, 2).reshape(*x.shape[:2], inner))

    def _heads(self, y):
        y = y.reshape(*y.shape[:2], self.num_heads, self.head_channels)
        return y.swapaxes(1, 2)


class AttentionBlock(nn.Module):
    """Self-attention over the pixels of a feature map, with norm and residual.

    Ho et al. 2020, App. B, whose U-Net has it at 16 x 16 pixels.

    Attributes:
      num_heads: Heads, a divisor of the channels.
      norm_groups: Groups of the norm; 0 for no norm.
      epsilon: Epsilon of the norm.
      kernel_init: Initialiser of the weights.
      zero_init: The output projection starts at zero.
      attention_kernel: See Attention.
      dtype: Compute type.
    """

    num_heads: int = 1
    norm_groups: int = 32
    epsilon: float = 1e-5
    kernel_init: Initializer = kernel_init
    zero_init: bool = False
    attention_kernel: str = AUTO
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch height width channels"]:
        """Applies self-attention to the pixels and adds the result.

        Args:
          x: [B, h, w, c].

        Returns:
          [B, h, w, c].
        """
        b, h, w, c = x.shape
        y = x
        if self.norm_groups:
            norm = GroupNorm(
                self.norm_groups, self.epsilon, dtype=self.dtype, name="norm"
            )
            y = norm(x)
        y = Attention(
            self.num_heads,
            c // self.num_heads,
            kernel_init=self.kernel_init,
            zero_init=self.zero_init,
            attention_kernel=self.attention_kernel,
            dtype=self.dtype,
            name="attention",
        )(y.reshape(b, h * w, c))
        return x + y.reshape(b, h, w, c)


class FeedForward(nn.Module):
    """Dense, exact GELU gate, dense (GEGLU, Shazeer 2020); inner width 4 times outer.

    Attributes:
      kernel_init: Initialiser of the weights.
      dtype: Compute type.
    """

    kernel_init: Initializer = kernel_init
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch length channels"]
    ) -> Float[Array, "batch length channels"]:
        """Maps each token on its own.

        Args:
          x: [B, T, c].

        Returns:
          [B, T, c].
        """
        c = x.shape[-1]
        made = dict(kernel_init=self.kernel_init, dtype=self.dtype)
        y = geglu(dense(8 * c, **made, name="proj_in")(x))
        return dense(c, **made, name="proj_out")(y)


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention to the context, feed-forward, all pre-norm.

    An embedding turns the norms into AdaLN-Zero (Peebles & Xie 2023, Sec. 3.2): it
    shifts and scales the input of each layer and gates its output. The gates start at
    zero, so the block starts as the identity.

    Attributes:
      num_heads: Heads.
      head_channels: Channels of one head.
      kernel_init: Initialiser of the weights.
      attention_kernel: See Attention.
      dtype: Compute type.
    """

    num_heads: int
    head_channels: int
    kernel_init: Initializer = kernel_init
    attention_kernel: str = AUTO
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch length channels"],
        context: Float[Array, "batch source width"] | None = None,
        embedding: Float[Array, "batch embedding_width"] | None = None,
    ) -> Float[Array, "batch length channels"]:
        """Maps tokens to tokens.

        Args:
          x: [B, T, c].
          context: None, or [B, S, d]. Without one, the cross-attention attends to x
            itself, as in CompVis; with an embedding it is left out, as in the block of
            Peebles & Xie.
          embedding: None, or [B, E], which modulates each layer.

        Returns:
          [B, T, c].
        """
        adaptive = embedding is not None
        made = dict(kernel_init=self.kernel_init, dtype=self.dtype)

        def add(x, name, layer):
            norm = LayerNorm(affine=not adaptive, dtype=self.dtype, name=f"norm_{name}")
            if not adaptive:
                return x + layer(norm(x))
            width, name = 3 * x.shape[-1], f"modulation_{name}"
            modulate = dense(width, zero=True, **made, name=name)
            modulation = modulate(nn.silu(embedding))[:, None]
            shift, scale, gate = jnp.split(modulation, 3, axis=-1)
            return x + gate * layer(norm(x) * (1 + scale) + shift)

        def attend(name):
            return Attention(
                self.num_heads,
                self.head_channels,
                use_bias=False,
                attention_kernel=self.attention_kernel,
                **made,
                name=name,
            )

        x = add(x, "self", attend("self_attention"))
        if context is not None or not adaptive:
            cross = attend("cross_attention")
            x = add(x, "cross", lambda y: cross(y, context))
        return add(x, "feed_forward", FeedForward(**made, name="feed_forward"))


class SpatialTransformer(nn.Module):
    """Transformer blocks over pixels of a feature map (Rombach et al. 2022, App. E).

    Attributes:
      num_heads: Heads.
      head_channels: Channels of one head; times `num_heads` it is the blocks' width.
      depth: Number of blocks.
      norm_groups: Groups of the norm.
      kernel_init: Initialiser of the weights.
      attention_kernel: See Attention.
      dtype: Compute type.
    """

    num_heads: int
    head_channels: int
    depth: int = 1
    norm_groups: int = 32
    kernel_init: Initializer = kernel_init
    attention_kernel: str = AUTO
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch height width channels"],
        context: Float[Array, "batch source context_width"] | None = None,
        embedding: Float[Array, "batch embedding_width"] | None = None,
    ) -> Float[Array, "batch height width channels"]:
        """Applies the blocks to the pixels as tokens and adds the result.

        Args:
          x: [B, h, w, c].
          context: None, or [B, S, d], as in TransformerBlock.
          embedding: None, or [B, E], as in TransformerBlock.

        Returns:
          [B, h, w, c].
        """
        b, h, w, c = x.shape
        inner = self.num_heads * self.head_channels
        made = dict(kernel_init=self.kernel_init, dtype=self.dtype)
        y = GroupNorm(self.norm_groups, 1e-6, dtype=self.dtype, name="norm")(x)
        y = dense(inner, **made, name="proj_in")(y.reshape(b, h * w, c))
        for i in range(self.depth):
            y = TransformerBlock(
                self.num_heads,
                self.head_channels,
                attention_kernel=self.attention_kernel,
                **made,
                name=f"block_{i}",
            )(y, context, embedding)
        y = dense(c, zero=True, **made, name="proj_out")(y)
        return x + y.reshape(b, h, w, c)
