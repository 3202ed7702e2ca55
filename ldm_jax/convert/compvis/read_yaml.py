"""Reads CompVis's YAML files as sections of our configs; `write_yaml` is the inverse.

If there is no file, `deduce` returns the same options in the YAML's own terms.
"""

import os
from collections.abc import Mapping
from typing import Any

from ldm_jax.convert.bounds import check_numbers, read_yaml_file
from ldm_jax.convert.compvis import options
from ldm_jax.convert.compvis.conditions import read_conditions
from ldm_jax.convert.compvis.deduce import coder_options
from ldm_jax.convert.compvis.names import COND_STAGE
from ldm_jax.convert.hints import SECTION
from ldm_jax.errors import ConversionError
from ldm_jax.store import as_path
from ldm_jax.weights.state_dict import StateDict, select


def read_yaml(path: str | os.PathLike) -> dict[str, Any]:
    """Reads the `model` of a YAML file.

    Args:
      path: The file.

    Returns:
      Dict of "target" and "params"; the latter include our own section, see `hints`.

    Raises:
      ConversionError: If it cannot be read, describes no model or exceeds the limits of
        `bounds`.
    """
    found = read_yaml_file(as_path(path))
    model = found.get("model") if isinstance(found, dict) else None
    if not isinstance(model, dict) or not isinstance(model.get("params"), dict):
        raise ConversionError(f"{path} has no model.params: give CompVis's YAML")
    check_numbers(model, str(path))
    model["params"][SECTION] = found.get(SECTION)
    return model


def first_stage_section(
    config: Mapping[str, Any],
) -> tuple[dict[str, Any], int | None]:
    """Reads a first stage's options.

    Args:
      config: {"target": ..., "params": ...}, as under `first_stage_config`.

    Returns:
      (config section `first_stage`, side of the images it was trained on, None if the
      first stage is the identity).

    Raises:
      ConversionError: If its kind or an option is not supported.
    """
    params = config.get("params") or {}
    if "Identity" in config.get("target", ""):
        return {"kind": "identity"}, None
    ddconfig = coder_options(params)
    if ddconfig["in_channels"] != ddconfig["out_ch"]:
        raise ConversionError(
            f"ddconfig: in_channels={ddconfig['in_channels']} but "
            f"out_ch={ddconfig['out_ch']}; only equal ones are supported"
        )
    # Without an embed_dim there are no quant convolutions.
    section = options.autoencoder_kwargs(ddconfig, params.get("embed_dim"))
    codes = params.get("n_embed")
    kind = {"kind": "vq", "num_codes": codes} if codes else {"kind": "kl"}
    if bool(ddconfig.get("double_z", True)) == bool(codes):
        raise ConversionError(
            f"ddconfig: double_z={ddconfig.get('double_z', True)} does not go with "
            f"n_embed={codes}"
        )
    return kind | section, ddconfig["resolution"]


def diffusion_sections(
    params: Mapping[str, Any], unet: Mapping[str, Any], weights: StateDict, factor: int
) -> dict[str, Any]:
    """Reads the options of a LatentDiffusion into our sections.

    Args:
      params: The YAML's `model.params`.
      unet: Its UNetModel options, with the number of heads.
      weights: Dict of key -> array with a shape, of the whole checkpoint.
      factor: Downsampling factor of the first stage.

    Returns:
      Dict of the config sections `backbone`, `conditions`, `schedule` and `loss`, and
      the side of the images, "image_size".

    Raises:
      ConversionError: If an option is not supported.
    """
    params = options.DIFFUSION_DEFAULTS | dict(params)
    kwargs = options.unet_kwargs(unet)
    kwargs.pop("out_channels")
    if params["parameterization"] not in options.PREDICTION_NAMES:
        raise ConversionError(
            f"parameterization={params['parameterization']!r} is not supported: "
            + ", ".join(options.PREDICTION_NAMES)
        )
    if params["beta_schedule"] not in options.SCHEDULE_NAMES:
        raise ConversionError(
            f"beta_schedule={params['beta_schedule']!r} is not supported: "
            + ", ".join(options.SCHEDULE_NAMES)
        )
    # `image_size` is that of the latents; RDM's YAML has a list, such as [48, 48].
    size = params.get("image_size") or unet.get("image_size") or 64
    size = max(size) if isinstance(size, list) else size
    cond = params.get("cond_stage_config")
    conditions = read_conditions(cond, unet, select(weights, COND_STAGE), factor)
    return dict(
        image_size=size * factor,
        backbone={"kind": "unet"} | kwargs,
        conditions=conditions,
        schedule=dict(
            kind=options.SCHEDULE_NAMES[params["beta_schedule"]],
            num_train_timesteps=params["timesteps"],
            # YAML parses 1e-4, without a decimal point, as a string.
            beta_start=float(params["linear_start"]),
            beta_end=float(params["linear_end"]),
            cosine_s=float(params["cosine_s"]),
            prediction_type=options.PREDICTION_NAMES[params["parameterization"]],
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
