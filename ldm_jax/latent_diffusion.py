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
from ldm_jax.diffusion import guidance, losses, samplers
from ldm_jax.diffusion.schedule import (
    PREDICTION_TYPES,
    NoiseSchedule,
    add_noise,
    predict_noise,
    predict_x0,
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

    def __post_init__(self):
        _check_choice("prediction_type", self.prediction_type, PREDICTION_TYPES)
        _check_choice("loss_type", self.loss_type, losses.LOSS_TYPES)


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
    size, num_timesteps = len(latents), model.schedule.num_train_timesteps
    drop = model.conditioner.draw_drop(rngs["drop"], size) if train else None

    timesteps = jax.random.randint(rngs["timesteps"], (size,), 0, num_timesteps)
    noise = jax.random.normal(rngs["noise"], latents.shape)
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
    logvar = params.get("logvar")
    value, metrics = losses.denoising_loss(
        output,
        target_for(model.prediction_type, latents, noise, point),
        jnp.asarray(vlb_weights)[timesteps],
        loss_type=model.loss_type,
        simple_weight=model.simple_weight,
        elbo_weight=model.elbo_weight,
        logvar=model.logvar_init if logvar is None else logvar[timesteps],
        weights=weights,
    )
    if logvar is not None:
        metrics["logvar"] = logvar.mean()
    return value, metrics


def make_denoiser(
    model, params, conditioning, null=None, guidance_scale=1.0, tile=None
):
    """Makes the denoiser that samplers call.

    Args:
      model: LatentDiffusion.
      params: Trained weights.
      conditioning: Conditioning of the batch.
      null: Conditioning that means "nothing known", for guidance.
      guidance_scale: Classifier-free guidance; the number 1 is off and costs nothing.
      tile: See `sample_latents`.

    Returns:
      (latents, point) -> (x0, noise), all [B, h, w, c]; point is scalar.
    """
    guided = not guidance.is_off(guidance_scale)
    # Keys and values of the context do not change over a sampler's loop: the compiler
    # computes them once before it (benchmarks/RESULTS.md).
    told = guidance.pair(null, conditioning) if guided else conditioning
    unet = functools.partial(model.unet.apply, {"params": params["unet"]})
    if tile is not None:
        unet = tiling.tile_unet(unet, tile, model.unet.downsampling_factor)

    def predict(latents, point):
        timesteps = jnp.broadcast_to(point.timestep, latents.shape[:1])
        output = unet(latents, timesteps, *told)
        x0 = predict_x0(output, latents, point, model.prediction_type)
        return x0, predict_noise(output, latents, point, model.prediction_type)

    return guidance.guide(predict, guidance_scale) if guided else predict


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
    eta=None,
    guidance_scale=1.0,
    temperature=1.0,
    known=None,
    strength=1.0,
    mask=None,
    tile=None,
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
      eta: Share of the ancestral noise, for samplers that take it; None for theirs.
      guidance_scale: 1 is off.
      temperature: Factor on the noise of stochastic samplers.
      known: Clean latents to start from or to hold, [B, h, w, c].
      strength: Share of the steps to run on `known`, in (0, 1]; 1 starts from noise.
      mask: 1 where `known` is held during sampling, [B or 1, h, w, 1].
      tile: Side of the tiles, in latents, in which the U-Net evaluates latents that
        are larger, best the size it was trained on (`tiling.tile_unet`); None for the
        whole at once.

    Returns:
      Latents of unit variance, float32 [B, h, w, c].

    Raises:
      ValueError: If an option is unknown or options do not go together.
    """
    guided = not guidance.is_off(guidance_scale)
    if guided and not model.conditioner.entries:
        raise ValueError(
            f"guidance_scale {guidance_scale} needs a model with conditions: set it to "
            "1 for an unconditional one"
        )
    if known is None and (mask is not None or strength != 1.0):
        raise ValueError("mask and strength need images to start from: give them too")
    if isinstance(sampler, str):
        sampler = samplers.make_sampler(sampler, eta=eta)
    points = samplers.make_points(model.schedule, num_steps, spacing)
    steps = len(points.alpha) - 1
    start = steps - int(strength * steps)
    if not 0 <= start < steps:
        raise ValueError(
            f"strength {strength} of {steps} steps must leave 1 to {steps} of them: "
            "give a strength in (0, 1] or more steps"
        )

    conditioning, null = condition(model, params, inputs), None
    if guided:
        null = condition(model, params, model.conditioner.null_inputs(inputs))
    denoiser = make_denoiser(model, params, conditioning, null, guidance_scale, tile)

    noise_rngs, step_rngs = jax.vmap(jax.random.split, out_axes=1)(rngs)
    latents = samplers.normal(noise_rngs, latent_shape)
    if start:
        level = jax.tree.map(lambda values: values[start], points)
        latents = add_noise(known, latents, level)
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


def generate(
    model, params, frozen, inputs, rngs, *, images=None, decode_tile=None, **options
):
    """Draws images: from noise alone, or from images by `strength` and `mask`.

    Args:
      model: LatentDiffusion.
      params: Trained weights, usually the EMA's.
      frozen: Weights and scaling factor of the first stage.
      inputs: Dict with the conditioner's keys, arrays [B, ...].
      rngs: Typed keys [B], one per sample.
      images: Images to start from or to keep in part, [B, H, W, C].
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
    inputs = model.conditioner.encode(inputs, codec[0])
    latents = sample_latents(model, params, inputs, rngs, known=known, **options)
    return codec[1](latents)
