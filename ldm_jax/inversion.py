"""From given latents back to the noise that they could be drawn from."""

import jax

from ldm_jax.denoiser import make_denoiser
from ldm_jax.diffusion import samplers
from ldm_jax.latent_diffusion import condition


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
      tile: See `generation.sample_latents`.

    Returns:
      Noise of about unit variance, float32 [B, h, w, c].

    Raises:
      ValueError: If an option is unknown or out of range.
    """
    points = samplers.make_points(
        model.schedule, num_steps, spacing, final_level, shift
    )
    told = [condition(model, params, inputs)]
    denoiser = make_denoiser(model, params, told, tile=tile)
    latents = samplers.invert(denoiser, known, points, iterations=iterations)
    first = jax.tree.map(lambda values: values[0], points)
    return latents / samplers.deviation(first)
