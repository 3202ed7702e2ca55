"""Draws samples from a latent diffusion model: latents, or the decoded images.

Sampling starts from noise or from an image (image to image, SDEdit: Meng et al. 2022),
or keeps part of an image (inpainting with any model: Song et al. 2021, App. I.2).

    options = SampleOptions("unipc", num_steps=20, size=(256, 256),
                            guidance=GuidanceOptions(scale=4.0))
    images = sample_images(model, params, frozen, inputs, rngs, options)
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ldm_jax import tiling
from ldm_jax.annotations import Array, Bool, Float, Key, Num
from ldm_jax.conditioners import Conditioning
from ldm_jax.diffusion import grids, guidance, samplers, solve
from ldm_jax.diffusion.gradient_guidance import GradientGuidance
from ldm_jax.diffusion.guidance import GuidanceOptions
from ldm_jax.diffusion.sample_options import SampleOptions
from ldm_jax.diffusion.sampling_method import Denoiser
from ldm_jax.diffusion.schedule import add_noise, predict_noise, predict_x0
from ldm_jax.latent_diffusion import (
    LatentDiffusion,
    apply_backbone,
    condition,
    decode,
    encode,
    shape_of_latents,
    with_null_states,
)

__all__ = [
    "Codec",
    "Given",
    "GuidanceOptions",
    "SampleOptions",
    "known_latents_mask",
    "invert_latents",
    "make_codec",
    "make_denoiser",
    "sample_images",
    "sample_latents",
    "sample_latents_of_images",
    "slerp",
    "split_rngs",
]


class Given(NamedTuple):
    """Optional arrays that sampling starts from, keeps, or is guided away from.

    Attributes:
      known: Images [B, H, W, C] for `sample_images`, clean latents [B, h, w, c] for
        `sample_latents`, to start from (`SampleOptions.strength`) or to keep (`mask`).
      mask: 1 where the latents of `known` are kept, [B or 1, h, w, 1]; see
        `known_latents_mask`.
      noise: Initial noise, instead of noise drawn with the keys, [B, h, w, c]; for
        example that of `invert_latents`.
      negative: Dict of inputs that guidance pushes away from, in place of the null
        inputs.
    """

    known: Any = None
    mask: Any = None
    noise: Any = None
    negative: Mapping[str, Any] | None = None


def sample_latents(
    model: LatentDiffusion,
    params: Mapping[str, Any],
    inputs: Mapping[str, Any],
    rngs: Key[Array, " batch"],
    options: SampleOptions = SampleOptions(),
    given: Given = Given(),
    gradient_guidance: GradientGuidance | None = None,
) -> Float[Array, "batch height width channels"]:
    """Draws latents: from noise, from given latents (img2img), or by inpainting.

    Sample k depends only on its own inputs and rngs[k]. Wrap this in `sharding.jit`;
    model and options are static.

    Args:
      model: LatentDiffusion.
      params: Trained weights, usually the EMA's.
      inputs: Dict with the conditioner's keys, arrays [B, ...]; check them first with
        `model.conditioner.check`, then see `encode_inputs`.
      rngs: Typed keys [B], one per sample.
      options: How to sample.
      given: Optional latents, mask, noise and negative inputs.
      gradient_guidance: Wraps the denoiser, after classifier-free guidance; see
        `diffusion.gradient_guidance`.

    Returns:
      Latents of unit variance, float32 [B, h, w, c].

    Raises:
      ValueError: If options are incompatible with each other or with the model.
    """
    known, strength = given.known, options.strength
    if known is None and (given.mask is not None or strength not in (None, 1.0)):
        raise ValueError("mask and strength need images to start from: give them too")
    points = _make_points(model, options)
    steps = len(points.alpha) - 1
    start = _first_step(1.0 if strength is None else strength, steps)
    if start == steps:
        return known

    evaluations, scales = guidance.plan_inputs(
        options.guidance.scale, model.conditioner, inputs, given.negative
    )
    denoiser = make_denoiser(
        model,
        params,
        [condition(model, params, batch) for batch in evaluations],
        scales,
        interval=guidance.timestep_interval(model.schedule, options.guidance.interval),
        rescale=options.guidance.rescale,
        gradient_guidance=gradient_guidance,
        tile=_tile_in_latents(model, options.tile),
    )

    noise_rngs, step_rngs = split_rngs(rngs)
    noise = given.noise
    if noise is None:
        noise = solve.normal(noise_rngs, _latent_shape(model, options, known))
    level = jax.tree.map(lambda values: values[start], points)
    if start:
        latents = add_noise(known, noise, level)
    else:
        latents = noise * grids.deviation(level)
    replacement = None
    if given.mask is not None:
        replacement = solve.replace_known(known, given.mask)
    return solve.sample(
        _make_sampler(model, options),
        denoiser,
        latents,
        points,
        step_rngs,
        start=start,
        replacement=replacement,
        temperature=options.temperature,
    )


def _make_sampler(model, options):
    if not isinstance(options.sampler, str):
        return options.sampler
    # The steps have the variance that the ELBO term of the training loss assumes.
    known = {"v_posterior": model.objective.v_posterior}
    taken = samplers.options_of(options.sampler)
    more = {key: value for key, value in known.items() if key in taken}
    return samplers.make_sampler(options.sampler, eta=options.eta, **more)


def _make_points(model, options):
    return grids.make_points(
        model.schedule,
        options.num_steps,
        options.spacing,
        options.final_level,
        options.shift,
    )


def _latent_shape(model, options, known):
    """Shape of one sample's latents: from `options.size`, or that of known latents."""
    if options.size is not None:
        return shape_of_latents(model, options.size)
    if known is None:
        raise ValueError("nothing says how large the images are: set the option size")
    return known.shape[1:]


