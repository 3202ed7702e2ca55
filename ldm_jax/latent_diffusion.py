"""Latent diffusion (Rombach et al. 2022) from end to end. Read this first.

    images --encode--> latents --add_noise--> noisy latents --U-Net--> noise, x0 or v
                                                                |
    batch --condition--> context, concat, vector ---------------+
                                                                |
    images <--decode-- latents <--sample, many U-Net steps-- noise

Everything is a pure function of arrays and of a `LatentDiffusion`, which says what the
parts are and holds no weights. `params` are trained in the second stage: {"unet",
"conditioner"} and, if learned, {"logvar"}. `frozen` comes from the first stage:
{"first_stage", "scaling_factor"}. Latents outside of the first stage have unit
variance: `encode` multiplies by the scaling factor, `decode` divides, nothing else
knows of it.
"""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from ldm_jax import images as image_codec
from ldm_jax import tiling
from ldm_jax.conditioners import Conditioner
from ldm_jax.denoiser import make_denoiser
from ldm_jax.diffusion import guidance, losses, samplers
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
      unet: Denoiser network, (latents, timesteps, context, concat, vector, *, train) ->
        output shaped like the latents.
      conditioner: Fills the three slots from a batch; see `make_conditioner`.
      schedule: Noise levels.
      first_stage: Autoencoder with `encode`, `decode`, `downsampling_factor` and
        `latent_channels`.
      prediction_type: What the U-Net predicts, a row of PREDICTION_TYPES.
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

    unet: nn.Module
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
        _check_choice("loss_type", self.loss_type, losses.LOSS_TYPES)
        samplings = losses.TIMESTEP_SAMPLINGS
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
    unet_rng, conditioner_rng = jax.random.split(rng)

    def latents_of(images):
        return jnp.zeros((len(images), *shape_of_latents(model, images.shape[1:3])))

    conditioning, conditioner = model.conditioner.init_with_output(
        conditioner_rng, model.conditioner.encode(batch, latents_of)
    )
    latents = latents_of(batch["image"])
    timesteps = jnp.zeros(len(latents), jnp.int32)
    unet = model.unet.init(unet_rng, latents, timesteps, *conditioning)
    # An unconditional model's conditioner has no parameters.
    parts = {"unet": unet, "conditioner": conditioner}
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


