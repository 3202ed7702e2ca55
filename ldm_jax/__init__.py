"""Latent diffusion models (Rombach et al. 2022) in JAX and Flax."""

__version__ = "0.2.0"