def _tile_in_latents(model, tile):
    factor = model.first_stage.downsampling_factor
    if tile is not None and tile % factor:
        raise ValueError(
            f"tile={tile} is not a multiple of the first stage's factor {factor}; use "
            f"tile={-(-tile // factor) * factor}"
        )
    return None if tile is None else tile // factor


def split_rngs(
    rngs: Key[Array, " batch"],
) -> tuple[Key[Array, " batch"], Key[Array, " batch"]]:
    """Splits the keys of samples in two: for the initial noise and for the steps.

    Args:
      rngs: Typed keys [B].

    Returns:
      (keys of the initial noise, keys of the noise added in the steps), each [B].
    """
    first, later = jax.vmap(jax.random.split, out_axes=1)(rngs)
    return first, later


def _first_step(strength, steps):
    """Index of the first step to run; `steps` if none runs."""
    # Without the tolerance, rounding would make 28 steps of 0.29 * 100.
    running = int(strength * steps + 1e-6)
    if 0 <= strength <= 1 and (running or not strength):
        return steps - running
    raise ValueError(
        f"strength {strength} of {steps} steps must leave 1 to {steps} of them: give "
        f"{-(-1000 // steps) / 1000:g} to 1, or 0 for the image as it is, or more steps"
    )


def sample_images(
    model: LatentDiffusion,
    params: Mapping[str, Any],
    frozen: Mapping[str, Any],
    inputs: Mapping[str, Any],
    rngs: Key[Array, " batch"],
    options: SampleOptions = SampleOptions(),
    given: Given = Given(),
    gradient_guidance: GradientGuidance | None = None,
) -> Float[Array, "batch height width channels"]:
    """Draws images: from noise, or from given images with `strength` and `mask`.

    Args:
      model: LatentDiffusion.
      params: Trained weights, usually the EMA's.
      frozen: Weights and scaling factor of the first stage.
      inputs: Dict with the conditioner's keys, arrays [B, ...], before `encode_inputs`.
      rngs: Typed keys [B], one per sample.
      options: How to sample; `size` must be set if no images are given.
      given: Optional images, mask, noise and negative inputs; the negative inputs
        before `encode_inputs`, like `inputs`.
      gradient_guidance: See `sample_latents`.

    Returns:
      Images, float32 [B, H, W, C], about in [-1, 1]; not clipped.

    Raises:
      ValueError: See `sample_latents`.
    """
    latents = sample_latents_of_images(
        model, params, frozen, inputs, rngs, options, given, gradient_guidance
    )
    return make_codec(model, frozen, options.decode_tile).decode(latents)


