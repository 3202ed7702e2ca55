"""The training loss of the denoiser: simple term, log-variance and ELBO term."""

import jax.numpy as jnp
import numpy as np

from ldm_jax.diffusion.schedule import posterior, posterior_variance, previous_levels


def denoising_loss(
    output,
    target,
    vlb_weights,
    *,
    loss_type="l2",
    simple_weight=1.0,
    elbo_weight=0.0,
    logvar=0.0,
    weights=None,
):
    """Compares what the network said with what it should have said.

    Ho et al. 2020, Eq. 14 (simple) and Eq. 12 (ELBO), with the log-variance per
    timestep of the original latent diffusion. With e the error of an example:
    simple_weight mean(e / exp(logvar) + logvar) + elbo_weight mean(vlb_weight e)

    Args:
      output: Network output, [B, h, w, c].
      target: See `schedule.target_for`, same shape.
      vlb_weights: `elbo_weights` at the timesteps of the examples, [B].
      loss_type: Row of LOSS_TYPES; its error is averaged over all axes but the first.
      simple_weight: Weight of the simple term.
      elbo_weight: Weight of the ELBO term.
      logvar: Log-variance at the timesteps of the examples, [B] or scalar.
      weights: Weight of each example in the means, [B]; None for equal ones.

    Returns:
      (loss, metrics): float32 scalar, and a dict of the float32 scalars "loss",
      "loss_simple", "loss_vlb" and "loss_vs_zeros" (the simple loss over that of a
      network which outputs zeros: 1 is the plateau of a model that learns nothing).
    """
    axes = tuple(range(1, target.ndim))
    difference = output.astype(jnp.float32) - target
    error = LOSS_TYPES[loss_type](difference).mean(axis=axes)
    error_of_zeros = LOSS_TYPES[loss_type](target).mean(axis=axes)
    loss_simple = jnp.average(error, weights=weights)
    gamma = jnp.average(error / jnp.exp(logvar) + logvar, weights=weights)
    loss_vlb = jnp.average(error * vlb_weights, weights=weights)
    loss = simple_weight * gamma + elbo_weight * loss_vlb
    return loss, {
        "loss": loss,
        "loss_simple": loss_simple,
        "loss_vlb": loss_vlb,
        "loss_vs_zeros": loss_simple / jnp.average(error_of_zeros, weights=weights),
    }


def elbo_weights(schedule, prediction_type, v_posterior=0.0):
    """Weights that turn the simple error into the terms of the ELBO.

    For "noise" those of Ho et al. 2020, Eq. 12. For "x0" those of the original latent
    diffusion to the letter, whose missing bracket, 2 * 1 - alphas_cumprod for
    2 (1 - alphas_cumprod), its checkpoints were trained with. 1 for the other types,
    as the original's successors have it. The first weight, which would be infinite,
    repeats the second.

    Args:
      schedule: NoiseSchedule.
      prediction_type: Row of schedule.PREDICTION_TYPES.
      v_posterior: Blend of the posterior variance, see `posterior_variance`.

    Returns:
      float32 [T].
    """
    signal, betas = schedule.alphas_cumprod, schedule.betas
    if prediction_type == "noise":
        coefficients = posterior(schedule.table, previous_levels(schedule))
        variance = posterior_variance(coefficients, v_posterior)
        variance[0] = np.inf
        weights = betas**2 / (2 * variance * (1 - betas) * (1 - signal))
    elif prediction_type == "x0":
        weights = 0.5 * np.sqrt(signal) / (2.0 * 1 - signal)
    else:
        weights = np.ones_like(betas)
    weights[0] = weights[1]
    return weights.astype(np.float32)


# Elementwise errors: difference -> error, same shape.
LOSS_TYPES = {"l1": jnp.abs, "l2": jnp.square}
