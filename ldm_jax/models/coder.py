"""Encoder and decoder of the first stage (Esser et al. 2021, VQGAN, App. A)."""

from collections.abc import Sequence
from typing import Any

from flax import linen as nn

from ldm_jax.annotations import Array, Float
from ldm_jax.models.attention import AttentionBlock
from ldm_jax.models.layers import Downsample, GroupNorm, ResBlock, Upsample, conv


class _Coder(nn.Module):
    """Base class of encoder and decoder: their fields, and methods that make blocks.

    Attributes:
      channels: See `models.autoencoder.Autoencoder`, as for all of these.
      channel_mult: Width of every level over `channels`.
      num_res_blocks: ResBlocks per level of the encoder; the decoder has one more.
      attention_factors: Downsampling factors at which attention follows ResBlocks.
      mid_attention: Whether the middle has attention.
      conv_resample: Change resolution with a convolution.
      norm_groups: Groups of the norms.
      dropout: Dropout rate in ResBlocks.
      remat: Recompute activations in the backward pass.
      attention_kernel: Implementation of attention.
      dtype: Compute type.
    """

    channels: int
    channel_mult: Sequence[int]
    num_res_blocks: int
    attention_factors: Sequence[int]
    mid_attention: bool
    conv_resample: bool
    norm_groups: int
    dropout: float
    remat: bool
    attention_kernel: str
    dtype: Any

    def _res_block(self, name, features, x, train):
        make = nn.remat(ResBlock, static_argnums=(3,)) if self.remat else ResBlock
        block = make(
            features,
            norm_groups=self.norm_groups,
            epsilon=1e-6,
            dropout=self.dropout,
            dtype=self.dtype,
            name=name,
        )
        return block(x, None, train)

    def _attention(self, name, x):
        make = nn.remat(AttentionBlock) if self.remat else AttentionBlock
        return make(
            norm_groups=self.norm_groups,
            epsilon=1e-6,
            attention_kernel=self.attention_kernel,
            dtype=self.dtype,
            name=name,
        )(x)

    def _middle(self, x, train):
        x = self._res_block("middle_res_0", x.shape[-1], x, train)
        if self.mid_attention:
            x = self._attention("middle_attention", x)
        return self._res_block("middle_res_1", x.shape[-1], x, train)

    def _level(self, direction, level, num_blocks, x, train):
        for i in range(num_blocks):
            features = self.channels * self.channel_mult[level]
            x = self._res_block(f"{direction}_{level}_res_{i}", features, x, train)
            if 2**level in self.attention_factors:
                x = self._attention(f"{direction}_{level}_attention_{i}", x)
        return x

    def _norm_out(self, x):
        return GroupNorm(self.norm_groups, 1e-6, True, self.dtype, name="norm_out")(x)


class Encoder(_Coder):
    """Maps images to features of the latents' size.

    Attributes:
      out_channels: Channels of the features.
    """

    out_channels: int = 0

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], train: bool = False
    ) -> Float[Array, "batch h w features"]:
        """Applies the encoder.

        Args:
          x: Images [B, H, W, C].
          train: Whether dropout is on.

        Returns:
          [B, h, w, out_channels].
        """
        x = conv(self.channels, dtype=self.dtype, name="conv_in")(x)
        last = len(self.channel_mult) - 1
        for level in range(last + 1):
            x = self._level("down", level, self.num_res_blocks, x, train)
            if level != last:
                x = Downsample(
                    self.conv_resample,
                    padding=(0, 1),
                    dtype=self.dtype,
                    name=f"down_{level}_resample",
                )(x)
        x = self._norm_out(self._middle(x, train))
        return conv(self.out_channels, dtype=self.dtype, name="conv_out")(x)


class Decoder(_Coder):
    """Maps features of the latents' size to the input of the last convolution."""

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch h w features"], train: bool = False
    ) -> Float[Array, "batch height width channels"]:
        """Applies the decoder.

        Args:
          x: [B, h, w, z].
          train: Whether dropout is on.

        Returns:
          [B, H, W, channels].
        """
        width = self.channels * self.channel_mult[-1]
        x = conv(width, dtype=self.dtype, name="conv_in")(x)
        x = self._middle(x, train)
        for level in reversed(range(len(self.channel_mult))):
            x = self._level("up", level, self.num_res_blocks + 1, x, train)
            if level:
                x = Upsample(
                    self.conv_resample, dtype=self.dtype, name=f"up_{level}_resample"
                )(x)
        return self._norm_out(x)
