"""The interface of samplers: pure functions for a step between two noise levels.

It is separate from the table of samplers, so that files of samplers can import it.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ldm_jax.annotations import Array
from ldm_jax.diffusion.schedule import SchedulePoint

# (latents, point) -> (x0, noise), all arrays [B, ...]; point is scalar.
Denoiser = Callable[[Array, SchedulePoint], tuple[Array, Array]]


def _once(num_steps):
    return np.ones(num_steps, int)


class SamplingMethod(NamedTuple):
    """A sampler: moves latents from one noise level to the next.

    Its functions are pure. `predict(latents, point) -> (x0, noise)` is the denoiser,
    guidance included; `now` and `next` are scalar SchedulePoints. `solve.sample` does
    everything else: the loop, randomness, the start index, temperature and the
    replacement of known latents.

    A step must return finite latents from pure noise (alpha 0) and to clean data (sigma
    0), where log-SNR and half of the usual divisions are infinite. Latents and state
    keep their shapes from step to step; `solve.sample` casts both back to their initial
    types, as a denoiser in bfloat16 may return others.

    Attributes:
      init: latents -> state, any pytree.
      step: (predict, latents, state, now, next, noise) -> (latents, state); `noise` is
        standard normal times temperature.
      order: Order of convergence on a grid uniform in log-SNR.
      evaluations: num_steps -> how often `step` is called for each transition, int
        [num_steps], for samplers with several network evaluations per transition.
      stochastic: Whether steps use `noise`.
    """

    init: Callable
    step: Callable
    order: int
    evaluations: Callable = _once
    stochastic: bool = False
