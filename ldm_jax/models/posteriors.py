"""What an encoder says of the latents of an image: distributions over them."""

from typing import Any

import jax.numpy as jnp
from flax import struct

from ldm_jax import draws
from ldm_jax.annotations import Array, Float, Key

Latents = Float[Array, "batch h w c"]


@struct.dataclass
class DiagonalGaussian:
    """A Gaussian posterior of independent latents.

    Attributes:
      mean: float32 [B, h, w, c].
      logvar: Log-variance, float32 [B, h, w, c].
    """

    mean: Any
    logvar: Any

    def sample(
        self, rng: Key[Array, ""] | None = None, noise: Latents | None = None
    ) -> Latents:
        """Draws latents.

        Args:
          rng: Key, a scalar; not needed where the noise is given.
          noise: Standard normal noise [B, h, w, c].

        Returns:
          [B, h, w, c].
        """
        if noise is None:
            noise = draws.normal(rng, self.mean.shape)
        return self.mean + jnp.exp(0.5 * self.logvar) * noise

    def mode(self) -> Latents:
        """Finds the most likely latents.

        Returns:
          [B, h, w, c].
        """
        return self.mean

    def moments(self) -> tuple[Latents, Latents]:
        """What is needed to sample later on.

        Returns:
          (mean, standard deviation), each [B, h, w, c].
        """
        return self.mean, jnp.exp(0.5 * self.logvar)

    def kl(self) -> Float[Array, " batch"]:
        """Divergence from a standard normal (Kingma & Welling 2014, App. B).

        Returns:
          Nats of each example, [B].
        """
        terms = jnp.square(self.mean) + jnp.exp(self.logvar) - 1.0 - self.logvar
        return 0.5 * jnp.sum(terms, axis=(1, 2, 3))

    def nll(self, latents: Latents) -> Float[Array, " batch"]:
        """Negative log-likelihood, -log p(latents).

        Args:
          latents: [B, h, w, c].

        Returns:
          Nats of each example, [B].
        """
        squares = jnp.square(latents - self.mean) * jnp.exp(-self.logvar)
        terms = jnp.log(2 * jnp.pi) + self.logvar + squares
        return 0.5 * jnp.sum(terms, axis=(1, 2, 3))


@struct.dataclass
class PointPosterior:
    """The posterior of an encoder that is certain: one value.

    Attributes:
      latents: float32 [B, h, w, c].
    """

    latents: Any

    def sample(
        self, rng: Key[Array, ""] | None = None, noise: Latents | None = None
    ) -> Latents:
        """Gives the latents; nothing is drawn.

        Args:
          rng: Unused.
          noise: Unused, shaped like the latents.

        Returns:
          [B, h, w, c].
        """
        del rng, noise
        return self.latents

    def mode(self) -> Latents:
        """Gives the latents.

        Returns:
          [B, h, w, c].
        """
        return self.latents

    def moments(self) -> tuple[Latents, None]:
        """What is needed to sample later on.

        Returns:
          (latents [B, h, w, c], None).
        """
        return self.latents, None


@struct.dataclass
class StoredPosterior:
    """A posterior from the moments that were stored of it.

    Attributes:
      mean: float32 [B, h, w, c].
      std: Standard deviation, float32 [B, h, w, c]; None of an encoder that is certain.
    """

    mean: Any
    std: Any = None

    def sample(
        self, rng: Key[Array, ""] | None = None, noise: Latents | None = None
    ) -> Latents:
        """Draws latents, those that the posterior itself draws with the same key.

        Args:
          rng: Key, a scalar; not needed where the noise is given.
          noise: Standard normal noise [B, h, w, c].

        Returns:
          [B, h, w, c].
        """
        if self.std is None:
            return self.mean
        if noise is None:
            noise = draws.normal(rng, self.mean.shape)
        return self.mean + self.std * noise

    def mode(self) -> Latents:
        """Finds the most likely latents.

        Returns:
          [B, h, w, c].
        """
        return self.mean
