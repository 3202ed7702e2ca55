"""A classifier of noisy latents for classifier guidance: the model and its loss.

Dhariwal & Nichol 2021, Sec. 4.2, on latents of a frozen first stage as in Rombach et
al. 2022, Table 3 (LDM-8-G). The twin of `latent_diffusion.py`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from ldm_jax import draws, latent_diffusion
from ldm_jax.annotations import Array, Float, Key, Shaped
from ldm_jax.diffusion.schedule import NoiseSchedule, add_noise


@dataclasses.dataclass(frozen=True)
class LatentClassifier:
    """The parts of a latent classifier.

    Attributes:
      classifier: Network, (latents, timesteps, *, train) -> logits.
      schedule: Noise levels.
      first_stage: Autoencoder.
    """

    classifier: nn.Module
    schedule: NoiseSchedule
    first_stage: nn.Module


def loss(
    model: LatentClassifier,
    params: Mapping[str, Any],
    frozen: Mapping[str, Any],
    batch: Mapping[str, Shaped[Array, "batch ..."]],
    rng: Key[Array, ""],
    *,
    train: bool = True,
    weights: Float[Array, " batch"] | None = None,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Computes the cross-entropy of the classes of latents at random noise levels.

    Args:
      model: LatentClassifier.
      params: {"classifier": weights}.
      frozen: Weights and scaling factor of the first stage.
      batch: Dict with the keys of `latent_diffusion.latents_of` and "label".
      rng: Typed key; all randomness of the step derives from it.
      train: Whether dropout is on.
      weights: Weight of each example, [B]; None for equal weights.

    Returns:
      (loss, metrics): float32 scalar, and a dict with "loss" and "accuracy", the
      fraction of examples classified correctly; both over all noise levels.
    """
    keys = ("posterior", "timesteps", "noise", "dropout")
    rngs = dict(zip(keys, jax.random.split(rng, len(keys)), strict=True))
    latents = latent_diffusion.latents_of(model, frozen, batch, rngs["posterior"])
    latents = jax.lax.stop_gradient(latents)
    timesteps = jax.random.randint(
        rngs["timesteps"], latents.shape[:1], 0, model.schedule.num_train_timesteps
    )
    noise = draws.normal(rngs["noise"], latents.shape)
    logits = model.classifier.apply(
        {"params": params["classifier"]},
        add_noise(latents, noise, model.schedule.at(timesteps)),
        timesteps,
        train=train,
        rngs={"dropout": rngs["dropout"]},
    )
    labels = batch["label"]
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    value = jnp.average(losses, weights=weights)
    hits = jnp.argmax(logits, axis=-1) == labels
    return value, {"loss": value, "accuracy": jnp.average(hits, weights=weights)}
