"""The denoiser: the network, guided and tiled, with its output read as x0 and noise."""

import functools

import jax.numpy as jnp

from ldm_jax import tiling
from ldm_jax.diffusion import guidance
from ldm_jax.diffusion.schedule import predict_noise, predict_x0


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
        `tiling.tile_unet`; None for the whole at once.

    Returns:
      (latents, point) -> (x0, noise), all [B, h, w, c]; point is scalar.
    """
    # Keys and values of the context do not change over a sampler's loop: the compiler
    # computes them once before it (benchmarks/RESULTS.md).
    unet = functools.partial(model.unet.apply, {"params": params["unet"]})
    if tile is not None:
        unet = tiling.tile_unet(unet, tile, model.unet.downsampling_factor)

    def network(conditioning):
        def output(latents, point):
            timesteps = jnp.broadcast_to(point.timestep, latents.shape[:1])
            return unet(latents, timesteps, *conditioning)

        return output

    output = guidance.guide(network, told, scales, interval, rescale)

    def predict(latents, point):
        out = output(latents, point)
        x0 = predict_x0(out, latents, point, model.prediction_type)
        return x0, predict_noise(out, latents, point, model.prediction_type)

    return steer(predict) if steer else predict
