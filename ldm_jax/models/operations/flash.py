"""Attention with JAX's Pallas kernel for TPUs, which writes no scores to memory.

The kernel needs whole tiles: channels and tokens are padded with zeros, and padded
tokens are not attended to.
"""

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.flash_attention import (
    BlockSizes,
    SegmentIds,
    flash_attention,
)

from ldm_jax.annotations import Array, Float
from ldm_jax.models.operations.rows import mesh_in_sight, spec_of_rows

# Channels and tokens of a tile.
TILE = 128
# Tokens of a block, the largest that divides their number.
_BLOCKS = (512, 256, TILE)


def flash(
    query: Float[Array, "batch heads length channels"],
    key: Float[Array, "batch heads source channels"],
    value: Float[Array, "batch heads source channels"],
) -> Float[Array, "batch heads length channels"]:
    """Scaled dot-product attention (Dao et al. 2022, Alg. 1), softmax in float32.

    XLA cannot shard a Pallas kernel: if the program is traced under a mesh of several
    devices, see `sharding.on_mesh`, each device computes its rows of the batch, or the
    whole batch if it does not divide.

    Args:
      query: [B, heads, T, d].
      key: [B, heads, S, d].
      value: [B, heads, S, d].

    Returns:
      [B, heads, T, d] in the type of `query`.
    """
    mesh = mesh_in_sight()
    if mesh is None:
        return _kernel(query, key, value)
    rows = spec_of_rows(query.shape[0])
    split = jax.shard_map(
        _kernel, mesh=mesh, in_specs=(rows,) * 3, out_specs=rows, check_vma=False
    )
    return split(query, key, value)


def _kernel(query, key, value):
    length, width = query.shape[2:]
    source = key.shape[2]
    query, key, value = map(_filled, (query, key, value))
    segments = None
    if key.shape[2] > source:
        # Queries are in segment 0 and attend only to keys in it.
        filled = jnp.arange(key.shape[2]) >= source
        filled = jnp.broadcast_to(filled, (key.shape[0], key.shape[2]))
        queries = jnp.zeros(query.shape[::2], jnp.int32)
        segments = SegmentIds(queries, filled.astype(jnp.int32))
    blocks = _block_sizes(query.shape[2], key.shape[2])
    scale = width**-0.5
    out = flash_attention(
        query, key, value, None, segments, sm_scale=scale, block_sizes=blocks
    )
    return out[:, :, :length, :width]


def _filled(x):
    """`x` padded to whole tiles of tokens and of channels."""
    return jnp.pad(x, [(0, 0), (0, 0), *((0, -size % TILE) for size in x.shape[2:])])


def _block_sizes(length, source):
    rows, columns = (
        next(size for size in _BLOCKS if tokens % size == 0)
        for tokens in (length, source)
    )
    return BlockSizes(
        block_b=1,
        block_q=rows,
        block_k_major=columns,
        block_k=columns,
        block_q_major_dkv=rows,
        block_q_dkv=rows,
        block_k_major_dkv=columns,
        block_k_dkv=columns,
        block_q_dq=rows,
        block_k_major_dq=columns,
        block_k_dq=columns,
    )
