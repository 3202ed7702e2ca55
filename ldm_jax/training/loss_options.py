"""The config section `loss` of a first stage, and the LPIPS weights that it names."""

import dataclasses
from typing import Any

import flax.linen as nn

from ldm_jax.config import choose
from ldm_jax.errors import ConfigError
from ldm_jax.models.first_stages import row_of
from ldm_jax.models.lpips import MIN_SIZE
from ldm_jax.training.first_stage_losses import (
    DISCRIMINATOR_LOSSES,
    RECONSTRUCTION_LOSSES,
    REDUCTIONS,
)
from ldm_jax.weights.lpips import WHERE, read_lpips


@dataclasses.dataclass(frozen=True)
class LossOptions:
    """The config section `loss` of a first stage; defaults are those of CompVis.

    The defaults of `gumbel_*` are those of Ramesh et al. 2021 (DALL-E), App. A.2.

    Attributes:
      reconstruction: Row of RECONSTRUCTION_LOSSES.
      reduction: Row of REDUCTIONS; None for that of the kind: "sum" for KL, "mean" for
        VQ.
      lpips_weights: File of LPIPS weights, or two separated by a comma, those of VGG16
        and of the heads; "" for none. See `weights.lpips`.
      perceptual_weight: Weight of LPIPS; None for 1 if there are LPIPS weights, else 0.
      logvar_init: Initial log-variance of the likelihood of a pixel.
      learn_logvar: Whether the log-variance is trained.
      kl_weight: Weight of the KL divergence (nats per image).
      codebook_weight: Weight of the quantiser's loss; None for 1, or 5e-4 for "gumbel".
      codebook_beta: Weight of one of its two terms; that of the other is 1.
      codebook_legacy: Whether beta weights the term that trains the codes, as in
        CompVis, instead of the one that trains the encoder, as in van den Oord et al.
        2017.
      codebook_ema_decay: Decay of codes as moving averages of their latents; None to
        train them by gradient.
      restart_threshold: Fraction of uniform usage below which a code restarts from a
        latent of the batch, for example 0.1; 0 for no restarts.
      gumbel_temperature: Initial softmax temperature of the quantiser "gumbel".
      gumbel_end_temperature: Its final temperature.
      gumbel_steps: Steps of the cosine schedule between the two.
      disc_start: Generator steps before the adversarial losses start.
      disc_weight: Multiplies the adaptive weight.
      disc_loss: Row of DISCRIMINATOR_LOSSES.
      disc_factor: Weight of the adversarial losses once they have started.
      disc_ramp_steps: Steps over which that weight rises linearly; 0 for no ramp.
      disc_weight_cap: Maximum adaptive weight.
      disc_learning_rate: Peak learning rate of the discriminator; None for that of the
        section `train`.
      disc_grad_clip: Maximum global norm of the discriminator's gradients; None for
        that of the section `train`, 0 for no clipping.
      r1_weight: Weight of `r1_penalty`.
      lecam_weight: Weight of `lecam_penalty`.
    """

    reconstruction: str = "l1"
    reduction: str | None = None
    lpips_weights: str = ""
    perceptual_weight: float | None = None
    logvar_init: float = 0.0
    learn_logvar: bool = False
    kl_weight: float = 1e-6
    codebook_weight: float | None = None
    codebook_beta: float = 0.25
    codebook_legacy: bool = True
    codebook_ema_decay: float | None = None
    restart_threshold: float = 0.0
    gumbel_temperature: float = 1.0
    gumbel_end_temperature: float = 1 / 16
    gumbel_steps: int = 150_000
    disc_start: int = 50_001
    disc_weight: float = 0.5
    disc_loss: str = "hinge"
    disc_factor: float = 1.0
    disc_ramp_steps: int = 0
    disc_weight_cap: float = 1e4
    disc_learning_rate: float | None = None
    disc_grad_clip: float | None = None
    r1_weight: float = 0.0
    lecam_weight: float = 0.0

    def __post_init__(self):
        choose(RECONSTRUCTION_LOSSES, self.reconstruction, "loss.reconstruction")
        choose(DISCRIMINATOR_LOSSES, self.disc_loss, "loss.disc_loss")
        if self.reduction is not None:
            choose(REDUCTIONS, self.reduction, "loss.reduction")


def check_codebook(options: LossOptions, model: nn.Module) -> None:
    """Checks that codebook options work with the first stage.

    Args:
      options: LossOptions.
      model: Autoencoder.

    Raises:
      ConfigError: If they do not.
    """
    keys = ("codebook_ema_decay", "restart_threshold")
    asked = [f"loss.{key}" for key in keys if getattr(options, key)]
    if not asked:
        return
    key = asked[0]
    codebook = row_of(model).codebook
    if codebook is None:
        raise ConfigError(
            f"{key} needs a codebook, which this first_stage.kind has none of: choose "
            "one that has, or unset it"
        )
    if not codebook.is_among_latents(model):
        raise ConfigError(
            f"{key} sets codes to latents, which the codes of first_stage.quantizer="
            f'"{model.quantizer}" are not among: unset it or use "nearest"'
        )


def load_perceptual(
    options: LossOptions, model: nn.Module, image_size: int
) -> tuple[LossOptions, dict[str, Any]]:
    """Reads the weights of LPIPS.

    Args:
      options: LossOptions.
      model: Autoencoder.
      image_size: Height and width of the images.

    Returns:
      (options, frozen): the options with `perceptual_weight` set, and {"lpips": its
      parameters}, or {} without LPIPS.

    Raises:
      ConfigError: If LPIPS is on and the files are missing or wrong, or if the images
        are too small for it.
    """
    weight, paths = options.perceptual_weight, options.lpips_weights
    if weight is None:
        weight = 1.0 if paths else 0.0
    options = dataclasses.replace(options, perceptual_weight=weight)
    if not paths and not weight:
        return options, {}
    without = "to train without it: loss.perceptual_weight=0 loss.lpips_weights=''"
    if not paths:
        raise ConfigError(
            f"loss.perceptual_weight={weight} needs loss.lpips_weights, a path: "
            f"{WHERE}; {without}"
        )
    if image_size < MIN_SIZE:
        raise ConfigError(
            f"LPIPS needs images of at least {MIN_SIZE} pixels, not {image_size}; "
            f"{without}"
        )
    return options, {"lpips": read_lpips(paths, "loss.lpips_weights", without)}
