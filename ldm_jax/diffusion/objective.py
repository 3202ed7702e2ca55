"""The training loss of the denoiser, and what it draws and how it weighs it."""

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax.diffusion.posterior import (
    posterior,
    posterior_variance,
    previous_levels,
)
from ldm_jax.diffusion.schedule import PREDICTION_TYPES


def denoising_loss(
    output,
    target,
    vlb_weights,
    *,
    loss_type="l2",
    simple_weight=1.0,
    elbo_weight=0.0,
    logvar=0.0,
    level_weights=1.0,
    weights=None,
):
    """Compares what the network said with what it should have said.

    Ho et al. 2020, Eq. 14 (simple) and Eq. 12 (ELBO), with the log-variance per
    timestep of the original latent diffusion. With e the error of an example:
    simple_weight mean(w (e / exp(logvar) + logvar)) + elbo_weight mean(vlb_weight e)

    Args:
      output: Network output, [B, h, w, c].
      target: See `schedule.target_for`, same shape.
      vlb_weights: `elbo_weights` at the timesteps of the examples, [B].
      loss_type: Row of LOSS_TYPES; its error is averaged over all axes but the first.
      simple_weight: Weight of the simple term.
      elbo_weight: Weight of the ELBO term.
      logvar: Log-variance at the timesteps of the examples, [B] or scalar.
      level_weights: The weight w of the noise levels of the examples, [B] or scalar;
        see `min_snr_weights`.
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
    gamma = level_weights * (error / jnp.exp(logvar) + logvar)
    gamma = jnp.average(gamma, weights=weights)
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


def min_snr_weights(schedule, prediction_type, gamma):
    """Weights of the simple error that keep low noise from ruling the training.

    Hang et al. 2023, Sec. 3.4: min(SNR, gamma) for the error in x0, and what
    amounts to the same for the error in other outputs. As there, a level of pure noise
    weighs nothing.

    Args:
      schedule: NoiseSchedule.
      prediction_type: Row of schedule.PREDICTION_TYPES.
      gamma: Largest weight in terms of x0; the paper's is 5.

    Returns:
      float32 [T].
    """
    alpha, sigma = schedule.alpha, schedule.sigma
    # How much x0 moves with the output, in which it is linear.
    moves = PREDICTION_TYPES[prediction_type].x0(1.0, 0.0, alpha, sigma)
    weights = np.minimum((alpha / sigma) ** 2, gamma) * moves**2
    return np.broadcast_to(weights, alpha.shape).astype(np.float32)


def draw_timesteps(rng, size, num_timesteps, kind="uniform", mean=0.0, std=1.0):
    """Draws the timesteps that examples are trained at.

    Args:
      rng: Typed key.
      size: Number of examples B.
      num_timesteps: Number of noise levels T.
      kind: Row of TIMESTEP_SAMPLINGS.
      mean: Mean of the logit of t / T; more than 0 draws more noise. A sampler's
        `shift` of s is met by a mean of log s.
      std: Its standard deviation.

    Returns:
      int32 [B] in [0, T).
    """
    return TIMESTEP_SAMPLINGS[kind](rng, size, num_timesteps, mean, std)


def draw_noise(rng, shape, offset=0.0):
    """Draws the noise of training.

    Args:
      rng: Typed key.
      shape: [B, h, w, c].
      offset: Deviation of what is added to all pixels of a channel at once, so that the
        mean of an image is noised, too, and can be learned (Guttenberg 2023).

    Returns:
      float32, standard normal but for the offset.
    """
    noise = jax.random.normal(rng, shape)
    if not offset:
        return noise
    means = jax.random.normal(jax.random.fold_in(rng, 1), (shape[0], 1, 1, shape[-1]))
    return noise + offset * means


def _uniform(rng, size, num_timesteps, mean, std):
    return jax.random.randint(rng, (size,), 0, num_timesteps)


def _logit_normal(rng, size, num_timesteps, mean, std):
    # Esser et al. 2024, Eq. 19.
    time = jax.nn.sigmoid(mean + std * jax.random.normal(rng, (size,)))
    timesteps = (time * num_timesteps).astype(jnp.int32)
    return jnp.minimum(timesteps, num_timesteps - 1)


# Kinds of timesteps: (rng, size, T, mean, std) -> int32 [size] in [0, T).
TIMESTEP_SAMPLINGS = {"uniform": _uniform, "logit_normal": _logit_normal}

# Elementwise errors: difference -> error, same shape.
LOSS_TYPES = {"l1": jnp.abs, "l2": jnp.square}
