"""What a sampler is, and the arithmetic that several of them share."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np


def _once(num_steps):
    return np.ones(num_steps, int)


class Sampler(NamedTuple):
    """One way to take latents from a noise level to the next.

    Attributes:
      init: latents -> state, any pytree.
      step: (predict, latents, state, now, next, noise) -> (latents, state); `noise` is
        standard normal times temperature.
      order: Order of convergence on a grid uniform in log-SNR.
      evaluations: num_steps -> how many times each transition is stepped, int
        [num_steps], for samplers that evaluate the network several times in one.
      stochastic: Whether steps use `noise`.
    """

    init: Callable
    step: Callable
    order: int
    evaluations: Callable = _once
    stochastic: bool = False


def no_state(latents):
    """The `init` of samplers that remember nothing."""
    return ()


def safe_sqrt(value):
    """Square root where rounding may leave a difference of equals below zero."""
    return jnp.sqrt(jnp.maximum(value, 0.0))


def move(x0, noise_pred, slope, now, next):
    """Takes latents to the next level along a slope of the sampler's making.

    With sigma / alpha as time, the probability flow ODE's slope is the noise (Karras et
    al. 2022, Sec. 3); DDIM's step (Song et al. 2021, Eq. 13) has the predicted one.
    Where there is no signal yet, that time is infinite and the step is DDIM's.

    Args:
      x0: Prediction at the latents to be moved, [B, ...].
      noise_pred: Prediction there; with x0 it says what the latents are.
      slope: Noise to move along, [B, ...].
      now: SchedulePoint of the latents.
      next: SchedulePoint to move to.

    Returns:
      Latents at `next`, [B, ...].
    """
    signal = now.alpha > 0
    time = jnp.where(signal, now.sigma / now.alpha, 0.0)
    slope = jnp.where(signal, slope, noise_pred)
    return next.alpha * (x0 + time * (noise_pred - slope)) + next.sigma * slope
