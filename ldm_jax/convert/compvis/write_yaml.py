"""Writes our configs as YAML files of CompVis; `read_yaml` is the inverse."""

import os
from collections.abc import Mapping
from typing import Any

import yaml

from ldm_jax.build import make_first_stage
from ldm_jax.convert.compvis.conditions import (
    conditions_yaml,
    require_limits,
    require_mask,
    require_scale,
)
from ldm_jax.convert.compvis.options import PREDICTION_NAMES, SCHEDULE_NAMES
from ldm_jax.convert.hints import SECTION
from ldm_jax.convert.model import Model, first_stage_row, require_nearest
from ldm_jax.errors import ConversionError
from ldm_jax.files import write_bytes


def first_stage_yaml(config: Mapping[str, Any]) -> dict[str, Any]:
    """Writes the YAML's `first_stage_config`.

    Args:
      config: Config of a first stage.

    Returns:
      Dict of "target" and "params".

    Raises:
      ConversionError: If CompVis's code does not have such a first stage.
    """
    section = dict(config["first_stage"])
    kind, target = first_stage_row(section, _FIRST_STAGES, "CompVis")
    if kind == "identity":
        return {"target": target}
    _require_groups(section, "first_stage")
    require_nearest(section)
    _require_whole(section, "first_stage")
    resolution = config["data"]["image_size"]
    factors = section.get("attention_factors", ())
    mid = section.get("mid_attention", True)
    if factors and not mid:
        raise ConversionError(
            "CompVis has no first stage with attention in levels and none in the middle"
        )
    channels = section.get("image_channels", 3)
    ddconfig = dict(
        double_z=kind == "kl",
        z_channels=section["z_channels"],
        resolution=resolution,
        in_channels=channels,
        out_ch=channels,
        ch=section["channels"],
        ch_mult=list(section["channel_mult"]),
        num_res_blocks=section["num_res_blocks"],
        attn_resolutions=[resolution // factor for factor in factors],
        attn_type="vanilla" if mid else "none",
        resamp_with_conv=section.get("conv_resample", True),
        tanh_out=section.get("tanh_output", False),
        dropout=section.get("dropout", 0.0),
    )
    if not section.get("quant_conv", True):
        return _engine_yaml(kind, ddconfig)
    params = dict(
        embed_dim=section["embed_dim"],
        ddconfig=ddconfig,
        lossconfig={"target": "torch.nn.Identity"},
    )
    if kind == "vq":
        params["n_embed"] = section["num_codes"]
    return {"target": target, "params": params}


def _engine_yaml(kind, ddconfig):
    """The YAML of generative-models for an autoencoder without quant convolutions."""
    if kind != "kl":
        raise ConversionError(
            "first_stage.quant_conv=False cannot be written for CompVis with "
            f"kind={kind}: only with kind=kl"
        )
    modules = "sgm.modules"
    coders = f"{modules}.diffusionmodules.model"
    regulariser = f"{modules}.autoencoding.regularizers.DiagonalGaussianRegularizer"
    return {
        "target": "sgm.models.autoencoder.AutoencodingEngine",
        "params": dict(
            encoder_config={"target": f"{coders}.Encoder", "params": ddconfig},
            decoder_config={"target": f"{coders}.Decoder", "params": dict(ddconfig)},
            regularizer_config={"target": regulariser},
            loss_config={"target": "torch.nn.Identity"},
        ),
    }


def unet_yaml(
    section: Mapping[str, Any],
    channels: tuple[int, int],
    image_size: int,
    context_dim: int | None,
    num_classes: int | None,
    origin: Mapping[str, Any],
) -> dict[str, Any]:
    """Writes the YAML's `unet_config`.

    Args:
      section: Config section `backbone`, of a U-Net.
      channels: Its (input, output) channels.
      image_size: Side of the latents.
      context_dim: Width of its context; None if it has none.
      num_classes: Rows of its label embedding; None if it has none.
      origin: See `model.Model`.

    Returns:
      Dict of "target" and "params".

    Raises:
      ConversionError: If CompVis's code does not have such a U-Net.
    """
    _require_groups(section, "backbone")
    _require_whole(section, "backbone")
    for option in ("adaln_zero", "middle_norm_groups"):
        if section.get(option) not in (None, False):
            raise ConversionError(
                f"backbone.{option}={section[option]} cannot be said in CompVis's "
                "format: keep the model as a workdir"
            )
    depth = section.get("transformer_depth", 0)
    params = dict(
        image_size=image_size,
        in_channels=channels[0],
        out_channels=channels[1],
        model_channels=section["channels"],
        channel_mult=list(section["channel_mult"]),
        num_res_blocks=_plain(section["num_res_blocks"]),
        attention_resolutions=list(section["attention_factors"]),
        use_scale_shift_norm=section.get("scale_shift_norm", False),
        resblock_updown=section.get("resblock_updown", False),
        conv_resample=section.get("conv_resample", True),
        dropout=section.get("dropout", 0.0),
        **_heads_yaml(section),
    )
    if depth:
        linear = origin.get("linear_projection", False)
        params |= dict(
            use_spatial_transformer=True,
            context_dim=context_dim,
            transformer_depth=_plain(depth),
            **({"use_linear_in_transformer": True} if linear else {}),
        )
    if num_classes:
        params["num_classes"] = num_classes
    if not origin.get("head_major", True):
        params["use_new_attention_order"] = True
    target = "ldm.modules.diffusionmodules.openaimodel.UNetModel"
    return {"target": target, "params": params}


def _heads_yaml(section):
    """The options that result in these heads by the rules of `options`."""
    heads, size = section.get("num_heads"), section.get("head_channels")
    up = section.get("up_num_heads")
    widths = [section["channels"] * mult for mult in section["channel_mult"]]
    counts, sizes, ups = (_per_level(value, len(widths)) for value in (heads, size, up))
    if heads is not None:
        whole = [width // n for width, n in zip(widths, counts, strict=True)]
        sizes = whole if size is None else sizes
        if sizes == whole and len(set(counts)) == len(set(ups)) == 1:
            more = {} if up is None else {"num_heads_upsample": ups[0]}
            return {"num_heads": counts[0]} | more
    if up is None and len(set(sizes)) == 1:
        # Heads that do not add up to the width would be rounded in legacy mode.
        both = {} if heads is None or size is None else {"legacy": False}
        return {"num_head_channels": sizes[0]} | both
    raise ConversionError(
        f"backbone.num_heads={heads}, head_channels={size}, up_num_heads={up} cannot "
        "be said in CompVis's YAML"
    )


def _per_level(value, levels):
    return list(value) if isinstance(value, list | tuple) else [value] * levels


def _require_groups(section, name):
    groups = section.get("norm_groups", 32)
    if groups != 32:
        raise ConversionError(
            f"{name}.norm_groups={groups} cannot be said in CompVis's format, whose "
            "norms have 32 groups"
        )


def _require_whole(section, name):
    for mult in section["channel_mult"]:
        if mult != int(mult):
            raise ConversionError(
                f"{name}.channel_mult={mult} cannot be said in CompVis's format, whose "
                "levels are whole multiples of the first"
            )


def _plain(value):
    return list(value) if isinstance(value, tuple) else value


def diffusion_yaml(
    model: Model,
    channels: tuple[int, int],
    context_dim: int | None,
    num_classes: int | None,
    scale_is_stored: bool = True,
) -> dict[str, Any]:
    """Writes the YAML's `model` of a second stage.

    Args:
      model: Model of a second stage.
      channels: (input, output) channels of the U-Net.
      context_dim: Width of its context; None if it has none.
      num_classes: Rows of its label embedding; None if it has none.
      scale_is_stored: Whether the file has the scale of the latents among its tensors.

    Returns:
      Dict of "target" and "params".

    Raises:
      ConversionError: If CompVis's code does not have such a model.
    """
    config, first = model.config, model.first_stage
    schedule, loss = config["schedule"], config.get("loss") or {}
    offset = schedule.get("cosine_s", 0.008)
    predictions = {ours: theirs for theirs, ours in PREDICTION_NAMES.items()}
    kinds = {ours: theirs for theirs, ours in SCHEDULE_NAMES.items()}
    prediction = schedule.get("prediction_type", "noise")
    if prediction not in predictions:
        raise ConversionError(f"CompVis has no prediction_type {prediction}")
    kind = schedule.get("kind", "scaled_linear")
    if kind not in kinds or schedule.get("zero_terminal_snr"):
        raise ConversionError(
            f"CompVis does not know the schedule {kind} with zero_terminal_snr="
            f"{schedule.get('zero_terminal_snr', False)}"
        )
    require_mask(config["conditions"], context_dim)
    require_scale(config["conditions"], model.statistics)
    if model.origin.get("format") != "compvis":
        require_limits(config["conditions"])
    factor = 1
    if first is not None:
        factor = make_first_stage(first.config["first_stage"]).downsampling_factor
    size = config["data"]["image_size"] // factor
    unet = unet_yaml(
        config["backbone"], channels, size, context_dim, num_classes, model.origin
    )
    params = dict(
        linear_start=schedule.get("beta_start", 0.0015),
        linear_end=schedule.get("beta_end", 0.0195),
        beta_schedule=kinds[kind],
        **({} if offset == 0.008 else {"cosine_s": offset}),
        timesteps=schedule.get("num_train_timesteps", 1000),
        parameterization=predictions[prediction],
        loss_type=loss.get("loss_type", "l2"),
        l_simple_weight=loss.get("simple_weight", 1.0),
        original_elbo_weight=loss.get("elbo_weight", 0.0),
        v_posterior=loss.get("v_posterior", 0.0),
        logvar_init=loss.get("logvar_init", 0.0),
        learn_logvar=loss.get("learn_logvar", False),
        first_stage_key="image",
        image_size=size,
        channels=channels[1],
        scale_factor=model.scaling_factor,
        # CompVis's class has the tensor `scale_factor` only if this is set.
        scale_by_std=scale_is_stored,
        use_ema=bool(model.ema_params),
        unet_config=unet,
        first_stage_config=(
            {"target": _FIRST_STAGES["identity"]}
            if first is None
            else first_stage_yaml(first.config)
        ),
        **conditions_yaml(config["conditions"]),
    )
    return {
        "target": "ldm.models.diffusion.ddpm.LatentDiffusion",
        "params": params,
    }


def write_yaml(
    path: str | os.PathLike, model: Mapping[str, Any], hints: Mapping[str, Any]
) -> None:
    """Writes a YAML file.

    Args:
      path: The file.
      model: Its section `model`, as returned by `write.write`.
      hints: Our own section, see `hints`; left out if it is empty.

    Raises:
      DiskError: If it cannot be written.
    """
    own = {SECTION: dict(hints)} if hints else {}
    text = yaml.safe_dump({"model": model} | own, sort_keys=False)
    write_bytes(path, text.encode())


# Kind of FIRST_STAGES -> class of CompVis.
_FIRST_STAGES = {
    "kl": "ldm.models.autoencoder.AutoencoderKL",
    "vq": "ldm.models.autoencoder.VQModelInterface",
    "identity": "ldm.models.autoencoder.IdentityFirstStage",
}
