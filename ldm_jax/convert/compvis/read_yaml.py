"""The original's YAML files, read as our configs.

Structure that a YAML would give is deduced from the weights where there is none, in the
YAML's own terms, so that one path reads both.
"""

import pathlib

import yaml

from ldm_jax.convert.compvis import deduce, options
from ldm_jax.convert.compvis.conditions import deduce_cond_stage, read_conditions
from ldm_jax.convert.compvis.deduce import published_heads
from ldm_jax.errors import ConversionError
from ldm_jax.weights.state_dict import select

UNET, FIRST_STAGE = "model.diffusion_model.", "first_stage_model."
COND_STAGE = "cond_stage_model."
PREDICTION_NAMES = {"eps": "noise", "x0": "x0", "v": "v"}

# The original's defaults of LatentDiffusion, those that we read.
_DEFAULTS = dict(
    timesteps=1000,
    beta_schedule="linear",
    linear_start=1e-4,
    linear_end=2e-2,
    cosine_s=8e-3,
    parameterization="eps",
    loss_type="l2",
    l_simple_weight=1.0,
    original_elbo_weight=0.0,
    v_posterior=0.0,
    logvar_init=0.0,
    learn_logvar=False,
    scale_factor=1.0,
    scale_by_std=False,
    use_ema=True,
)


