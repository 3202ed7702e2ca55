"""The denoiser: a U-Net with attention, conditioned in three ways.

Dhariwal & Nichol 2021 (ADM), with the transformer blocks of Rombach et al. 2022. A
condition enters as tokens for cross-attention (`context`), as channels concatenated to
the latents (`concat`), or added to the timestep embedding (`vector`). That embedding is
used in the ResBlocks, added or by AdaGN (`scale_shift_norm`), and optionally also in
the transformer blocks, by AdaLN-Zero (`adaln_zero`).
"""

from collections.abc import Sequence
from types import MappingProxyType
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from ldm_jax import ranges
from ldm_jax.annotations import Array, Float, Num
from ldm_jax.models.attention import AttentionBlock, SpatialTransformer
from ldm_jax.models.checks import check_groups, check_per_level
from ldm_jax.models.layers import (
    Downsample,
    GroupNorm,
    ResBlock,
    Upsample,
    conv,
    dense,
    timestep_embedding,
)
from ldm_jax.models.operations.join import join
from ldm_jax.models.operations.kernels import AUTO, check_kernel
from ldm_jax.models.operations.parameters import denoiser_init


class UNet(nn.Module):
    """Predicts the noise (or another target) in noisy latents.

    Fields marked "per level" take one value, or one per level from the finest to the
    coarsest.

    Attributes:
      out_channels: Channels of the output.
      channels: Width of the finest level, a multiple of `norm_groups`.
      channel_mult: Width of every level over `channels`.
      num_res_blocks: ResBlocks in the down path, per level; the up path has one more.
      attention_factors: Downsampling factors of the latents (1, 2, 4, ...) at which
        attention follows every ResBlock. The middle always has attention.
      num_heads: Heads, per level. Set this or `head_channels`; with both set a
        transformer's width is their product instead of the level's.
      head_channels: Channels of one head, per level.
      up_num_heads: Heads in the up path, per level, if they differ; not for
        transformers.
      transformer_depth: Transformer blocks in every attention, per level; required for
        a context; 0 is plain self-attention.
      scale_shift_norm: The timestep embedding scales and shifts norms instead of being
        added.
      adaln_zero: The timestep embedding, including a vector, modulates the layers of
        the transformer blocks, which start as the identity; see TransformerBlock.
      resblock_updown: Change resolution in ResBlocks.
      conv_resample: Change resolution with a convolution, not by repeating and pooling.
      norm_groups: Groups of the norms; narrow models need fewer than the published 32.
      middle_norm_groups: Groups of the norm before the middle's self-attention, if they
        differ; 0 for no norm, as in some U-Nets of diffusers. Not for transformers.
      dropout: Dropout rate in ResBlocks.
      remat: Recompute the blocks' activations in the backward pass to save memory.
      attention_kernel: Implementation of attention, a row of KERNELS
        (operations/kernels.py); "auto" to choose for each attention by the table there.
      dtype: Compute type; parameters, norms, softmax and the output are float32.
    """

    out_channels: int
    channels: int
    channel_mult: Sequence[int] = (1, 2, 4)
    num_res_blocks: int | Sequence[int] = 2
    attention_factors: Sequence[int] = ()
    num_heads: int | Sequence[int] | None = None
    head_channels: int | Sequence[int] | None = None
    up_num_heads: int | Sequence[int] | None = None
    transformer_depth: int | Sequence[int] = 0
    scale_shift_norm: bool = False
    adaln_zero: bool = False
    resblock_updown: bool = False
    conv_resample: bool = True
    norm_groups: int = 32
    middle_norm_groups: int | None = None
    dropout: float = 0.0
    remat: bool = False
    attention_kernel: str = AUTO
    dtype: Any = jnp.float32

    field_ranges = MappingProxyType(ranges.UNET)
    tiny = MappingProxyType(
        dict(
            channels=32,
            channel_mult=(1, 2),
            num_res_blocks=1,
            attention_factors=(),  # The middle always has attention.
            num_heads=None,
            head_channels=16,
            up_num_heads=None,
            transformer_depth=1,
            norm_groups=8,
            dtype="float32",
        )
    )

    def __post_init__(self):
        super().__post_init__()
        check_kernel(self.attention_kernel)
        fields = {name: getattr(self, name) for name in _PER_LEVEL}
        check_per_level(len(self.channel_mult), **fields)
        for level in range(len(self.channel_mult)):
            if self.attends_at(level):
                self.heads_at(level)
                self.heads_at(level, up=True)
        if self.middle_norm_groups is not None and self.depth_at(
            len(self.channel_mult) - 1
        ):
            raise ValueError(
                f"middle_norm_groups={self.middle_norm_groups} is of self-attention, "
                "but the middle has transformer blocks: leave it out"
            )
        if self.adaln_zero and not self._has_transformers():
            raise ValueError(
                "adaln_zero modulates transformer blocks and there are none: set "
                "transformer_depth to 1 or more"
            )

    @nn.nowrap
    def check_fields(self) -> None:
        """Checks fields that would otherwise fail when the network is called.

        Raises:
          ValueError: If widths do not divide into groups and heads.
        """
        check_groups(self.channels, self.channel_mult, self.norm_groups)
        # The middle, of the last level's width, always has attention.
        self.heads_at(len(self.channel_mult) - 1)

    @nn.compact
    def __call__(
        self,
        latents: Float[Array, "batch height width channels"],
        timesteps: Num[Array, " batch"],
        context: Float[Array, "batch tokens features"] | None = None,
        concat: Float[Array, "#batch map_height map_width maps"] | None = None,
        vector: Float[Array, "#batch embedding"] | None = None,
        *,
        train: bool = False,
    ) -> Float[Array, "batch height width out"]:
        """Applies the network.

        Args:
          latents: Noisy latents [B, h, w, c], in the scale of unit-variance latents.
          timesteps: [B]; 0 is the least noisy.
          context: None, or tokens [B, L, D].
          concat: None, or [B, h, w, c'], concatenated after the latents' channels; one
            pixel [B, 1, 1, c'] is broadcast.
          vector: None, or [B, 4 * channels], added to the timestep embedding.
          train: Whether dropout is on (rng "dropout").

        Returns:
          float32 [B, h, w, out_channels].

        Raises:
          ValueError: If the size does not halve evenly at every level, a context is
            given to a U-Net without transformer blocks, or a map or a vector has a
            wrong size.
        """
        self._check(latents, context, concat, vector)
        x = latents
        if concat is not None:
            concat = jnp.broadcast_to(concat, (*latents.shape[:-1], concat.shape[-1]))
            x = jnp.concatenate([latents, concat], axis=-1)
        condition = (self._embed(timesteps, vector), context, train)
        x, skips = self._encode(x, condition)
        for level in reversed(range(len(self.channel_mult))):
            for i in range(self.blocks_at(level) + 1):
                x = join(x, skips.pop())
                x = self._block(x, f"up_{level}_{{}}_{i}", level, condition, up=True)
            if level:
                x = self._resample(x, "up", level, condition)

        x = GroupNorm(self.norm_groups, silu=True, dtype=self.dtype, name="norm_out")(x)
        x = conv(self.out_channels, zero=True, **self.made, name="conv_out")(x)
        return x.astype(jnp.float32)

    def _encode(self, x, condition):
        """Applies the down path and the middle; returns (x, skip connections)."""
        x = conv(self.channels, **self.made, name="conv_in")(x)
        skips, last = [x], len(self.channel_mult) - 1
        for level in range(last + 1):
            for i in range(self.blocks_at(level)):
                x = self._block(x, f"down_{level}_{{}}_{i}", level, condition)
                skips.append(x)
            if level != last:
                x = self._resample(x, "down", level, condition)
                skips.append(x)
        x = self._res_block(x, "middle_res_0", last, condition)
        x = self._attention(x, "middle_attention", last, condition)
        return self._res_block(x, "middle_res_1", last, condition), skips

    def _embed(self, timesteps, vector):
        x = timestep_embedding(timesteps, self.channels)
        width = self.vector_width
        x = nn.silu(dense(width, **self.made, name="time_in")(x))
        x = dense(width, **self.made, name="time_out")(x)
        return x if vector is None else x + vector.astype(x.dtype)

    def _block(self, x, name, level, condition, up=False):
        x = self._res_block(x, name.format("res"), level, condition)
        if not self.attends_at(level):
            return x
        return self._attention(x, name.format("attention"), level, condition, up)

    def _res_block(self, x, name, level, condition, resample=None):
        make = nn.remat(ResBlock, static_argnums=(3,)) if self.remat else ResBlock
        embedding, _, train = condition
        return make(
            self.channels * self.channel_mult[level],
            norm_groups=self.norm_groups,
            dropout=self.dropout,
            scale_shift_norm=self.scale_shift_norm,
            resample=resample,
            zero_init=True,
            **self.made,
            name=name,
        )(x, embedding, train)

    def _attention(self, x, name, level, condition, up=False):
        num_heads, head_channels = self.heads_at(level, up)
        depth = self.depth_at(level)
        made = self.made | {"attention_kernel": self.attention_kernel}
        if not depth:
            make = nn.remat(AttentionBlock) if self.remat else AttentionBlock
            groups = self.norm_groups
            if name == "middle_attention" and self.middle_norm_groups is not None:
                groups = self.middle_norm_groups
            attend = make(num_heads, groups, zero_init=True, **made, name=name)
            return attend(x)
        embedding, context, _ = condition
        make = nn.remat(SpatialTransformer) if self.remat else SpatialTransformer
        return make(
            num_heads,
            head_channels,
            depth,
            self.norm_groups,
            **made,
            name=name,
        )(x, context, embedding if self.adaln_zero else None)

    def _resample(self, x, direction, level, condition):
        name = f"{direction}_{level}_resample"
        if self.resblock_updown:
            return self._res_block(x, name, level, condition, direction)
        make = {"down": Downsample, "up": Upsample}[direction]
        return make(self.conv_resample, **self.made, name=name)(x)

    @property
    def made(self) -> dict[str, Any]:
        """Arguments common to all layers: initialiser and compute type."""
        return dict(kernel_init=denoiser_init, dtype=self.dtype)

    @property
    def size_multiple(self) -> int:
        """Divisor that height and width of the latents must have, to halve evenly."""
        return 2 ** (len(self.channel_mult) - 1)

    @property
    def vector_width(self) -> int:
        """Width of a vector condition, which is that of the timestep embedding."""
        return 4 * self.channels

    @nn.nowrap
    def identity(self) -> dict[str, Any]:
        """Returns the settings that the weights depend on beyond their shapes.

        Returns:
          Dict with "heads" and "up_heads", the (heads, channels of one head) of each
          attention in the down path, the middle last, and in the up path, with
          "norm_groups", and with "middle_norm_groups" if set.
        """
        levels = range(len(self.channel_mult))
        attending = [level for level in levels if self.attends_at(level)]
        # The middle, of the last level's width, always has attention.
        down = [self.heads_at(level) for level in (*attending, levels[-1])]
        up = [self.heads_at(level, up=True) for level in attending]
        found = {"heads": down, "up_heads": up, "norm_groups": self.norm_groups}
        if self.middle_norm_groups is not None:
            found["middle_norm_groups"] = self.middle_norm_groups
        return found

    @nn.nowrap
    def blocks_at(self, level: int) -> int:
        """Returns the number of ResBlocks of a level.

        Args:
          level: Index of the level, 0 is the finest.

        Returns:
          Their number in the down path; the up path has one more.
        """
        return _at(self.num_res_blocks, level)

    @nn.nowrap
    def depth_at(self, level: int) -> int:
        """Returns the number of transformer blocks of a level's attentions.

        Args:
          level: Index of the level.

        Returns:
          Their number; 0 is plain self-attention.
        """
        return _at(self.transformer_depth, level)

    @nn.nowrap
    def attends_at(self, level: int) -> bool:
        """Returns whether attention follows the ResBlocks of a level.

        Args:
          level: Index of the level.

        Returns:
          Whether it does.
        """
        return 2**level in self.attention_factors

    @nn.nowrap
    def heads_at(self, level: int, up: bool = False) -> tuple[int, int]:
        """Returns the number and size of the heads of a level's attentions.

        Args:
          level: Index of the level.
          up: Whether in the up path.

        Returns:
          (heads, channels of one head).

        Raises:
          ValueError: If neither is set, or they do not make up the level's width.
        """
        width = self.channels * self.channel_mult[level]
        num_heads = _at(self.num_heads, level)
        head_channels = _at(self.head_channels, level)
        if up and self.up_num_heads is not None:
            num_heads = _at(self.up_num_heads, level)
        if num_heads is None and head_channels is None:
            raise ValueError("set num_heads or head_channels: heads are never guessed")
        both = num_heads is not None and head_channels is not None
        num_heads = num_heads or width // head_channels
        head_channels = head_channels or width // num_heads
        free = both and self.depth_at(level)
        if num_heads * head_channels != width and not free:
            raise ValueError(
                f"{num_heads} heads of {head_channels} channels do not make up the "
                f"{width} channels of level {level}: change num_heads or head_channels"
            )
        return num_heads, head_channels

    @nn.nowrap
    def _has_transformers(self):
        """Whether any attention, the middle's included, has transformer blocks."""
        levels = range(len(self.channel_mult))
        attending = filter(self.attends_at, levels)
        return any(map(self.depth_at, (*attending, levels[-1])))

    @nn.nowrap
    def _check(self, latents, context, concat, vector):
        height, width = latents.shape[1:3]
        factor = self.size_multiple
        if height % factor or width % factor:
            raise ValueError(
                f"latents of {height} x {width} do not halve evenly at "
                f"{len(self.channel_mult)} levels: both must be multiples of {factor}"
            )
        if context is not None and not self._has_transformers():
            raise ValueError(
                "a context needs transformer blocks to attend to it: set "
                "transformer_depth to 1 or more"
            )
        if concat is not None and concat.shape[1:3] not in ((1, 1), (height, width)):
            raise ValueError(
                f"maps of {concat.shape[1]} x {concat.shape[2]} do not lie beside "
                f"latents of {height} x {width}: change the size of what is given in "
                "the slot 'concat'"
            )
        if vector is not None and vector.shape[-1] != self.vector_width:
            raise ValueError(
                f"a vector of {vector.shape[-1]} cannot be added to the timestep "
                f"embedding of {self.vector_width}: set the condition's features to it"
            )


# Fields that may have a value for each level.
_PER_LEVEL = (
    *("num_res_blocks", "num_heads", "head_channels", "up_num_heads"),
    "transformer_depth",
)


def _at(value, level):
    """The value of a per-level field at a level."""
    return value[level] if isinstance(value, list | tuple) else value
