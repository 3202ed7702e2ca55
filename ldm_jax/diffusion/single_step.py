"""Samplers whose steps know nothing of earlier ones."""

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax.diffusion.posterior import posterior, posterior_variance
from ldm_jax.diffusion.sampler import Sampler, move, no_state, safe_sqrt


def ddpm(v_posterior=0.0):
    """Ancestral sampling (Ho et al. 2020, Algorithm 2), for any grid.

    Args:
      v_posterior: Variance of a step, from 0 (the posterior's) to 1 (beta).
    """

    def step(predict, latents, state, now, next, noise):
        x0, _ = predict(latents, now)
        coefficients = posterior(now, next)
        variance = posterior_variance(coefficients, v_posterior)
        # No noise on the way to clean data, whatever the variance there.
        std = jnp.where(next.sigma > 0, safe_sqrt(variance), 0.0)
        mean = coefficients.x0_weight * x0 + coefficients.latents_weight * latents
        return mean + std * noise, state

    return Sampler(init=no_state, step=step, order=1, stochastic=True)


def ddim(eta=0.0):
    """Denoising diffusion implicit models (Song et al. 2021, Eq. 12).

    Args:
      eta: Share of the ancestral noise: 0 is deterministic, 1 is ancestral.
    """

    def step(predict, latents, state, now, next, noise):
        x0, noise_pred = predict(latents, now)
        if not eta:
            return next.alpha * x0 + next.sigma * noise_pred, state
        std = eta * safe_sqrt(posterior(now, next).variance)
        direction = safe_sqrt(next.sigma**2 - std**2)
        return next.alpha * x0 + direction * noise_pred + std * noise, state

    return Sampler(init=no_state, step=step, order=1, stochastic=eta > 0)


def euler():
    """Euler's method on the probability flow ODE (Karras et al. 2022, Sec. 3).

    Its time is sigma / alpha and its slope the noise, which is DDIM's step. On the
    straight path of rectified flow so is z + (sigma_next - sigma) (noise - x0), Euler's
    step with the velocity (Liu et al. 2023, Eq. 1).
    """
    return ddim(eta=0.0)


def euler_ancestral(eta=1.0):
    """Euler's method down to a cleaner level, then noise up to the next one.

    Written in alpha and sigma it is DDIM with noise, which is ancestral at `eta` 1.

    Args:
      eta: Share of the ancestral noise.
    """
    return ddim(eta)


def heun():
    """Heun's method on the probability flow ODE (Karras et al. 2022, Algorithm 1).

    Every transition but the last is seen twice: once to predict, once to correct with
    the mean of the slopes at both ends. The last one is Euler's, as its end may be
    clean data, where the noise is not defined.
    """

    def init(latents):
        return {
            "correcting": jnp.bool_(False),
            "x0": jnp.zeros_like(latents),
            "noise": jnp.zeros_like(latents),
        }

    def step(predict, latents, state, now, next, noise):
        def first_or(saved, current):
            return jnp.where(state["correcting"], saved, current)

        x0, noise_pred = predict(latents, jax.tree.map(first_or, next, now))
        first_x0 = first_or(state["x0"], x0).astype(latents.dtype)
        first_noise = first_or(state["noise"], noise_pred).astype(latents.dtype)
        slope = (first_noise + noise_pred) / 2
        state = {
            "correcting": ~state["correcting"],
            "x0": first_x0,
            "noise": first_noise,
        }
        return move(first_x0, first_noise, slope, now, next), state

    def evaluations(num_steps):
        return np.append(np.full(num_steps - 1, 2), 1)

    return Sampler(init=init, step=step, order=2, evaluations=evaluations)
