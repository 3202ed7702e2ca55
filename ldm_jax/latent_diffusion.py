"""Latent diffusion (Rombach et al. 2022): the model and its loss. Read this first.

    images --encode--> latents --add_noise--> noisy latents --backbone--> noise, x0, v
                                                                |
    batch --condition--> context, concat, vector ---------------+
                                                                |
    images <--decode-- latents <--sample, many U-Net steps-- noise

Everything is a pure function of arrays and of a `LatentDiffusion`, which says what the
parts are and holds no weights. `params` are trained in the second stage: {"backbone",
"conditioner"} and, if learned, {"logvar"}. `frozen` comes from the first stage:
{"first_stage", "scaling_factor"}. Latents outside of the first stage have unit
variance: `encode` multiplies by the scaling factor, `decode` divides, nothing else
knows of it. `generation.py` draws from the model.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ldm_jax import images as image_codec
from ldm_jax.annotations import Array, Float, Key, Num
from ldm_jax.conditioners import Conditioner, Conditioning
from ldm_jax.diffusion import objective
from ldm_jax.diffusion.schedule import (
    PREDICTION_TYPES,
    NoiseSchedule,
    add_noise,
    check_prediction,
    target_for,
)


@dataclasses.dataclass(frozen=True)
class LatentDiffusion:
    """What a latent diffusion model is made of.

    Attributes:
      backbone: Denoiser network, see `models.backbones`; `apply_backbone` applies it.
      conditioner: Fills the three slots from a batch; see `make_conditioner`.
      schedule: Noise levels.
      first_stage: Autoencoder with `encode`, `decode`, `downsampling_factor` and
        `latent_channels`.
      prediction_type: What the backbone predicts, a row of PREDICTION_TYPES.
      loss_type: Row of LOSS_TYPES.
      simple_weight: Weight of the simple loss term.
      elbo_weight: Weight of the ELBO term.
      v_posterior: Blend of the posterior variance in the ELBO term's weights.
      logvar_init: Log-variance per timestep that tempers the simple term.
      learn_logvar: Whether the log-variances are trained.
      min_snr_gamma: Largest weight of a noise level in terms of x0, see
        `losses.min_snr_weights`; None for the paper's weights, which are equal.
      offset_noise: Deviation of the noise that a channel's pixels share, see
        `losses.draw_noise`.
      timestep_sampling: Row of TIMESTEP_SAMPLINGS.
      logit_mean: Mean of "logit_normal" timesteps, see `losses.draw_timesteps`.
      logit_std: Their standard deviation.
    """

    backbone: nn.Module
    conditioner: Conditioner
    schedule: NoiseSchedule
    first_stage: nn.Module
    prediction_type: str = "noise"
    loss_type: str = "l2"
    simple_weight: float = 1.0
    elbo_weight: float = 0.0
    v_posterior: float = 0.0
    logvar_init: float = 0.0
    learn_logvar: bool = False
    min_snr_gamma: float | None = None
    offset_noise: float = 0.0
    timestep_sampling: str = "uniform"
    logit_mean: float = 0.0
    logit_std: float = 1.0

    def __post_init__(self):
        _check_choice("prediction_type", self.prediction_type, PREDICTION_TYPES)
        _check_choice("loss_type", self.loss_type, objective.LOSS_TYPES)
        samplings = objective.TIMESTEP_SAMPLINGS
        _check_choice("timestep_sampling", self.timestep_sampling, samplings)
        check_prediction(self.schedule, self.prediction_type)
        if self.min_snr_gamma is not None and not self.min_snr_gamma > 0:
            raise ValueError(
                f"min_snr_gamma must be more than 0, got {self.min_snr_gamma}: the "
                "paper's is 5, None is off"
            )
        for name in ("offset_noise", "logit_std"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)}")


def _check_choice(name, value, table):
    if value not in table:
        raise ValueError(f"unknown {name} {value!r}: choose one of {', '.join(table)}")


def shape_of_latents(model, image_size):
    """Shape of one sample's latents.

    Args:
      model: LatentDiffusion.
      image_size: (height, width) of the images, in pixels.

    Returns:
      (h, w, c).

    Raises:
      ValueError: If the first stage cannot reduce that size evenly.
    """
    factor = model.first_stage.downsampling_factor
    if any(size % factor for size in image_size):
        raise ValueError(
            f"image size {image_size[0]}x{image_size[1]} is not divisible by the first "
            f"stage's downsampling factor {factor}: change image_size"
        )
    height, width = (size // factor for size in image_size)
    return height, width, model.first_stage.latent_channels


def init(model, rng, batch):
    """Draws the parameters that the second stage trains.

    Args:
      model: LatentDiffusion.
      rng: Typed key.
      batch: Dict with "image" [B, H, W, C] and the conditioner's keys; only shapes and
        types matter.

    Returns:
      params.
    """
    backbone_rng, conditioner_rng = jax.random.split(rng)

    def latents_of(images):
        return jnp.zeros((len(images), *shape_of_latents(model, images.shape[1:3])))

    conditioning, conditioner = model.conditioner.init_with_output(
        conditioner_rng, model.conditioner.encode(batch, latents_of)
    )
    latents = latents_of(batch["image"])
    timesteps = jnp.zeros(len(latents), jnp.int32)
    backbone = model.backbone.init(backbone_rng, latents, timesteps, *conditioning)
    # An unconditional model's conditioner has no parameters.
    parts = {"backbone": backbone, "conditioner": conditioner}
    params = {name: part.get("params", {}) for name, part in parts.items()}
    if model.learn_logvar:
        num_timesteps = model.schedule.num_train_timesteps
        params["logvar"] = jnp.full(num_timesteps, model.logvar_init, jnp.float32)
    return params


def encode(model, frozen, images, rng=None):
    """Compresses images to latents of unit variance.

    Args:
      model: LatentDiffusion.
      frozen: Weights and scaling factor of the first stage.
      images: [B, H, W, C], uint8 or floats in [-1, 1].
      rng: Typed key for a sample of the posterior; None for its mode.

    Returns:
      Latents, float32 [B, h, w, c].
    """
    if images.dtype == jnp.uint8:
        images = image_codec.to_float(images)
    posterior = model.first_stage.apply(
        {"params": frozen["first_stage"]}, images, method="encode"
    )
    latents = posterior.mode() if rng is None else posterior.sample(rng)
    return latents.astype(jnp.float32) * frozen["scaling_factor"]


def decode(model, frozen, latents):
    """Turns latents of unit variance into images.

    Args:
      model: LatentDiffusion.
      frozen: Weights and scaling factor of the first stage.
      latents: [B, h, w, c].

    Returns:
      Images, float32 [B, H, W, C], about in [-1, 1]; not clipped.
    """
    return model.first_stage.apply(
        {"params": frozen["first_stage"]},
        latents / frozen["scaling_factor"],
        method="decode",
    )


def encode_inputs(model, frozen, batch):
    """Has the first stage encode what conditions the denoiser as latents.

    Args:
      model: LatentDiffusion.
      frozen: Weights and scaling factor of the first stage.
      batch: Dict with the conditioner's keys, as the data or a user gives them.

    Returns:
      Dict like `batch`, for `condition` and the conditioner's `null_inputs`; encode it
      once. Images become the mode of their latents.
    """
    return model.conditioner.encode(batch, lambda images: encode(model, frozen, images))


def condition(model, params, batch, drop=None):
    """Fills the conditioning slots from what `encode_inputs` gives.

    See `Conditioner.__call__`.
    """
    variables = {"params": params["conditioner"]}
    return model.conditioner.apply(variables, batch, drop=drop)


def apply_backbone(
    model: "LatentDiffusion",
    params: Mapping[str, Any],
    latents: Float[Array, "batch height width channels"],
    timesteps: Num[Array, " batch"],
    conditioning: Conditioning,
    *,
    train: bool = False,
    rngs: Mapping[str, Key[Array, ""]] | None = None,
) -> Float[Array, "batch height width channels"]:
    """Applies the denoiser network: the one place where that happens.

    Args:
      model: LatentDiffusion.
      params: Trained weights.
      latents: Noisy latents [B, h, w, c], in units of unit-variance latents.
      timesteps: [B]; 0 is the least noisy.
      conditioning: Conditioning of the batch, from `condition`.
      train: Whether dropout is live.
      rngs: {"dropout": typed key} for it; None without.

    Returns:
      float32 [B, h, w, c]: noise, x0, v or velocity, as `model.prediction_type` says.

    Raises:
      ValueError: If the latents or a condition are of a size that it cannot take.
    """
    variables = {"params": params["backbone"]}
    return model.backbone.apply(
        variables, latents, timesteps, *conditioning, train=train, rngs=rngs
    )


def loss(model, params, frozen, batch, rng, *, train=True, weights=None):
    """The second stage's training loss on a batch.

    Args:
      model: LatentDiffusion.
      params: What is trained.
      frozen: Weights and scaling factor of the first stage; no gradient reaches them.
      batch: Dict with "image" and the conditioner's keys.
      rng: Typed key; all randomness of the step follows from it.
      train: Whether dropout is on, in the backbone and of conditions.
      weights: Weight of each example, [B]; None for equal ones.

    Returns:
      (loss, metrics), see `losses.denoising_loss`; with learned log-variances also
      their mean, "logvar".
    """
    keys = ("posterior", "timesteps", "noise", "dropout", "drop")
    rngs = dict(zip(keys, jax.random.split(rng, len(keys)), strict=True))
    frozen = jax.lax.stop_gradient(frozen)
    latents = encode(model, frozen, batch["image"], rngs["posterior"])
    batch = encode_inputs(model, frozen, batch)
    size = len(latents)
    drop = model.conditioner.draw_drop(rngs["drop"], size) if train else None

    timesteps = objective.draw_timesteps(
        rngs["timesteps"],
        size,
        model.schedule.num_train_timesteps,
        model.timestep_sampling,
        model.logit_mean,
        model.logit_std,
    )
    noise = objective.draw_noise(rngs["noise"], latents.shape, model.offset_noise)
    point = model.schedule.at(timesteps)
    output = apply_backbone(
        model,
        params,
        add_noise(latents, noise, point),
        timesteps,
        condition(model, params, batch, drop),
        train=train,
        rngs={"dropout": rngs["dropout"]},
    )

    vlb_weights = objective.elbo_weights(
        model.schedule, model.prediction_type, model.v_posterior
    )
    level_weights = 1.0
    if model.min_snr_gamma is not None:
        level_weights = objective.min_snr_weights(
            model.schedule, model.prediction_type, model.min_snr_gamma
        )
        level_weights = jnp.asarray(level_weights)[timesteps]
    logvar = params.get("logvar")
    value, metrics = objective.denoising_loss(
        output,
        target_for(model.prediction_type, latents, noise, point),
        jnp.asarray(vlb_weights)[timesteps],
        loss_type=model.loss_type,
        simple_weight=model.simple_weight,
        elbo_weight=model.elbo_weight,
        logvar=model.logvar_init if logvar is None else logvar[timesteps],
        level_weights=level_weights,
        weights=weights,
    )
    if logvar is not None:
        metrics["logvar"] = logvar.mean()
    return value, metrics
