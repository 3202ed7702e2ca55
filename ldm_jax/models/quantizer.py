"""The codebook of a VQ autoencoder (van den Oord et al. 2017; Esser et al. 2021).

Training and metrics of a codebook need only the number (`counts`) and the sum (`sums`)
of the latents that each code was assigned. They are matrix products over the global
batch: no gradient scatters into the codebook, and steps are reproducible bit for bit.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from ldm_jax import draws
from ldm_jax.annotations import Array, Float, Int, Key, Num

Latents = Float[Array, "batch h w c"]
Indices = Int[Array, "batch h w"]

# Distances in memory at once, over all devices: 1 GiB. More are computed in blocks of
# rows.
MAX_DISTANCES = 2**28


@struct.dataclass
class Quantized:
    """Quantised latents, and what training needs.

    Attributes:
      latents: The codes, float32 [B, h, w, c]; their gradient passes to the latents
        before quantisation (straight-through).
      indices: Indices of the codes, int32 [B, h, w].
      losses: Dict of name -> scalar: "commitment" and "codebook", or "divergence".
      encoded: The latents before quantisation, without gradient.
      counts: Number of latents assigned to each code, float32 [num_codes].
      sums: Their sum, [num_codes, c].
    """

    latents: Any
    indices: Any
    losses: dict
    encoded: Any
    counts: Any
    sums: Any


class VectorQuantizer(nn.Module):
    """Replaces latents by the nearest of `num_codes` learnt codes.

    Attributes:
      num_codes: Size of the codebook.
      features: Channels of the latents.
    """

    num_codes: int
    features: int

    # Whether a code may be set to a latent, or to the mean of several.
    is_among_latents = True

    def setup(self) -> None:
        """Makes the codebook."""
        shape = (self.num_codes, self.features)
        self.embedding = self.param("embedding", _uniform, shape)

    def project(self, latents: Float[Array, "*shape c"]) -> Float[Array, "*shape c"]:
        """Projects latents to the space of the codes; here the identity.

        Args:
          latents: [..., c].

        Returns:
          [..., c].
        """
        return latents

    def codes(self) -> Float[Array, "num_codes c"]:
        """Returns the codebook.

        Returns:
          float32 [num_codes, c].
        """
        return self.project(self.embedding)

    def __call__(
        self,
        latents: Latents,
        rng: Key[Array, ""] | None = None,
        temperature: float | Float[Array, ""] = 1.0,
    ) -> Quantized:
        """Quantises for training.

        Args:
          latents: float32 [B, h, w, features], projected.
          rng: Unused; for quantisers that sample codes.
          temperature: Unused, likewise.

        Returns:
          Quantized. Both losses are the mean squared distance to the codes; the
          gradient of "commitment" moves the latents, that of "codebook" the codes.
        """
        del rng, temperature
        fixed, codes = jax.lax.stop_gradient(latents), self.codes()
        indices = nearest_codes(fixed, codes)
        counts, sums = code_totals(fixed, indices, self.num_codes)
        chosen = jax.lax.stop_gradient(codes)[indices]
        distance = jnp.mean(jnp.square(chosen - latents))
        # This term has the same gradient with respect to the codes as the distance.
        pull = jnp.sum(counts[:, None] * jnp.square(codes) - 2 * codes * sums)
        return Quantized(
            latents=chosen + (latents - fixed),
            indices=indices,
            losses={
                "commitment": distance,
                "codebook": _with_gradient_of(distance, pull / latents.size),
            },
            encoded=fixed,
            counts=counts,
            sums=sums,
        )

    def indices(self, latents: Latents) -> Indices:
        """Finds the indices of the codes of latents.

        Args:
          latents: [B, h, w, c].

        Returns:
          int32 [B, h, w].
        """
        return nearest_codes(latents, self.codes())

    def lookup(self, indices: Int[Array, "*shape"]) -> Float[Array, "*shape c"]:
        """Looks codes up.

        Args:
          indices: int32 [...].

        Returns:
          [..., c].
        """
        return self.codes()[indices]


class CosineQuantizer(VectorQuantizer):
    """Codes and latents on the unit sphere (Yu et al. 2022, ViT-VQGAN, Sec. 3.2).

    Only the direction matters, so no code is out of reach because of its length; few
    channels suffice for many codes.
    """

    def project(self, latents: Float[Array, "*shape c"]) -> Float[Array, "*shape c"]:
        """Projects latents to the unit sphere.

        Args:
          latents: [..., c].

        Returns:
          [..., c].
        """
        squares = jnp.sum(jnp.square(latents), axis=-1, keepdims=True)
        return latents * jax.lax.rsqrt(squares + 1e-12)


class GumbelQuantizer(VectorQuantizer):
    """Samples codes from a distribution predicted from the latents (Jang et al. 2017).

    The sample is hard, with the gradient of the softmax at `temperature`; the loss
    "divergence" is the KL divergence of the distribution from uniform (Ramesh et al.
    2021).
    """

    is_among_latents = False

    def setup(self) -> None:
        """Makes the codebook and the layer that predicts the logits of codes."""
        super().setup()
        self.to_logits = nn.Dense(self.num_codes, precision="highest")

    def __call__(
        self,
        latents: Latents,
        rng: Key[Array, ""] | None = None,
        temperature: float | Float[Array, ""] = 1.0,
    ) -> Quantized:
        """Quantises for training.

        Args:
          latents: float32 [B, h, w, features].
          rng: Key of the sample; None for the most likely codes.
          temperature: Temperature of the softmax, positive.

        Returns:
          Quantized.
        """
        logits = self.to_logits(latents)
        probabilities = jax.nn.softmax(logits)
        terms = probabilities * jnp.log(probabilities * self.num_codes + 1e-10)
        if rng is not None:
            logits = logits + draws.gumbel(rng, logits.shape)
        soft = jax.nn.softmax(logits / temperature)
        indices = jnp.argmax(logits, axis=-1).astype(jnp.int32)
        drawn = _with_gradient_of(jax.nn.one_hot(indices, self.num_codes), soft)
        fixed = jax.lax.stop_gradient(latents)
        counts, sums = code_totals(fixed, indices, self.num_codes)
        return Quantized(
            latents=jnp.matmul(drawn, self.codes(), precision="highest"),
            indices=indices,
            losses={"divergence": jnp.mean(jnp.sum(terms, axis=-1))},
            encoded=fixed,
            counts=counts,
            sums=sums,
        )

    def indices(self, latents: Latents) -> Indices:
        """Finds the most likely codes of latents.

        Args:
          latents: [B, h, w, c].

        Returns:
          int32 [B, h, w].
        """
        return jnp.argmax(self.to_logits(latents), axis=-1).astype(jnp.int32)


def nearest_codes(latents: Latents, codes: Float[Array, "num_codes c"]) -> Indices:
    """Finds the nearest code of every latent; of equally near codes the first.

    Args:
      latents: [B, h, w, c].
      codes: [num_codes, c].

    Returns:
      int32 [B, h, w].
    """
    codes = codes.astype(jnp.float32)
    squares = jnp.sum(jnp.square(codes), axis=-1)[None, None, None]

    def nearest(rows):
        # |z|^2 is the same for all codes. With products in less than float32, indices
        # would change.
        products = jnp.einsum("bhwc,nc->bhwn", rows, codes, precision="highest")
        return jnp.argmin(squares - 2 * products, axis=-1).astype(jnp.int32)

    indices = _by_rows(nearest, len(codes), latents.astype(jnp.float32))
    b, h, w = latents.shape[:3]
    return jnp.moveaxis(indices, 0, 1).reshape(b, h, w)


def code_totals(
    latents: Latents, indices: Indices, num_codes: int
) -> tuple[Float[Array, " {num_codes}"], Float[Array, "{num_codes} c"]]:
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
    """Applies `function` to blocks of rows [B, r, w, ...] and stacks the results.

    Blocks are cut along the height: the batch, which is split over devices, is not cut.
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
    """Codes start in [-1, 1] / num_codes, as in CompVis."""
    limit = 1 / shape[0]
    return jax.random.uniform(rng, shape, dtype, -limit, limit)


