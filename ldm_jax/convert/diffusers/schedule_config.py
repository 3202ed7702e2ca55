"""diffusers' scheduler_config.json and our config section `schedule`, either way."""

from collections.abc import Mapping
from typing import Any

from ldm_jax.errors import ConversionError


def schedule_section(config: Mapping[str, Any]) -> dict[str, Any]:
    """Reads the noise schedule and what is predicted.

    Args:
      config: scheduler_config.json of any scheduler.

    Returns:
      Config section `schedule`.

    Raises:
      ConversionError: If they are not supported.
    """
    kind = config.get("beta_schedule", "linear")
    prediction = config.get("prediction_type", "epsilon")
    if kind not in _SCHEDULES or config.get("trained_betas") is not None:
        raise ConversionError(f"beta_schedule={kind!r} is not supported")
    if prediction not in _PREDICTIONS:
        raise ConversionError(f"prediction_type={prediction!r} is not supported")
    return dict(
        kind=_SCHEDULES[kind],
        num_train_timesteps=config.get("num_train_timesteps", 1000),
        beta_start=config.get("beta_start", 1e-4),
        beta_end=config.get("beta_end", 2e-2),
        zero_terminal_snr=config.get("rescale_betas_zero_snr", False),
        prediction_type=_PREDICTIONS[prediction],
    )


def schedule_config(section: Mapping[str, Any]) -> dict[str, Any]:
    """Writes the config of a DDIMScheduler; the inverse of `schedule_section`.

    Args:
      section: Config section `schedule`.

    Returns:
      scheduler_config.json.

    Raises:
      ConversionError: If diffusers does not have such a schedule.
    """
    kinds = {ours: theirs for theirs, ours in _SCHEDULES.items()}
    predictions = {ours: theirs for theirs, ours in _PREDICTIONS.items()}
    kind = section.get("kind", "scaled_linear")
    prediction = section.get("prediction_type", "noise")
    if kind not in kinds or prediction not in predictions:
        raise ConversionError(
            f"diffusers' DDIM does not know the schedule {kind} with {prediction}"
        )
    zero = section.get("zero_terminal_snr", False)
    return dict(
        _class_name="DDIMScheduler",
        num_train_timesteps=section.get("num_train_timesteps", 1000),
        beta_schedule=kinds[kind],
        beta_start=section.get("beta_start", 0.0015),
        beta_end=section.get("beta_end", 0.0195),
        prediction_type=predictions[prediction],
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        # A model that ends in pure noise is sampled from there.
        timestep_spacing="trailing" if zero else "leading",
        rescale_betas_zero_snr=zero,
    )


# Their names of noise schedules and of what is predicted -> ours.
_SCHEDULES = {
    "scaled_linear": "scaled_linear",
    "linear": "linear",
    "squaredcos_cap_v2": "cosine",
}
_PREDICTIONS = {"epsilon": "noise", "sample": "x0", "v_prediction": "v"}
