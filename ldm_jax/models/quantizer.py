"""The codebook of a VQ autoencoder (van den Oord et al. 2017; Esser et al. 2021).

Everything a codebook is trained and judged by follows from which latents each code got:
how many (`counts`) and their sum (`sums`). They are matrix products over the global
batch, so no gradient scatters into the codebook and a step repeats to the bit.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

# Distances held at once over all devices: 1 GiB. More are computed row after row.
MAX_DISTANCES = 2**28


@struct.dataclass
class Quantized:
    """Latents replaced by codes, and what training the codebook takes.

    Attributes:
      latents: The codes, float32 [B, h, w, c]; their gradient passes to the latents
        before quantisation unchanged (straight-through).
      indices: Which codes, int32 [B, h, w].
      commitment: Mean squared distance to the codes; its gradient moves the latents.
      codebook: The same number; its gradient moves the codes.
      counts: How many latents each code got, float32 [num_codes].
      sums: Their sum, [num_codes, c].
    """

    latents: jax.Array
    indices: jax.Array
    commitment: jax.Array
    codebook: jax.Array
    counts: jax.Array
    sums: jax.Array


class VectorQuantizer(nn.Module):
    """Replaces latents by the nearest of `num_codes` learnt codes.

    Attributes:
      num_codes: Size of the codebook.
      features: Channels of the latents.
    """

    num_codes: int
    features: int

    def setup(self):
        shape = (self.num_codes, self.features)
        self.embedding = self.param("embedding", _uniform, shape)

    def __call__(self, latents, rng=None):
        """Quantises for training.

        Args:
          latents: float32 [B, h, w, features].
          rng: Unused; for rows that draw codes at random.

        Returns:
          Quantized.
        """
        del rng
        fixed = jax.lax.stop_gradient(latents)
        indices = self.indices(fixed)
        counts, sums = code_totals(fixed, indices, self.num_codes)
        codes = jax.lax.stop_gradient(self.lookup(indices))
        distance = jnp.mean(jnp.square(codes - latents))
        # The gradient of the mean of |e_k - z|^2 by e_k is that of this term.
        moves = counts[:, None] * jnp.square(self.embedding) - 2 * self.embedding * sums
        moves = jnp.sum(moves) / latents.size
        return Quantized(
            latents=codes + latents - fixed,
            indices=indices,
            commitment=distance,
            codebook=jax.lax.stop_gradient(distance - moves) + moves,
            counts=counts,
            sums=sums,
        )

    def indices(self, latents):
        """Returns the nearest codes of latents [B, h, w, c]: int32 [B, h, w]."""
        return nearest_codes(latents, self.embedding)

    def lookup(self, indices):
        """Returns the codes [..., c] of indices [...]."""
        return self.embedding[indices]


def nearest_codes(latents, codes):
    """Finds the nearest code of every latent; the first of equally near ones.

    Args:
      latents: [B, h, w, c].
      codes: [num_codes, c].

    Returns:
      int32 [B, h, w].
    """
    codes = codes.astype(jnp.float32)
    squares = jnp.sum(jnp.square(codes), axis=-1)

    def nearest(rows):
        # |z|^2 is the same for all codes. Products in less than float32 flip indices.
        products = jnp.einsum("bhwc,nc->bhwn", rows, codes, precision="highest")
        return jnp.argmin(squares - 2 * products, axis=-1).astype(jnp.int32)

    indices = _by_rows(nearest, len(codes), latents.astype(jnp.float32))
    b, h, w = latents.shape[:3]
    return jnp.moveaxis(indices, 0, 1).reshape(b, h, w)


def code_totals(latents, indices, num_codes):
    """Counts and sums the latents of every code.

    Args:
      latents: [B, h, w, c].
      indices: int32 [B, h, w].
      num_codes: Size of the codebook.

    Returns:
      (counts, sums): float32 [num_codes] and [num_codes, c].
    """

    def total(rows, indices):
        member = jax.nn.one_hot(indices, num_codes)
        sums = jnp.einsum("bhwn,bhwc->nc", member, rows, precision="highest")
        return jnp.sum(member, axis=(0, 1, 2)), sums

    totals = _by_rows(total, num_codes, latents.astype(jnp.float32), indices)
    return jax.tree.map(lambda blocks: jnp.sum(blocks, axis=0), totals)


def _by_rows(function, num_codes, *arrays):
    """Applies `function` to blocks of rows [B, r, w, ...], results stacked.

    Blocks are cut from the height: the batch, which lies across devices, stays whole.
    """
    b, h, w = arrays[0].shape[:3]
    fits = [r for r in range(1, h + 1) if b * r * w * num_codes <= MAX_DISTANCES]
    rows = max((r for r in fits if h % r == 0), default=1)
    blocks = [
        jnp.moveaxis(a.reshape(b, h // rows, rows, *a.shape[2:]), 1, 0) for a in arrays
    ]
    if rows == h:
        whole = function(*(block[0] for block in blocks))
        return jax.tree.map(lambda result: result[None], whole)
    return jax.lax.map(lambda block: function(*block), tuple(blocks))


def _uniform(rng, shape, dtype=jnp.float32):
    """Codes start in [-1, 1] / num_codes, as the original's."""
    limit = 1 / shape[0]
    return jax.random.uniform(rng, shape, dtype, -limit, limit)