def _with_gradient_of(value, surrogate):
    """Returns `value` with the gradient of `surrogate`."""
    return jax.lax.stop_gradient(value) + (surrogate - jax.lax.stop_gradient(surrogate))


# Quantisers by the name that configs use.
QUANTIZERS = {
    "nearest": VectorQuantizer,
    "cosine": CosineQuantizer,
    "gumbel": GumbelQuantizer,
}


def fractions_of_codes(
    indices: Indices, num_codes: int
) -> Float[Array, "batch {num_codes}"]:
    """Computes the fraction of an image's latents that each code was assigned.

    Args:
      indices: int32 [B, h, w].
      num_codes: Size of the codebook.

    Returns:
      float32 [B, num_codes].
    """
    rows = indices.reshape(len(indices), -1)
    count = lambda row: jnp.zeros(num_codes).at[row].add(1.0)  # noqa: E731
    return jax.vmap(count)(rows) / rows.shape[1]


def codebook_metrics(counts: Num[Array, " num_codes"]) -> dict[str, Float[Array, ""]]:
    """Computes usage and perplexity of a codebook.

    Args:
      counts: How often each code is used, absolute or as a fraction, [num_codes].

    Returns:
      Dict of scalars: "codebook_usage", the fraction of codes that are used at all, and
      "codebook_perplexity", exp of the entropy of their use: at most num_codes.
    """
    fractions = counts / jnp.sum(counts)
    entropy = -jnp.sum(jax.scipy.special.xlogy(fractions, fractions))
    return {
        "codebook_usage": jnp.mean(counts > 0),
        "codebook_perplexity": jnp.exp(entropy),
    }
