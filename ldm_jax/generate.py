"""Draws samples with a latent diffusion model: latents, and images of them.

From noise, from an image (image to image, SDEdit: Meng et al. 2022) or around the part
of one that is kept (inpainting with any model: Song et al. 2021, App. I.2).
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ldm_jax import tiling
from ldm_jax.conditioners import Conditioning
from ldm_jax.diffusion import grids, guidance, samplers, solve
from ldm_jax.diffusion.schedule import add_noise, predict_noise, predict_x0
from ldm_jax.latent_diffusion import apply_backbone, condition, decode, encode


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
        are larger, best the size it was trained on (`tiling.tile_backbone`); None for
        the whole at once.
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
        # The variance of the steps is that of the training loss's bound.
        more = {"v_posterior": model.v_posterior} if sampler == "ddpm" else {}
        sampler = samplers.make_sampler(sampler, eta=eta, **more)
    points = grids.make_points(model.schedule, num_steps, spacing, final_level, shift)
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
        noise = solve.normal(noise_rngs, latent_shape)
    level = jax.tree.map(lambda values: values[start], points)
    if start:
        latents = add_noise(known, noise, level)
    else:
        latents = noise * grids.deviation(level)
    return solve.sample(
        sampler,
        denoiser,
        latents,
        points,
        step_rngs,
        start=start,
        hold=None if mask is None else solve.hold_known(known, mask),
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


def sample_images(
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
    codec = make_codec(model, frozen, decode_tile)
    known = None if images is None else codec.encode(images)
    if negative:
        encoded = model.conditioner.encode(inputs | negative, codec.encode)
        negative = {key: encoded[key] for key in negative}
    inputs = model.conditioner.encode(inputs, codec.encode)
    latents = sample_latents(
        model, params, inputs, rngs, negative=negative, known=known, **options
    )
    return codec.decode(latents)


class Codec(NamedTuple):
    """The first stage with its weights: `encode` and `decode` of the whole model."""

    encode: Callable
    decode: Callable


def make_codec(model, frozen, tile=None):
    """Makes a Codec.

    Args:
      model: LatentDiffusion.
      frozen: Weights and scaling factor of the first stage.
      tile: Side of the tiles, in pixels, in which it works; None for the whole at once.

    Returns:
      A Codec.
    """
    ways = [functools.partial(way, model, frozen) for way in (encode, decode)]
    if tile is not None:
        factor = model.first_stage.downsampling_factor
        ways = tiling.tile_first_stage(*ways, factor, tile)
    return Codec(*ways)


def make_denoiser(
    model,
    params,
    told,
    scales=(),
    *,
    interval=None,
    rescale=0.0,
    steer=None,
    tile=None,
):
    """Makes the denoiser that samplers call.

    Args:
      model: LatentDiffusion.
      params: Trained weights.
      told: Conditionings of the batch, from the one that tells least to the whole one;
        a list of the whole one alone for no guidance.
      scales: Classifier-free guidance scale of each step between them.
      interval: Lowest and highest timestep that is guided; None for all.
      rescale: See `guidance.guide`.
      steer: Maps the guided denoiser to another, see `diffusion.steering`.
      tile: Side of the tiles in which the U-Net evaluates larger latents, see
        `tiling.tile_backbone`; None for the whole at once.

    Returns:
      (latents, point) -> (x0, noise), all [B, h, w, c]; point is scalar.
    """

    # Keys and values of the context do not change over a sampler's loop: the compiler
    # computes them once before it (benchmarks/RESULTS.md).
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

    output = guidance.guide(network, told, scales, interval, rescale)

    def predict(latents, point):
        out = output(latents, point)
        x0 = predict_x0(out, latents, point, model.prediction_type)
        return x0, predict_noise(out, latents, point, model.prediction_type)

    return steer(predict) if steer else predict


def invert_latents(
    model,
    params,
    inputs,
    known,
    *,
    num_steps=50,
    spacing="uniform",
    final_level=None,
    shift=1.0,
    iterations=1,
    tile=None,
):
    """Finds the noise from which DDIM draws given latents; see `samplers.invert`.

    Given as `noise` to `sample_latents`, with the same grid and no guidance, it leads
    back to them; with other inputs, to what else these might be.

    Args:
      model: LatentDiffusion.
      params: Trained weights, usually the EMA's.
      inputs: As for `sample_latents`; what describes `known`.
      known: Clean latents, [B, h, w, c].
      num_steps: Number of steps of the grid.
      spacing: Row of SPACINGS.
      final_level: Where the grid ends, see `samplers.make_points`.
      shift: Factor on the noise levels, see there.
      iterations: Evaluations of the network in each step; more find it more exactly.
      tile: See `generate.sample_latents`.

    Returns:
      Noise of about unit variance, float32 [B, h, w, c].

    Raises:
      ValueError: If an option is unknown or out of range.
    """
    points = grids.make_points(model.schedule, num_steps, spacing, final_level, shift)
    told = [condition(model, params, inputs)]
    denoiser = make_denoiser(model, params, told, tile=tile)
    latents = solve.invert(denoiser, known, points, iterations=iterations)
    first = jax.tree.map(lambda values: values[0], points)
    return latents / grids.deviation(first)


def hold_cells(hole, factor):
    """Finds the latents of which every pixel is known.

    Args:
      hole: bool [B, H, W, 1], true where the picture is to be filled.
      factor: Downsampling factor f of the first stage.

    Returns:
      float32 [B, H / f, W / f, 1]: 1 where the latents are held.
    """
    size, height, width, _ = hole.shape
    cells = hole.reshape(size, height // factor, factor, width // factor, factor, 1)
    return 1.0 - cells.any(axis=(2, 4)).astype(jnp.float32)


def slerp(first, last, share):
    """Interpolates noise along the great circle, which keeps its variance.

    Shoemake 1985; for diffusion Song et al. 2021 (DDIM), Eq. 67.

    Args:
      first: [B, ...].
      last: [B, ...].
      share: [B]; 0 gives `first`, 1 gives `last`.

    Returns:
      [B, ...].
    """
    axes = tuple(range(1, first.ndim))
    share = share.reshape(-1, *[1] * len(axes))

    def length(x):
        return jnp.sqrt(jnp.sum(jnp.square(x), axis=axes, keepdims=True))

    product = jnp.sum(first * last, axis=axes, keepdims=True)
    cosine = jnp.clip(product / (length(first) * length(last)), -1.0, 1.0)
    angle = jnp.arccos(cosine)
    sine = jnp.sin(angle)
    # Almost parallel ones are mixed along the line.
    small = sine < 1e-4
    safe = jnp.where(small, 1.0, sine)
    ahead = jnp.where(small, share, jnp.sin(share * angle) / safe)
    behind = jnp.where(small, 1.0 - share, jnp.sin((1.0 - share) * angle) / safe)
    return behind * first + ahead * last
