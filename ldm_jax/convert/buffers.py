"""The schedule's tables that the original keeps in its checkpoints."""

import numpy as np

NAMES = (
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


def schedule_buffers(schedule, v_posterior=0.0):
    """Computes the tables of DDPM.register_schedule in float64.

    Args:
      schedule: NoiseSchedule.
      v_posterior: Blend of the posterior variance.

    Returns:
      Dict of name -> float32 [T].
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
        for name, table in zip(NAMES, tables, strict=True)
    }
