"""Says in words when a run does not learn or has diverged."""

import math

from ldm_jax.errors import TrainingDiverged

# Fraction of the zero predictor's loss above which nothing has been learnt, and the
# number of steps before which that is normal.
PLATEAU_RATIO = 0.97
PLATEAU_STEPS = 300


def check_finite(first_step, window, last_saved):
    """Raises if a step's loss or gradient norm is not finite.

    Args:
      first_step: Number of updates done after the window's first step.
      window: List of dicts of host metrics, one per step.
      last_saved: Step of the last checkpoint, or None.

    Raises:
      TrainingDiverged: Naming the step, the metrics, the checkpoint and remedies.
    """
    for step, metrics in enumerate(window, start=first_step):
        bad = sorted(k for k, v in metrics.items() if not math.isfinite(v))
        if bad:
            kept = (
                f"the checkpoint of step {last_saved} is whole and kept"
                if last_saved
                else "no checkpoint had been saved yet"
            )
            raise TrainingDiverged(
                f"step {step}: {', '.join(bad)} is not finite; the run stops and "
                f"{kept}. Lower train.learning_rate, lengthen train.warmup_steps or "
                "set train.grad_clip=1.0, and run the same command in a new --workdir"
            )


def plateau_warning(step, metrics, warmup_steps, learning_rate):
    """Returns a warning where the loss is that of a network which outputs zeros.

    Args:
      step: Number of updates done.
      metrics: Averaged metrics; `loss_vs_zeros` is the loss over the zero predictor's.
      warmup_steps: Length of the warm-up, over which nothing is said.
      learning_rate: The current one, for the message.

    Returns:
      A sentence, or None.
    """
    ratio = metrics.get("loss_vs_zeros")
    if ratio is None or step < PLATEAU_STEPS + warmup_steps or ratio < PLATEAU_RATIO:
        return None
    return (
        f"warning: after {step} steps the loss is {ratio:.2f} of what a network that "
        "outputs only zeros gets: nothing has been learnt. Usual causes: a learning "
        f"rate far too low or too high (now {learning_rate:.2e}), images that do not "
        "vary, or latents that are not of unit variance (check scaling_factor)"
    )
