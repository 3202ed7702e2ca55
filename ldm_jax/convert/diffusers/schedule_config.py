"""Converts diffusers' scheduler_config.json to our `schedule` and `sample`, and back.

A scheduler of diffusers defines two things: the noise levels that a model was trained
on, and how it is sampled. The former are read exactly or raise an error; of the latter
we use what our samplers have, and the file itself is kept to be written back.
"""

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from ldm_jax.diffusion.grids import SPACINGS
from ldm_jax.errors import ConversionError


class _Scheduler(NamedTuple):
    """A class of schedulers.

    Attributes:
      sampler: Our sampler with the same steps; None if we have none.
      defaults: Its defaults for missing fields, if they are not those of `_DDIM`.
    """

    sampler: str | None = None
    defaults: Mapping[str, Any] = MappingProxyType({})


_DDIM = dict(
    num_train_timesteps=1000,
    beta_schedule="linear",
    beta_start=1e-4,
    beta_end=2e-2,
    prediction_type="epsilon",
    rescale_betas_zero_snr=False,
    set_alpha_to_one=False,
    steps_offset=0,
    timestep_spacing="linspace",
    clip_sample=False,
    skip_prk_steps=True,
    algorithm_type="dpmsolver++",
    use_karras_sigmas=False,
)
_LEADING = dict(timestep_spacing="leading")
_LATENT = dict(beta_start=0.00085, beta_end=0.012)
_CONSISTENCY = _LATENT | dict(beta_schedule="scaled_linear", set_alpha_to_one=True)

# Schedulers with a training schedule of betas; all others are errors.
SCHEDULERS = MappingProxyType(
    {
        "DDIMScheduler": _Scheduler(
            "ddim", _LEADING | dict(set_alpha_to_one=True, clip_sample=True)
        ),
        "DDPMScheduler": _Scheduler("ddpm", _LEADING | dict(clip_sample=True)),
        "PNDMScheduler": _Scheduler("plms", _LEADING | dict(skip_prk_steps=False)),
        "LMSDiscreteScheduler": _Scheduler(),
        "EulerDiscreteScheduler": _Scheduler("euler"),
        "EulerAncestralDiscreteScheduler": _Scheduler("euler_ancestral"),
        "HeunDiscreteScheduler": _Scheduler("heun", _LATENT),
        "DPMSolverMultistepScheduler": _Scheduler("dpmpp_2m"),
        "DPMSolverSinglestepScheduler": _Scheduler(),
        "DPMSolverSDEScheduler": _Scheduler(None, _LATENT),
        "DEISMultistepScheduler": _Scheduler(),
        "UniPCMultistepScheduler": _Scheduler("unipc"),
        "SASolverScheduler": _Scheduler(),
        "KDPM2DiscreteScheduler": _Scheduler(None, _LATENT),
        "KDPM2AncestralDiscreteScheduler": _Scheduler(None, _LATENT),
        "LCMScheduler": _Scheduler(None, _LEADING | _CONSISTENCY),
        "TCDScheduler": _Scheduler(None, _LEADING | _CONSISTENCY),
    }
)


def schedule_section(config: Mapping[str, Any]) -> dict[str, Any]:
    """Reads the noise schedule and the prediction type.

    Args:
      config: scheduler_config.json; {} is that of a DDIMScheduler.

    Returns:
      Config section `schedule`.

    Raises:
      ConversionError: If they are not supported.
    """
    config = _complete(config)
    kind, prediction = config["beta_schedule"], config["prediction_type"]
    if kind not in _SCHEDULES:
        raise ConversionError(
            f"beta_schedule={kind!r} of {config['_class_name']} is not supported: "
            + ", ".join(_SCHEDULES)
        )
    if prediction not in _PREDICTIONS:
        raise ConversionError(
            f"prediction_type={prediction!r} of {config['_class_name']} is not "
            "supported: " + ", ".join(_PREDICTIONS)
        )
    return dict(
        kind=_SCHEDULES[kind],
        num_train_timesteps=config["num_train_timesteps"],
        beta_start=config["beta_start"],
        beta_end=config["beta_end"],
        zero_terminal_snr=config["rescale_betas_zero_snr"],
        prediction_type=_PREDICTIONS[prediction],
    )