def sample_latents_of_images(
    model: LatentDiffusion,
    params: Mapping[str, Any],
    frozen: Mapping[str, Any],
    inputs: Mapping[str, Any],
    rngs: Key[Array, " batch"],
    options: SampleOptions = SampleOptions(),
    given: Given = Given(),
    gradient_guidance: GradientGuidance | None = None,
) -> Float[Array, "batch height width channels"]:
    """Draws the latents that `sample_images` decodes.

    Args:
      model: LatentDiffusion.
      params: See `sample_images`, also for the arguments below.
      frozen: Weights and scaling factor of the first stage.
      inputs: Dict with the conditioner's keys, arrays [B, ...], before `encode_inputs`.
      rngs: Typed keys [B].
      options: How to sample.
      given: Images, mask, noise and negative inputs.
      gradient_guidance: See `sample_latents`.

    Returns:
      Latents of unit variance, float32 [B, h, w, c].

    Raises:
      ValueError: See `sample_latents`.
    """
    codec = make_codec(model, frozen, options.decode_tile)
    if given.known is not None:
        given = given._replace(known=codec.encode(given.known))
    if given.negative:
        encoded = model.conditioner.encode(inputs | given.negative, codec.encode)
        given = given._replace(negative={key: encoded[key] for key in given.negative})
    inputs = model.conditioner.encode(inputs, codec.encode)
    inputs = with_null_states(inputs, frozen)
    return sample_latents(
        model, params, inputs, rngs, options, given, gradient_guidance
    )


class Codec(NamedTuple):
    """The first stage's encode and decode with its weights bound.

    Attributes:
      encode: Images [B, H, W, C] -> latents [B, h, w, c] of unit variance.
      decode: Latents -> images.
    """

    encode: Callable
    decode: Callable


def make_codec(
    model: LatentDiffusion, frozen: Mapping[str, Any], tile: int | None = None
) -> Codec:
    """Makes the Codec of a model's first stage.

    Args:
      model: LatentDiffusion.
      frozen: Weights and scaling factor of the first stage.
      tile: Side in pixels of the tiles in which to encode and decode, to save memory
        (`tiling.tile_first_stage`); None for the whole image at once.

    Returns:
      A Codec.

    Raises:
      ValueError: If the first stage cannot work in tiles of this size.
    """
    ways = [functools.partial(way, model, frozen) for way in (encode, decode)]
    if tile is not None:
        factor = model.first_stage.downsampling_factor
        ways = tiling.tile_first_stage(*ways, factor, tile)
    return Codec(*ways)


def make_denoiser(
    model: LatentDiffusion,
    params: Mapping[str, Any],
    conditionings: Sequence[Any],
    scales: Sequence[Any] = (),
    *,
    interval: tuple[float, float] | None = None,
    rescale: float = 0.0,
    gradient_guidance: GradientGuidance | None = None,
    tile: int | None = None,
) -> Denoiser:
    """Makes the denoiser that samplers call.

    Args:
      model: LatentDiffusion.
      params: Trained weights.
      conditionings: Conditionings of the batch, from the one with the fewest conditions
        to the full one; a list of only the full one for no guidance.
      scales: Classifier-free guidance scale of each step from one conditioning to the
        next.
      interval: Lowest and highest timestep that is guided; None for all.
      rescale: See `guidance.guide`.
      gradient_guidance: Wraps the denoiser, after classifier-free guidance; see
        `diffusion.gradient_guidance`.
      tile: Side, in latents, of the tiles in which the backbone evaluates larger
        latents, see `tiling.tile_backbone`; None for all at once.

    Returns:
      (latents, point) -> (x0, noise), all [B, h, w, c]; point is scalar.
    """
    if gradient_guidance is None and getattr(model.backbone, "remat", False):
        # Only gradients need remat, and XLA cannot move code out of a sampler's loop
        # through it.
        model = dataclasses.replace(model, backbone=model.backbone.clone(remat=False))

    def backbone(latents, timesteps, *slots):
        slots = Conditioning(*slots)
        return apply_backbone(model, params, latents, timesteps, slots)

    if tile is not None:
        backbone = tiling.tile_backbone(backbone, tile, model.backbone.size_multiple)

    def network(conditioning):
        def output(latents, point):
            timesteps = jnp.broadcast_to(point.timestep, latents.shape[:1])
            return backbone(latents, timesteps, *conditioning)

        return output

    output = guidance.guide(network, conditionings, scales, interval, rescale)

    def predict(latents, point):
        out = output(latents, point)
        x0 = predict_x0(out, latents, point, model.objective.prediction_type)
        return x0, predict_noise(out, latents, point, model.objective.prediction_type)

    return gradient_guidance(predict) if gradient_guidance else predict


