"""Attention by JAX's Pallas kernel for TPUs, which writes no scores to memory.

The kernel takes whole tiles: what is short of one is filled up with zeros, in channels
as they are, in tokens so that nothing attends to them.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.experimental.custom_partitioning import custom_partitioning
from jax.experimental.pallas.ops.tpu.flash_attention import (
    BlockSizes,
    SegmentIds,
    flash_attention,
)
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from ldm_jax.annotations import Array, Float

# Channels and tokens of a tile.
TILE = 128
# Tokens of a block, the largest that divides their number.
_BLOCKS = (512, 256, TILE)


@jax.custom_vjp
def flash(
    query: Float[Array, "batch heads length channels"],
    key: Float[Array, "batch heads source channels"],
    value: Float[Array, "batch heads source channels"],
) -> Float[Array, "batch heads length channels"]:
    """Scaled dot-product attention (Dao et al. 2022, Alg. 1), softmax in float32.

    Split batches and heads stay on their devices. For the backward pass the arguments
    alone are kept; it runs the kernel once more, for sums that JAX's function keeps to
    itself.

    Args:
      query: [B, heads, T, d].
      key: [B, heads, S, d].
      value: [B, heads, S, d].

    Returns:
      [B, heads, T, d] in the type of `query`.
    """
    return _forward(query, key, value)[0]


def _forward(query, key, value):
    return _split_kernel(query, key, value), (query, key, value)


def _backward(kept, gradient):
    return _split_gradient(*kept, gradient)


flash.defvjp(_forward, _backward)


def _kernel(query, key, value):
    length, width = query.shape[2:]
    source = key.shape[2]
    query, key, value = map(_filled, (query, key, value))
    segments = None
    if key.shape[2] > source:
        # Queries are of segment 0 and attend to keys of it.
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


def _gradient(query, key, value, gradient):
    return jax.vjp(_kernel, query, key, value)[1](gradient)


def _filled(x):
    """`x` with whole tiles of tokens and of channels."""
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


def split_rows(function: Callable, rule: str) -> Callable:
    """Lets each device compute the rows and heads that it has.

    Compilers do not see into kernels, and would collect all rows on every device.

    Args:
      function: Of arrays [B, heads, tokens, channels], to one such or to several.
      rule: Its axes as those of `jnp.einsum`, "b" and "h" first in each array, tokens
        "t" or "s", channels "d".

    Returns:
      The same function of global arrays.
    """
    split = custom_partitioning(function)

    def rows_of(mesh, arguments):
        spec = [*arguments[0].sharding.spec, None, None][:2]
        return NamedSharding(mesh, P(*spec, None, None))

    def infer(mesh, arguments, results):
        rows = rows_of(mesh, arguments)
        return jax.tree.map(lambda _: rows, results)

    def partition(mesh, arguments, results):
        return (
            mesh,
            function,
            infer(mesh, arguments, results),
            (rows_of(mesh, arguments),) * len(arguments),
        )

    split.def_partition(
        partition,
        infer_sharding_from_operands=infer,
        sharding_rule=rule,
        need_replication_factors=("t", "s", "d"),
    )
    return split


_ARGUMENTS = "b h t d, b h s d, b h s d"
_split_kernel = split_rows(_kernel, f"{_ARGUMENTS} -> b h t d")
_split_gradient = split_rows(_gradient, f"{_ARGUMENTS}, b h t d -> {_ARGUMENTS}")