def read_yaml(path):
    """Reads the `model` of an original's YAML.

    Args:
      path: The file.

    Returns:
      Dict of "target" and "params".

    Raises:
      ConversionError: If it cannot be read or describes no model.
    """
    try:
        found = yaml.safe_load(pathlib.Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        text = " ".join(str(error).split())
        raise ConversionError(f"cannot read {path}: {text}") from error
    model = found.get("model") if isinstance(found, dict) else None
    if not isinstance(model, dict) or not isinstance(model.get("params"), dict):
        raise ConversionError(f"{path} has no model.params: give the original's YAML")
    return model


def deduce_params(weights, image_size=None):
    """Deduces from its weights what a YAML's `model.params` would say.

    Args:
      weights: Dict of key -> array with a shape.
      image_size: Side of the images; that of the published model of this shape, or
        else 256, by default.

    Returns:
      Dict; without "first_stage_config" if the weights hold no first stage.

    Raises:
      ConversionError: If they are not a whole model or first stage of the original's.
    """
    if not any(key.startswith(UNET) for key in weights):
        return deduce.first_stage_options(weights, resolution=image_size or 256)
    unet = deduce.unet_options(weights, UNET)
    stable = unet["model_channels"] == 320 and unet.get("context_dim") in (768, 1024)
    known = published_heads(unet)
    image_size = image_size or (known.image_size if known else 256)
    params = {"unet_config": {"params": unet}}
    if any(key.startswith(FIRST_STAGE) for key in weights):
        options = deduce.first_stage_options(weights, FIRST_STAGE, 256)
        params["first_stage_config"] = {"params": options}
        factor = 2 ** (len(options["ddconfig"]["ch_mult"]) - 1)
    else:
        factor = 1
    unet["image_size"] = image_size // factor
    cond = select(weights, COND_STAGE)
    params["cond_stage_config"] = deduce_cond_stage(cond, unet)
    params["learn_logvar"] = "logvar" in weights
    if stable:
        # Weights without tables are always of this schedule.
        params |= dict(linear_start=0.00085, linear_end=0.012, scale_factor=0.18215)
    if "betas" in weights:
        params |= _deduce_schedule(weights["betas"])
    elif not stable:
        raise ConversionError(
            "the weights hold no noise schedule (betas): give the YAML with --config"
        )
    return params


def _deduce_schedule(betas):
    section = deduce.schedule_section(betas)
    if section is None:
        return {"unknown_betas": True}
    names = {ours: theirs for theirs, ours in deduce.SCHEDULE_NAMES.items()}
    return dict(
        beta_schedule=names[section["kind"]],
        timesteps=section["num_train_timesteps"],
        linear_start=section["beta_start"],
        linear_end=section["beta_end"],
    )


def with_heads(unet, num_heads=None, head_channels=None, log=print):
    """Decides the number of heads: as asked for, as published, or as configured.

    Args:
      unet: The original's UNetModel options.
      num_heads: Heads everywhere, if asked for.
      head_channels: Channels of a head everywhere, if asked for.
      log: Called with a line where the published heads win over the options.

    Returns:
      The options with "num_heads" or "num_head_channels".

    Raises:
      ConversionError: If nothing says how many there are.
    """
    given = {
        key: unet[key] for key in ("num_heads", "num_head_channels") if key in unet
    }
    given = {key: value for key, value in given.items() if value not in (None, -1)}
    known = published_heads(unet)
    if num_heads or head_channels:
        chosen = {"num_heads": num_heads} if num_heads else {}
        chosen |= {"num_head_channels": head_channels} if head_channels else {}
    elif known and (known.always or not given):
        chosen = known.heads
        if given and given != chosen:
            log(
                f"heads: {_words(chosen)}, as the published model of this shape was "
                f"trained, not {_words(given)} as its config says; --num_heads and "
                "--head_channels override this"
            )
    elif given:
        return dict(unet)
    else:
        raise ConversionError(
            "the weights do not tell the number of attention heads: give the YAML with "
            "--config, or --num_heads or --head_channels"
        )
    rest = {
        k: v for k, v in unet.items() if k not in ("num_heads", "num_head_channels")
    }
    return rest | chosen


def _words(heads):
    names = {"num_heads": "number", "num_head_channels": "channels of each"}
    return ", ".join(f"{names[key]} {value}" for key, value in heads.items())


def first_stage_section(config):
    """Reads a first stage's options.

    Args:
      config: {"target": ..., "params": ...}, as under `first_stage_config`.

    Returns:
      (config section `first_stage`, side of the images it was trained on).

    Raises:
      ConversionError: If its kind or an option is not supported.
    """
    params = config.get("params") or {}
    if "Identity" in config.get("target", ""):
        return {"kind": "identity"}, None
    if "ddconfig" not in params or "embed_dim" not in params:
        raise ConversionError("a first stage's YAML needs ddconfig and embed_dim")
    ddconfig = params["ddconfig"]
    if ddconfig["in_channels"] != ddconfig["out_ch"]:
        raise ConversionError(
            f"ddconfig: in_channels={ddconfig['in_channels']} but "
            f"out_ch={ddconfig['out_ch']}; only equal ones are supported"
        )
    section = options.autoencoder_kwargs(ddconfig, params["embed_dim"])
    codes = params.get("n_embed")
    kind = {"kind": "vq", "num_codes": codes} if codes else {"kind": "kl"}
    if bool(ddconfig.get("double_z", True)) == bool(codes):
        raise ConversionError(
            f"ddconfig: double_z={ddconfig.get('double_z', True)} does not go with "
            f"n_embed={codes}"
        )
    return kind | section, ddconfig["resolution"]


def diffusion_sections(params, unet, weights, factor):
    """Reads the options of a LatentDiffusion into our sections.

    Args:
      params: The YAML's `model.params`.
      unet: Its UNetModel options, heads decided.
      weights: Dict of key -> array with a shape, of the whole checkpoint.
      factor: Downsampling factor of the first stage.

    Returns:
      Dict of the config sections `backbone`, `conditions`, `schedule` and `loss`, and
      the side of the images, "image_size".

    Raises:
      ConversionError: If an option is not supported.
    """
    params = _DEFAULTS | params
    kwargs = options.unet_kwargs(unet)
    kwargs.pop("out_channels")
    if params["parameterization"] not in PREDICTION_NAMES:
        raise ConversionError(
            f"parameterization={params['parameterization']!r} is not supported: "
            + ", ".join(PREDICTION_NAMES)
        )
    if params["beta_schedule"] not in deduce.SCHEDULE_NAMES:
        raise ConversionError(
            f"beta_schedule={params['beta_schedule']!r} is not supported: "
            + ", ".join(deduce.SCHEDULE_NAMES)
        )
    # `image_size` is that of the latents; RDM's YAML has [48, 48] and the like.
    size = params.get("image_size") or unet.get("image_size") or 64
    size = max(size) if isinstance(size, list) else size
    cond = params.get("cond_stage_config")
    conditions = read_conditions(cond, unet, select(weights, COND_STAGE), factor)
    return dict(
        image_size=size * factor,
        backbone={"kind": "unet"} | kwargs,
        conditions=conditions,
        schedule=dict(
            kind=deduce.SCHEDULE_NAMES[params["beta_schedule"]],
            num_train_timesteps=params["timesteps"],
            # YAML reads 1e-4, without a point, as text.
            beta_start=float(params["linear_start"]),
            beta_end=float(params["linear_end"]),
            cosine_s=float(params["cosine_s"]),
            prediction_type=PREDICTION_NAMES[params["parameterization"]],
        ),
        loss=dict(
            loss_type=params["loss_type"],
            simple_weight=float(params["l_simple_weight"]),
            elbo_weight=float(params["original_elbo_weight"]),
            v_posterior=float(params["v_posterior"]),
            logvar_init=float(params["logvar_init"]),
            learn_logvar=params["learn_logvar"],
        ),
    )