def invert_latents(
    model: LatentDiffusion,
    params: Mapping[str, Any],
    inputs: Mapping[str, Any],
    known: Float[Array, "batch height width channels"],
    options: SampleOptions = SampleOptions(),
    iterations: int = 1,
) -> Float[Array, "batch height width channels"]:
    """Finds the noise from which DDIM generates given latents; see `solve.invert`.

    Passed as `noise` to `sample_latents`, with the same options and no guidance, it
    reproduces the latents; with other inputs, it gives an edited version of them.

    Args:
      model: LatentDiffusion.
      params: Trained weights, usually the EMA's.
      inputs: As for `sample_latents`; the conditions that describe `known`.
      known: Clean latents, [B, h, w, c].
      options: Only its grid of noise levels and its tile are used.
      iterations: Evaluations of the network in each step; more are more accurate.

    Returns:
      Noise of about unit variance, float32 [B, h, w, c].

    Raises:
      ValueError: If an option is out of range.
    """
    points = _make_points(model, options)
    conditionings = [condition(model, params, inputs)]
    tile = _tile_in_latents(model, options.tile)
    denoiser = make_denoiser(model, params, conditionings, tile=tile)
    latents = solve.invert(denoiser, known, points, iterations=iterations)
    first = jax.tree.map(lambda values: values[0], points)
    return latents / grids.deviation(first)


def known_latents_mask(
    mask: Bool[Array, "batch height width 1"], factor: int
) -> Float[Array, "batch latent_height latent_width 1"]:
    """Returns a mask of the latents whose pixels are all known.

    Args:
      mask: bool [B, H, W, 1], true where the image is to be inpainted.
      factor: Downsampling factor f of the first stage.

    Returns:
      float32 [B, H / f, W / f, 1]: 1 where the latents are known.
    """
    size, height, width, _ = mask.shape
    cells = mask.reshape(size, height // factor, factor, width // factor, factor, 1)
    return 1.0 - cells.any(axis=(2, 4)).astype(jnp.float32)


def slerp(
    first: Float[Array, " batch *shape"],
    last: Float[Array, " batch *shape"],
    fraction: Num[Array, " batch"],
) -> Float[Array, " batch *shape"]:
    """Interpolates noise along the great circle (slerp), which keeps its variance.

    Shoemake 1985; for diffusion Song et al. 2021 (DDIM), Eq. 67.

    Args:
      first: Noise [B, ...].
      last: Noise [B, ...].
      fraction: Position between them, [B]; 0 gives `first`, 1 gives `last`.

    Returns:
      Noise [B, ...].
    """
    axes = tuple(range(1, first.ndim))
    fraction = fraction.reshape(-1, *[1] * len(axes))

    def length(x):
        return jnp.sqrt(jnp.sum(jnp.square(x), axis=axes, keepdims=True))

    product = jnp.sum(first * last, axis=axes, keepdims=True)
    cosine = jnp.clip(product / (length(first) * length(last)), -1.0, 1.0)
    angle = jnp.arccos(cosine)
    sine = jnp.sin(angle)
    # Almost parallel vectors are interpolated linearly.
    small = sine < 1e-4
    safe = jnp.where(small, 1.0, sine)
    ahead = jnp.where(small, fraction, jnp.sin(fraction * angle) / safe)
    behind = jnp.where(small, 1.0 - fraction, jnp.sin((1.0 - fraction) * angle) / safe)
    return behind * first + ahead * last