def loss(model, params, frozen, batch, rng, *, train=True, weights=None):
    """The second stage's training loss on a batch.

    Args:
      model: LatentDiffusion.
      params: What is trained.
      frozen: Weights and scaling factor of the first stage; no gradient reaches them.
      batch: Dict with "image" and the conditioner's keys.
      rng: Typed key; all randomness of the step follows from it.
      train: Whether dropout is on, in the U-Net and of conditions.
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

    timesteps = losses.draw_timesteps(
        rngs["timesteps"],
        size,
        model.schedule.num_train_timesteps,
        model.timestep_sampling,
        model.logit_mean,
        model.logit_std,
    )
    noise = losses.draw_noise(rngs["noise"], latents.shape, model.offset_noise)
    point = model.schedule.at(timesteps)
    output = model.unet.apply(
        {"params": params["unet"]},
        add_noise(latents, noise, point),
        timesteps,
        *condition(model, params, batch, drop),
        train=train,
        rngs={"dropout": rngs["dropout"]},
    )

    vlb_weights = losses.elbo_weights(
        model.schedule, model.prediction_type, model.v_posterior
    )
    level_weights = 1.0
    if model.min_snr_gamma is not None:
        level_weights = losses.min_snr_weights(
            model.schedule, model.prediction_type, model.min_snr_gamma
        )
        level_weights = jnp.asarray(level_weights)[timesteps]
    logvar = params.get("logvar")
    value, metrics = losses.denoising_loss(
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


def sample_latents(
    model,
    params,
    inputs,
    rngs,
    *,
    latent_shape,
    sampler="ddim",
    num_steps=50,
    spacing="uniform",
    final_level=None,
    shift=1.0,
    eta=None,
    guidance_scale=1.0,
    negative=None,
    guidance_interval=(0.0, 1.0),
    guidance_rescale=0.0,
    steer=None,
    temperature=1.0,
    known=None,
    strength=1.0,
    mask=None,
    tile=None,
    noise=None,
):
    """Draws latents: from noise, from given ones (img2img), or around them (inpaint).

    Sample k depends on its own inputs and rngs[k] alone. Wrap it in `jax.jit` with all
    but the arrays bound.

    Args:
      model: LatentDiffusion.
      params: Trained weights, usually the EMA's.
      inputs: Dict with the conditioner's keys, arrays [B, ...]; check them first with
        `model.conditioner.check`, then see `encode_inputs`.
      rngs: Typed keys [B], one per sample.
      latent_shape: (h, w, c), see `shape_of_latents`.
      sampler: Row of SAMPLERS, or a Sampler.
      num_steps: Number of steps of the grid.
      spacing: Row of SPACINGS.
      final_level: Where the last step leads, see `samplers.make_points`.
      shift: Factor on the noise levels, see there.
      eta: Share of the ancestral noise, for samplers that take it; None for theirs.
      guidance_scale: Number, or dict of batch key -> number, see `guidance.plan`; 1 is
        off and costs nothing.
      negative: Dict of inputs that guidance pushes away from, in place of null ones.
      guidance_interval: (low, high) share of the noise levels in which guidance acts,
        0 the least noise and 1 the most.
      guidance_rescale: Share of the correction of the spread, see `guidance.guide`.
      steer: Maps the guided denoiser to another, see `diffusion.steering`.
      temperature: Factor on the noise of stochastic samplers.
      known: Clean latents to start from or to hold, [B, h, w, c].
      strength: Share of the steps to run on `known`, in [0, 1]; 0 gives it back as it
        is, 1 starts from noise alone.
      mask: 1 where `known` is held during sampling, [B or 1, h, w, 1].
      tile: Side of the tiles, in latents, in which the U-Net evaluates latents that
        are larger, best the size it was trained on (`tiling.tile_unet`); None for the
        whole at once.
      noise: Noise to start from instead of that of `rngs`, [B, h, w, c]; for example
        what `inversion.invert_latents` found.

    Returns:
      Latents of unit variance, float32 [B, h, w, c].

    Raises:
      ValueError: If an option is unknown or options do not go together.
    """
    if known is None and (mask is not None or strength != 1.0):
        raise ValueError("mask and strength need images to start from: give them too")
    if isinstance(sampler, str):
        sampler = samplers.make_sampler(sampler, eta=eta)
    points = samplers.make_points(
        model.schedule, num_steps, spacing, final_level, shift
    )
    steps = len(points.alpha) - 1
    start = _first_step(strength, steps)
    if start == steps:
        return known

    told, scales = guidance.plan_inputs(
        guidance_scale, model.conditioner, inputs, negative
    )
    denoiser = make_denoiser(
        model,
        params,
        [condition(model, params, given) for given in told],
        scales,
        interval=guidance.timestep_interval(model.schedule, guidance_interval),
        rescale=guidance_rescale,
        steer=steer,
        tile=tile,
    )

    noise_rngs, step_rngs = split_rngs(rngs)
    if noise is None:
        noise = samplers.normal(noise_rngs, latent_shape)
    level = jax.tree.map(lambda values: values[start], points)
    if start:
        latents = add_noise(known, noise, level)
    else:
        latents = noise * samplers.deviation(level)
    return samplers.sample(
        sampler,
        denoiser,
        latents,
        points,
        step_rngs,
        start=start,
        hold=None if mask is None else samplers.hold_known(known, mask),
        temperature=temperature,
    )


def split_rngs(rngs):
    """Splits the keys of samples, [B]: for the first noise, and for all later one."""
    return jax.vmap(jax.random.split, out_axes=1)(rngs)


def _first_step(strength, steps):
    """Index of the first of `steps` that runs; `steps` if none does."""
    # Rounding must not take the last of 0.29 * 100 steps away.
    running = int(strength * steps + 1e-6)
    if 0 <= strength <= 1 and (running or not strength):
        return steps - running
    raise ValueError(
        f"strength {strength} of {steps} steps must leave 1 to {steps} of them: give "
        f"{-(-1000 // steps) / 1000:g} to 1, or 0 for the image as it is, or more steps"
    )


def generate(
    model,
    params,
    frozen,
    inputs,
    rngs,
    *,
    images=None,
    negative=None,
    decode_tile=None,
    **options,
):
    """Draws images: from noise alone, or from images by `strength` and `mask`.

    Args:
      model: LatentDiffusion.
      params: Trained weights, usually the EMA's.
      frozen: Weights and scaling factor of the first stage.
      inputs: Dict with the conditioner's keys, arrays [B, ...].
      rngs: Typed keys [B], one per sample.
      images: Images to start from or to keep in part, [B, H, W, C].
      negative: See `sample_latents`; before `encode_inputs`, as `inputs`.
      decode_tile: Side of the tiles, in pixels, in which the first stage works to save
        memory (`tiling.tile_first_stage`); None for the whole at once.
      **options: See `sample_latents`; `latent_shape` at least.

    Returns:
      Images, float32 [B, H, W, C], about in [-1, 1]; not clipped.

    Raises:
      ValueError: See `sample_latents`.
    """
    codec = [functools.partial(way, model, frozen) for way in (encode, decode)]
    if decode_tile is not None:
        factor = model.first_stage.downsampling_factor
        codec = tiling.tile_first_stage(*codec, factor, decode_tile)
    known = None if images is None else codec[0](images)
    if negative:
        encoded = model.conditioner.encode(inputs | negative, codec[0])
        negative = {key: encoded[key] for key in negative}
    inputs = model.conditioner.encode(inputs, codec[0])
    latents = sample_latents(
        model, params, inputs, rngs, negative=negative, known=known, **options
    )
    return codec[1](latents)