def _complete(config):
    """Fills in the class's defaults; raises an error if it is no schedule of betas."""
    name = config.get("_class_name", "DDIMScheduler")
    if name not in SCHEDULERS:
        raise ConversionError(
            f"the scheduler {name} is not supported: its models' noise levels are none "
            f"of {', '.join(_SCHEDULES)}"
        )
    for field, off in _OFF.items():
        if config.get(field, off) != off:
            raise ConversionError(
                f"{field} of {name} is not supported: its noise levels are not those "
                "of beta_schedule"
            )
    for field in config:
        known = field in _DDIM or field in _OFF or field in _SAMPLING
        if not known and not field.startswith("_"):
            raise ConversionError(
                f"{field}={config[field]!r} of {name} is not supported: what it does "
                "is not known here; remove it from scheduler_config.json if it changes "
                "nothing"
            )
    return _DDIM | dict(SCHEDULERS[name].defaults) | {"_class_name": name} | config


def sample_section(config: Mapping[str, Any]) -> dict[str, Any]:
    """Reads how a model is sampled.

    Args:
      config: scheduler_config.json.

    Returns:
      Fields of the config section `sample`.

    Raises:
      ConversionError: If the scheduler is not supported.
    """
    config = _complete(config)
    name = config["_class_name"]
    sampler = SCHEDULERS[name].sampler or "ddim"
    if name == "DPMSolverMultistepScheduler":
        sampler = _SOLVERS.get(config["algorithm_type"], "ddim")
    if name == "PNDMScheduler" and not config["skip_prk_steps"]:
        sampler = "ddim"
    spacing = config["timestep_spacing"]
    if config["use_karras_sigmas"]:
        spacing = "karras"
    elif spacing == "linspace" and name in _OPEN:
        spacing = "linspace_open"
    if spacing not in SPACINGS:
        raise ConversionError(
            f"timestep_spacing={spacing!r} of {name} is not supported: leading, "
            "trailing, linspace"
        )
    # All other schedulers end at clean data.
    choice = name in ("DDIMScheduler", "PNDMScheduler")
    clean = config["set_alpha_to_one"] or not choice
    return dict(
        sampler=sampler, spacing=spacing, final_level="clean" if clean else "first"
    )


def unlike(config: Mapping[str, Any]) -> Iterator[str]:
    """Finds the options of a scheduler that our samplers do not follow.

    Args:
      config: scheduler_config.json.

    Yields:
      "field=value" of each.

    Raises:
      ConversionError: If the scheduler is not supported.
    """
    config = _complete(config)
    name = config["_class_name"]
    algorithm = config["algorithm_type"]
    solver = name == "DPMSolverMultistepScheduler" and algorithm not in _SOLVERS
    prk = name == "PNDMScheduler" and not config["skip_prk_steps"]
    if SCHEDULERS[name].sampler is None or solver or prk:
        detail = f" with algorithm_type={algorithm}" if solver else ""
        yield f"the steps of {name}{detail}"
    if config["clip_sample"]:
        yield "clip_sample=True"
    if config["timestep_spacing"] == "leading" and config["steps_offset"] != 1:
        yield f"steps_offset={config['steps_offset']}"
    for field, usual in _SAMPLING.items():
        if usual is not None and config.get(field, usual) != usual:
            yield f"{field}={config[field]}"


