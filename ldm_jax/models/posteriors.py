"""Posteriors: the distributions over an image's latents that encoders return."""

from typing import Any

import jax.numpy as jnp
from flax import struct

from ldm_jax import draws
from ldm_jax.annotations import Array, Float, Key

Latents = Float[Array, "batch h w c"]


@struct.dataclass
class DiagonalGaussian:
    """A Gaussian posterior with independent components.

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
          rng: Key, a scalar; not needed if `noise` is given.
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
        """Returns what must be stored to sample later.

        Returns:
          (mean, standard deviation), each [B, h, w, c].
        """
        return self.mean, jnp.exp(0.5 * self.logvar)

    def kl(self) -> Float[Array, " batch"]:
        """KL divergence from a standard normal (Kingma & Welling 2014, App. B).

        Returns:
          KL in nats per example, [B].
        """
        terms = jnp.square(self.mean) + jnp.exp(self.logvar) - 1.0 - self.logvar
        return 0.5 * jnp.sum(terms, axis=(1, 2, 3))

    def nll(self, latents: Latents) -> Float[Array, " batch"]:
        """Computes the negative log-likelihood, -log p(latents).

        Args:
          latents: [B, h, w, c].

        Returns:
          Nats per example, [B].
        """
        squares = jnp.square(latents - self.mean) * jnp.exp(-self.logvar)
        terms = jnp.log(2 * jnp.pi) + self.logvar + squares
        return 0.5 * jnp.sum(terms, axis=(1, 2, 3))


@struct.dataclass
class PointPosterior:
    """The posterior of a deterministic encoder: a single value.

    Attributes:
      latents: float32 [B, h, w, c].
    """

    latents: Any

    def sample(
        self, rng: Key[Array, ""] | None = None, noise: Latents | None = None
    ) -> Latents:
        """Returns the latents; nothing is random.

        Args:
          rng: Unused.
          noise: Unused, shaped like the latents.

        Returns:
          [B, h, w, c].
        """
        del rng, noise
        return self.latents

    def mode(self) -> Latents:
        """Returns the latents.

        Returns:
          [B, h, w, c].
        """
        return self.latents

    def moments(self) -> tuple[Latents, None]:
        """Returns what must be stored to sample later.

        Returns:
          (latents [B, h, w, c], None).
        """
        return self.latents, None


@struct.dataclass
class StoredPosterior:
    """A posterior restored from its stored moments.

    Attributes:
      mean: float32 [B, h, w, c].
      std: Standard deviation, float32 [B, h, w, c]; None of a deterministic encoder.
    """

    mean: Any
    std: Any = None

    def sample(
        self, rng: Key[Array, ""] | None = None, noise: Latents | None = None
    ) -> Latents:
        """Draws the same latents as the original posterior with the same key.

        Args:
          rng: Key, a scalar; not needed if `noise` is given.
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
