"""Latent diffusion (Rombach et al. 2022): the model and its loss. Read this first.

    images --encode--> latents --add_noise--> noisy latents --backbone--> noise, x0, v
                                                                |
    batch --condition--> context, concat, vector ---------------+
                                                                |
    images <--decode-- latents <--sample, many backbone steps-- noise

Everything is a pure function of arrays and of a `LatentDiffusion`, which describes the
parts and holds no weights. `params` are trained in the second stage: {"backbone",
"conditioner"} and, if learned, {"logvar"}. `frozen` comes from the first stage:
{"first_stage", "statistics"}, its weights and the `LatentStatistics` of its latents.
Latents outside of the first stage have zero mean and unit variance, or only unit
variance if the statistics are one scaling factor as in the paper: `encode` applies the
statistics, `decode` undoes them, no other code uses them. `generate.py` samples from
the model.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ldm_jax import images as image_codec
from ldm_jax.annotations import Array, Bool, Float, Key, Num
from ldm_jax.conditioners import Conditioner, Conditioning, States
from ldm_jax.data.encoded import MEAN, STD
from ldm_jax.diffusion.objective import Objective
from ldm_jax.diffusion.schedule import NoiseSchedule, add_noise, check_prediction
from ldm_jax.models.operations.parameters import initialise
from ldm_jax.models.posteriors import StoredPosterior


@dataclasses.dataclass(frozen=True)
class LatentDiffusion:
    """The parts of a latent diffusion model.

    Attributes:
      backbone: Denoiser network, see `models.backbones`; `apply_backbone` applies it.
      conditioner: Fills the three conditioning slots from a batch; see
        `make_conditioner`.
      schedule: Noise levels.
      first_stage: Autoencoder with `encode`, `decode`, `downsampling_factor` and
        `latent_channels`.
      objective: What the backbone is trained to predict, and the distribution and the
        loss weights of the noise levels.

    Raises:
      ValueError: If the prediction type does not work with the schedule.
    """

    backbone: nn.Module
    conditioner: Conditioner
    schedule: NoiseSchedule
    first_stage: nn.Module
    objective: Objective = Objective()

    def __post_init__(self):
        check_prediction(self.schedule, self.objective.prediction_type)


def shape_of_latents(model: Any, image_size: tuple[int, int]) -> tuple[int, int, int]:
    """Returns the shape of one sample's latents.

    Args:
      model: LatentDiffusion or LatentClassifier.
      image_size: (height, width) of the images, in pixels.

    Returns:
      (h, w, c).

    Raises:
      ValueError: If the size is not divisible by the downsampling factor.
    """
    factor = model.first_stage.downsampling_factor
    if any(size % factor for size in image_size):
        raise ValueError(
            f"image size {image_size[0]}x{image_size[1]} is not divisible by the first "
            f"stage's downsampling factor {factor}: change image_size"
        )
    height, width = (size // factor for size in image_size)
    return height, width, model.first_stage.latent_channels


def latent_shape_in(model: Any, batch: Mapping[str, Any]) -> tuple[int, int, int]:
    """Returns the shape of one sample's latents in a batch.

    Args:
      model: LatentDiffusion or LatentClassifier.
      batch: See `latents_of`.

    Returns:
      (h, w, c).

    Raises:
      ValueError: If the image size is not divisible by the downsampling factor.
    """
    if MEAN in batch:
        return tuple(batch[MEAN].shape[1:])
    return shape_of_latents(model, batch["image"].shape[1:3])


def init(
    model: LatentDiffusion, rng: Key[Array, ""] | None, batch: Mapping[str, Any]
) -> dict[str, Any]:
    """Initialises the parameters that the second stage trains.

    Args:
      model: LatentDiffusion.
      rng: Typed key; None to compute only shapes and types.
      batch: Dict with "image" [B, H, W, C], or the moments of latents, and the
        conditioner's keys; only shapes and types matter.

    Returns:
      params; without `rng`, a tree of ShapeDtypeStructs.
    """
    rngs = (None, None) if rng is None else jax.random.split(rng)

    def zeros(images):
        return jnp.zeros((len(images), *shape_of_latents(model, images.shape[1:3])))

    encoded = jax.eval_shape(lambda b: model.conditioner.encode(b, zeros), batch)
    conditioning, conditioner = initialise(model.conditioner, rngs[1], encoded)
    count = next(iter(batch.values())).shape[0]
    latents = jax.ShapeDtypeStruct((count, *latent_shape_in(model, batch)), jnp.float32)
    timesteps = jax.ShapeDtypeStruct((count,), jnp.int32)
    inputs = latents, timesteps, *conditioning
    _, backbone = initialise(model.backbone, rngs[0], *inputs)
    # An unconditional model's conditioner has no parameters.
    parts = {"backbone": backbone, "conditioner": conditioner}
    params = {name: part.get("params", {}) for name, part in parts.items()}
    learned = functools.partial(model.objective.init, model.schedule)
    return params | (jax.eval_shape(learned) if rng is None else learned())


def encode(
    model: Any,
    frozen: Mapping[str, Any],
    images: Num[Array, "batch height width channels"],
    rng: Key[Array, ""] | None = None,
) -> Float[Array, "batch h w c"]:
    """Compresses images to latents of unit variance.

    Args:
      model: LatentDiffusion or LatentClassifier.
      frozen: Weights of the first stage and statistics of its latents.
      images: [B, H, W, C], uint8, uint16, or floats in [-1, 1].
      rng: Typed key for a sample of the posterior; None for its mode.

    Returns:
      Latents, float32 [B, h, w, c].
    """
    posterior = model.first_stage.apply(
        {"params": frozen["first_stage"]},
        image_codec.to_float(images),
        method="encode",
    )
    return _latents(frozen, posterior, rng)


def decode(
    model: Any, frozen: Mapping[str, Any], latents: Float[Array, "batch h w c"]
) -> Float[Array, "batch height width channels"]:
    """Turns latents of unit variance into images.

    Args:
      model: LatentDiffusion or LatentClassifier.
      frozen: Weights of the first stage and statistics of its latents.
      latents: [B, h, w, c].

    Returns:
      Images, float32 [B, H, W, C], about in [-1, 1]; not clipped.
    """
    return model.first_stage.apply(
        {"params": frozen["first_stage"]},
        frozen["statistics"].restore(latents),
        method="decode",
    )


def latents_of(
    model: Any,
    frozen: Mapping[str, Any],
    batch: Mapping[str, Any],
    rng: Key[Array, ""] | None = None,
) -> Float[Array, "batch h w c"]:
    """Returns a batch's latents, from images or from stored moments.

    Only this function distinguishes the two. Moments are the first stage's output for
    images that were encoded in advance: the mean of the posterior and, if it is a
    Gaussian, its standard deviation. With the same key they give the same latents as
    their images.

    Args:
      model: LatentDiffusion or LatentClassifier.
      frozen: Weights of the first stage and statistics of its latents.
      batch: Dict with "image" [B, H, W, C], or with "latent_mean" and, for a Gaussian
        posterior, "latent_std" [B, h, w, c].
      rng: Typed key for a sample of the posterior; None for its mode.

    Returns:
      Latents of unit variance, float32 [B, h, w, c].
    """
    if MEAN not in batch:
        return encode(model, frozen, batch["image"], rng)
    # Moments may be stored as bfloat16; sample and normalise in float32.
    stored = [batch[key].astype(jnp.float32) for key in (MEAN, STD) if key in batch]
    return _latents(frozen, StoredPosterior(*stored), rng)


def _latents(frozen, posterior, rng):
    """Latents of unit variance, from a posterior."""
    latents = posterior.mode() if rng is None else posterior.sample(rng)
    return frozen["statistics"].normalise(latents.astype(jnp.float32))


def encode_inputs(
    model: LatentDiffusion, frozen: Mapping[str, Any], batch: Mapping[str, Any]
) -> dict[str, Any]:
    """Encodes image conditions of a batch with the first stage.

    Args:
      model: LatentDiffusion.
      frozen: Weights of the first stage and statistics of its latents.
      batch: Dict with the conditioner's keys, from the data or a user.

    Returns:
      Dict like `batch`, for `condition` and the conditioner's `null_inputs`; do not
      encode it again. Images are replaced by the mode of their latents.
    """
    encoded = model.conditioner.encode(
        batch, lambda images: encode(model, frozen, images)
    )
    return with_null_states(encoded, frozen)


def with_null_states(
    inputs: Mapping[str, Any], frozen: Mapping[str, Any]
) -> dict[str, Any]:
    """Pairs stored text-encoder states with those of the empty caption.

    Args:
      inputs: Dict with the conditioner's keys, from its `encode`.
      frozen: Weights of the first stage and statistics of its latents; for data with
        stored states also "null_states", batch key -> [L, D].

    Returns:
      Dict like `inputs`, with `States` under those keys.
    """
    null = frozen.get("null_states", {})
    return dict(inputs) | {
        key: States(inputs[key], jnp.broadcast_to(value[None], inputs[key].shape))
        for key, value in null.items()
    }


def condition(
    model: LatentDiffusion,
    params: Mapping[str, Any],
    batch: Mapping[str, Any],
    drop: Mapping[str, Bool[Array, " batch"]] | None = None,
) -> Conditioning:
    """Computes the conditioning slots from the output of `encode_inputs`.

    Args:
      model: LatentDiffusion.
      params: Trained weights.
      batch: Dict with the conditioner's keys, arrays [B, ...].
      drop: Batch key -> bool [B], true for the examples whose condition is dropped;
        None to drop nothing.

    Returns:
      Conditioning: context [B, L, D], concat [B, h, w, c] and vector [B, E], each None
      if no condition fills it.

    Raises:
      ValueError: If the batch lacks a key, or conditions that share a slot do not fit
        together.
    """
    variables = {"params": params["conditioner"]}
    return model.conditioner.apply(variables, batch, drop=drop)


def apply_backbone(
    model: LatentDiffusion,
    params: Mapping[str, Any],
    latents: Float[Array, "batch h w c"],
    timesteps: Num[Array, " batch"],
    conditioning: Conditioning | tuple,
    *,
    train: bool = False,
    rngs: Mapping[str, Key[Array, ""]] | None = None,
) -> Float[Array, "batch h w c"]:
    """Applies the denoiser network; all calls of the backbone go through here.

    Args:
      model: LatentDiffusion.
      params: Trained weights.
      latents: Noisy latents [B, h, w, c], in the scale of unit-variance latents.
      timesteps: [B]; 0 is the least noisy.
      conditioning: Conditioning of the batch, from `condition`: its three slots.
      train: Whether dropout is on.
      rngs: {"dropout": typed key} for dropout; None without it.

    Returns:
      float32 [B, h, w, c]: noise, x0, v or velocity, by the objective's
      `prediction_type`.

    Raises:
      ValueError: If the latents or a condition have a size that the backbone does not
        support.
    """
    variables = {"params": params["backbone"]}
    return model.backbone.apply(
        variables, latents, timesteps, *conditioning, train=train, rngs=rngs
    )


def named_keys(rng: Key[Array, ""], *names: str) -> dict[str, Key[Array, ""]]:
    """Splits a key once into one per name.

    Args:
      rng: Typed key.
      *names: Names of the keys; their order and number determine the keys.

    Returns:
      Name -> typed key, a scalar.
    """
    return dict(zip(names, jax.random.split(rng, len(names)), strict=True))


def loss(
    model: LatentDiffusion,
    params: Mapping[str, Any],
    frozen: Mapping[str, Any],
    batch: Mapping[str, Any],
    rng: Key[Array, ""],
    *,
    train: bool = True,
    weights: Num[Array, " batch"] | None = None,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Computes the second stage's training loss (Rombach et al. 2022, Eq. 2 and 3).

    Args:
      model: LatentDiffusion.
      params: Trained weights.
      frozen: Weights of the first stage and statistics of its latents; no gradient
        reaches them.
      batch: Dict with the keys of `latents_of` and those of the conditioner.
      rng: Typed key; all randomness of the step derives from it.
      train: Whether dropout is on, both in the backbone and of conditions.
      weights: Weight of each example, [B]; None for equal weights.

    Returns:
      (loss, metrics), see `Objective.loss`; with learned log-variances also their mean,
      "logvar".
    """
    rngs = named_keys(rng, "posterior", "timesteps", "noise", "dropout", "drop")
    frozen = jax.lax.stop_gradient(frozen)
    latents = latents_of(model, frozen, batch, rngs["posterior"])
    inputs = encode_inputs(model, frozen, batch)
    size, objective, schedule = len(latents), model.objective, model.schedule
    drop = model.conditioner.draw_drop(rngs["drop"], size) if train else None
    conditioning = condition(model, params, inputs, drop)

    timesteps = objective.draw_timesteps(rngs["timesteps"], size, schedule)
    noise = objective.draw_noise(rngs["noise"], latents.shape)
    point = schedule.at(timesteps)
    noisy = add_noise(latents, noise, point)
    dropout = {"dropout": rngs["dropout"]}
    output = apply_backbone(
        model, params, noisy, timesteps, conditioning, train=train, rngs=dropout
    )
    target = objective.target(latents, noise, point)

    levels = objective.levels(timesteps, schedule, params.get("logvar"))
    value, metrics = objective.loss(output, target, levels, weights)
    if "logvar" in params:
        metrics["logvar"] = params["logvar"].mean()
    return value, metrics