def schedule_config(
    section: Mapping[str, Any], sample: Mapping[str, Any] = MappingProxyType({})
) -> dict[str, Any]:
    """Writes the config of a scheduler; the inverse of `schedule_section`.

    Args:
      section: Config section `schedule`.
      sample: Config section `sample`.

    Returns:
      scheduler_config.json, of a PNDMScheduler for the sampler "plms", of a
      DDIMScheduler for others.

    Raises:
      ConversionError: If diffusers does not have such a schedule.
    """
    kinds = {ours: theirs for theirs, ours in _SCHEDULES.items()}
    predictions = {ours: theirs for theirs, ours in _PREDICTIONS.items()}
    kind = section.get("kind", "scaled_linear")
    prediction = section.get("prediction_type", "noise")
    if kind not in kinds or prediction not in predictions:
        raise ConversionError(
            f"schedule.kind={kind} with prediction_type={prediction} cannot be said in "
            f"diffusers' format: {', '.join(kinds)} with {', '.join(predictions)} can"
        )
    offset = section.get("cosine_s", 0.008)
    if kind == "cosine" and offset != 0.008:
        raise ConversionError(
            f"schedule.cosine_s={offset} cannot be said in diffusers' format, whose "
            "squaredcos_cap_v2 has 0.008"
        )
    zero = section.get("zero_terminal_snr", False)
    # Models whose schedule ends in pure noise must be sampled from there.
    trailing = sample.get("spacing", "trailing" if zero else "uniform") == "trailing"
    spacing = SPACINGS["trailing" if trailing else "leading"]
    final_level = sample.get("final_level") or spacing.final_level
    result = dict(
        _class_name="DDIMScheduler",
        num_train_timesteps=section.get("num_train_timesteps", 1000),
        beta_schedule=kinds[kind],
        beta_start=section.get("beta_start", 0.0015),
        beta_end=section.get("beta_end", 0.0195),
        prediction_type=predictions[prediction],
        set_alpha_to_one=final_level == "clean",
        steps_offset=1,
        timestep_spacing="trailing" if trailing else "leading",
    )
    known = prediction != "x0" and not zero
    if sample.get("sampler") == "plms" and known:
        return result | dict(_class_name="PNDMScheduler", skip_prk_steps=True)
    return result | dict(clip_sample=False, rescale_betas_zero_snr=zero)


# diffusers' names of noise schedules, prediction types and solvers -> ours.
_SCHEDULES = {
    "scaled_linear": "scaled_linear",
    "linear": "linear",
    "squaredcos_cap_v2": "cosine",
}
_PREDICTIONS = {"epsilon": "noise", "sample": "x0", "v_prediction": "v"}
_SOLVERS = {"dpmsolver++": "dpmpp_2m", "sde-dpmsolver++": "dpmpp_2m_sde"}
# Schedulers whose linspace does not visit the first level.
_OPEN = ("DPMSolverMultistepScheduler", "UniPCMultistepScheduler")

# Fields that change the noise levels -> the value that does not.
_OFF = dict(
    trained_betas=None,
    use_flow_sigmas=False,
    use_dynamic_shifting=False,
    shift_terminal=None,
    sigma_min=None,
    sigma_max=None,
    timestep_type="discrete",
)
# Fields that only affect sampling -> the value of our samplers; None if it has no
# effect, or only if another field is set.
_SAMPLING = dict(
    clip_sample_range=None,
    disable_corrector=None,
    dynamic_thresholding_ratio=None,
    euler_at_final=False,
    final_sigmas_type="zero",
    flow_shift=None,
    interpolation_type="linear",
    lambda_min_clipped=None,
    lower_order_final=None,
    noise_sampler_seed=None,
    original_inference_steps=None,
    predict_x0=None,
    predictor_order=None,
    corrector_order=None,
    sample_max_value=None,
    solver_order=2,
    solver_p=None,
    solver_type=None,
    tau_func=None,
    thresholding=False,
    time_shift_type=None,
    timestep_scaling=None,
    use_beta_sigmas=False,
    use_exponential_sigmas=False,
    use_lu_lambdas=False,
    variance_type=None,
)
