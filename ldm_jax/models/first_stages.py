"""The kinds of first stages: one row each."""

from typing import Any, NamedTuple

import jax.numpy as jnp

from ldm_jax.models.autoencoder import IdentityAutoencoder, KLAutoencoder, VQAutoencoder


class Regulariser(NamedTuple):
    """What a kind of first stage adds to the loss.

    Attributes:
      loss: (what `reconstruct` gives second, LossOptions) -> (scalar, metrics).
      reduction: Row of REDUCTIONS that goes with it.
    """

    loss: Any
    reduction: str


def _kl_loss(posterior, options):
    divergence = jnp.mean(posterior.kl())
    return options.kl_weight * divergence, {"kl_loss": divergence}


def _codebook_loss(quantized, options):
    """The quantiser's loss in either form (see `LossOptions.codebook_legacy`)."""
    beta = options.codebook_beta
    weights = {"commitment": beta, "codebook": 1.0, "divergence": 1.0}
    if options.codebook_legacy:
        weights |= {"commitment": 1.0, "codebook": beta}
    if options.codebook_ema_decay:
        weights["codebook"] = 0.0
    losses = quantized.losses
    weight = options.codebook_weight
    if weight is None:
        weight = 5e-4 if "divergence" in losses else 1.0
    total = weight * sum(weights[name] * value for name, value in losses.items())
    return total, {f"{name}_loss": value for name, value in losses.items()}


# Autoencoders by the name that configs use.
FIRST_STAGES = {
    "kl": KLAutoencoder,
    "vq": VQAutoencoder,
    "identity": IdentityAutoencoder,
}


# What may differ between two first stages that share their latents.
DECODER_PARTS = ("from_latents", "decoder", "to_images")


# What each kind of first stage that can be trained is held by.
REGULARISERS = {
    "kl": Regulariser(_kl_loss, "sum"),
    "vq": Regulariser(_codebook_loss, "mean"),
}
