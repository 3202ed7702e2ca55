"""The tables of the noise schedule that a CompVis checkpoint holds beside its weights.

They are redundant: reading compares them with the schedule, writing recomputes them.
"""

import ml_dtypes
import numpy as np

from ldm_jax.annotations import Float
from ldm_jax.diffusion.schedule import NoiseSchedule


def schedule_buffers(
    schedule: NoiseSchedule, v_posterior: float = 0.0
) -> dict[str, Float[np.ndarray, " steps"]]:
    """Computes the buffers of DDPM.register_schedule, in float64.

    Ho et al. 2020, Eq. 4 and 7; the posterior variance goes from their lower bound to
    their upper bound, beta, as `v_posterior` goes from 0 to 1.

    Args:
      schedule: NoiseSchedule.
      v_posterior: Blend of the posterior variance.

    Returns:
      Dict of name, as in BUFFERS -> float32 [T].
    """
    betas, signal = schedule.betas, schedule.alphas_cumprod
    before = np.append(1.0, signal[:-1])
    lower = betas * (1 - before) / (1 - signal)
    variance = (1 - v_posterior) * lower + v_posterior * betas
    tables = (
        betas,
        signal,
        before,
        np.sqrt(signal),
        np.sqrt(1 - signal),
        np.log(1 - signal),
        np.sqrt(1 / signal),
        np.sqrt(1 / signal - 1),
        variance,
        np.log(np.maximum(variance, 1e-20)),
        betas * np.sqrt(before) / (1 - signal),
        (1 - before) * np.sqrt(1 - betas) / (1 - signal),
    )
    return {
        name: table.astype(np.float32)
        for name, table in zip(BUFFERS, tables, strict=True)
    }


def same_numbers(
    stored: Float[np.ndarray, " steps"], computed: Float[np.ndarray, " steps"]
) -> bool:
    """Compares a table of a file with the exact one, as precisely as its type allows.

    Args:
      stored: Array of any floating type, such as half precision.
      computed: float64.

    Returns:
      Whether they have the same shape and differ by no more than rounding, or by a
      relative 1e-4 if the type is more precise than that.
    """
    if stored.shape != computed.shape:
        return False
    limits = ml_dtypes.finfo(stored.dtype)
    return np.allclose(
        stored.astype(np.float64),
        computed,
        rtol=max(1e-4, float(limits.eps)),
        atol=float(limits.smallest_subnormal),
    )


# In the order in which `schedule_buffers` computes them.
BUFFERS = (
    "betas",
    "alphas_cumprod",
    "alphas_cumprod_prev",
    "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod",
    "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod",
    "posterior_variance",
    "posterior_log_variance_clipped",
    "posterior_mean_coef1",
    "posterior_mean_coef2",
)
