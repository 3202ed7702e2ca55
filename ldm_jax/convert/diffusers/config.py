"""config.json of diffusers' U-Nets and autoencoders and our sections, either way."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ldm_jax.convert.model import first_stage_row, require_nearest
from ldm_jax.diffusion.latent_statistics import LatentStatistics
from ldm_jax.errors import ConversionError


def check_options(config: Mapping[str, Any]) -> None:
    """Refuses options that our networks do not have.

    Args:
      config: config.json of a U-Net or an autoencoder.

    Raises:
      ConversionError: If one is set.
    """
    for option, allowed in _FIXED.items():
        if option in config and config[option] not in allowed:
            raise ConversionError(
                f"{option}={config[option]!r} of {config.get('_class_name')} is not "
                f"supported: only {allowed[0]!r} is"
            )


# The first stage.


def first_stage_section(config: Mapping[str, Any]) -> dict[str, Any]:
    """Reads the options of a first stage.

    Args:
      config: config.json of an AutoencoderKL or a VQModel.

    Returns:
      Config section `first_stage`.

    Raises:
      ConversionError: If an option is missing or not supported.
    """
    check_options(config)
    widths = _require(config, "block_out_channels")
    attends = _attends(config, {"DownEncoderBlock2D": 0, "AttnDownEncoderBlock2D": 1})
    channels = _get(config, "out_channels")
    if config.get("in_channels", channels) != channels:
        raise ConversionError(
            f"in_channels={config['in_channels']} but out_channels={channels} of "
            f"{config['_class_name']}: only equal ones are supported"
        )
    section = dict(
        kind=_FIRST_STAGES[config["_class_name"]],
        channels=widths[0],
        channel_mult=_ratios(widths),
        num_res_blocks=_get(config, "layers_per_block"),
        z_channels=_get(config, "latent_channels"),
        embed_dim=_get(config, "latent_channels"),
        attention_factors=attends,
        mid_attention=config.get("mid_block_add_attention", True),
        image_channels=channels,
        norm_groups=config.get("norm_num_groups", 32),
        quant_conv=_quant_conv(config),
    )
    if section["kind"] == "vq":
        section["embed_dim"] = config.get("vq_embed_dim") or section["z_channels"]
        section["num_codes"] = _get(config, "num_vq_embeddings")
    return section


def _quant_conv(config):
    """Whether 1x1 convolutions lie between the coders and the latents: both or none."""
    found = [config.get(key, True) for key in ("use_quant_conv", "use_post_quant_conv")]
    if found[0] != found[1]:
        raise ConversionError(
            f"use_quant_conv={found[0]} with use_post_quant_conv={found[1]} is not "
            "supported: only both or none"
        )
    return bool(found[0])


# Where an autoencoder's config.json holds the statistics of its latents.
STATISTICS = ("scaling_factor", "shift_factor", "latents_mean", "latents_std")


def latent_statistics(config: Mapping[str, Any]) -> LatentStatistics:
    """Reads the statistics of the latents from the config.json of an autoencoder.

    Their pipelines make (z - shift_factor) * scaling_factor or, per channel,
    (z - latents_mean) * scaling_factor / latents_std of the latents z.

    Args:
      config: The config.json.

    Returns:
      LatentStatistics on the host.

    Raises:
      ConversionError: If what it says contradicts itself or makes no sense.
    """
    default = 0.18215 if config["_class_name"] == "AutoencoderKL" else 1.0
    scale, shift = config.get("scaling_factor", default), config.get("shift_factor")
    for name, value in (("scaling_factor", scale), ("shift_factor", shift or 0.0)):
        number = isinstance(value, int | float) and np.isfinite(value)
        if not number or (name == "scaling_factor" and value <= 0):
            raise ConversionError(
                f"the autoencoder's {name} must be a number, the factor a positive "
                f"one, got {value!r:.80}"
            )
    mean, std = config.get("latents_mean"), config.get("latents_std")
    if mean is None and std is None:
        return LatentStatistics(shift or 0.0, scale)
    if mean is None or std is None or shift:
        found = ", ".join(f"{key}={config.get(key)}" for key in STATISTICS)
        raise ConversionError(
            f"the autoencoder's config.json has {found}: latents_mean goes with "
            "latents_std, and without a shift_factor"
        )
    try:
        found = LatentStatistics.of(tuple(mean), tuple(std))
        found.check_channels(_get(config, "latent_channels"))
    except (TypeError, ValueError) as error:
        raise ConversionError(
            f"the autoencoder's latents_mean, latents_std: {error}"
        ) from error
    return found._replace(scale=tuple(scale * value for value in found.scale))


def statistics_config(statistics: LatentStatistics, kind: str) -> dict[str, Any]:
    """Writes the statistics of the latents; the inverse of `latent_statistics`.

    Args:
      statistics: LatentStatistics on the host.
      kind: "AutoencoderKL" or "VQModel".

    Returns:
      Some of the keys STATISTICS of a config.json, with their values.

    Raises:
      ConversionError: If a model of that kind has no place for them.
    """
    shift, scale = statistics
    if not statistics.per_channel and not shift:
        return {"scaling_factor": scale}
    if kind == "VQModel":
        raise ConversionError(
            "diffusers' VQModel has one scaling_factor for all channels, but these "
            "latents have a mean or statistics per channel: train a second stage with "
            "first_stage.latent_statistics=scalar"
        )
    if not statistics.per_channel:
        return {"scaling_factor": scale, "shift_factor": shift}
    mean, scale = np.broadcast_arrays(shift, scale)
    return {
        "scaling_factor": 1.0,
        "latents_mean": mean.tolist(),
        "latents_std": (1.0 / scale).tolist(),
    }


def first_stage_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Writes the config.json of a first stage; the inverse of `first_stage_section`.

    Args:
      config: Config of the first stage.

    Returns:
      The config.json, but for the statistics of the latents.

    Raises:
      ConversionError: If diffusers has no such first stage.
    """
    section = config["first_stage"]
    names = {ours: theirs for theirs, ours in _FIRST_STAGES.items()}
    kind, class_name = first_stage_row(section, names, "diffusers")
    require_nearest(section)
    widths = [section["channels"] * mult for mult in section["channel_mult"]]
    factors = section.get("attention_factors", ())
    attends = [2**level in factors for level in range(len(widths))]
    if section["z_channels"] != section["embed_dim"] and kind == "kl":
        raise ConversionError("diffusers needs first_stage.z_channels = embed_dim")
    result = dict(
        _class_name=class_name,
        in_channels=section.get("image_channels", 3),
        out_channels=section.get("image_channels", 3),
        block_out_channels=widths,
        layers_per_block=section["num_res_blocks"],
        latent_channels=section["z_channels"],
        down_block_types=[
            "AttnDownEncoderBlock2D" if a else "DownEncoderBlock2D" for a in attends
        ],
        up_block_types=[
            "AttnUpDecoderBlock2D" if a else "UpDecoderBlock2D" for a in attends[::-1]
        ],
        act_fn="silu",
        norm_num_groups=section.get("norm_groups", 32),
        sample_size=config["data"]["image_size"],
        mid_block_add_attention=section.get("mid_attention", True),
    )
    if not section.get("quant_conv", True):
        if kind == "vq":
            raise ConversionError("diffusers' VQModel needs first_stage.quant_conv")
        result |= dict(use_quant_conv=False, use_post_quant_conv=False)
    if kind == "vq":
        result["num_vq_embeddings"] = section["num_codes"]
        result["vq_embed_dim"] = section["embed_dim"]
    return result


# The U-Net.


def unet_section(config: Mapping[str, Any]) -> dict[str, Any]:
    """Reads the options of a U-Net.

    Args:
      config: config.json of a UNet2DConditionModel or a UNet2DModel.

    Returns:
      Config section `backbone`.

    Raises:
      ConversionError: If an option is missing or not supported.
    """
    check_options(config)
    widths = _require(config, "block_out_channels")
    conditional = config["_class_name"] == "UNet2DConditionModel"
    attend = "CrossAttn" if conditional else "Attn"
    attends = _attends(config, {"DownBlock2D": 0, f"{attend}DownBlock2D": 1})
    section = dict(
        channels=widths[0],
        channel_mult=_ratios(widths),
        num_res_blocks=_tuple(_get(config, "layers_per_block")),
        attention_factors=attends,
        transformer_depth=0,
        scale_shift_norm=config.get("resnet_time_scale_shift") == "scale_shift",
        dropout=float(config.get("dropout", 0.0)),
        norm_groups=config.get("norm_num_groups", 32),
    )
    size = config.get("attention_head_dim", 8)
    if not conditional:
        heads = dict(num_heads=1) if size is None else dict(head_channels=size)
        return section | heads
    depth = config.get("transformer_layers_per_block", 1)
    # Their `attention_head_dim` of a conditional U-Net is a number of heads.
    heads = config.get("num_attention_heads") or size
    return section | dict(transformer_depth=_tuple(depth), num_heads=_tuple(heads))


def unet_config(
    config: Mapping[str, Any],
    channels: tuple[int, int],
    context_dim: int | None,
    origin: Mapping[str, Any],
) -> dict[str, Any]:
    """Writes the options of a U-Net; the inverse of `unet_section`.

    Args:
      config: Config with a section `backbone`, and with the side of the latents as
        `data.image_size`.
      channels: (input, output) channels.
      context_dim: Width of the context, None without.
      origin: See `model.Model`.

    Returns:
      config.json.

    Raises:
      ConversionError: If diffusers does not have such a U-Net.
    """
    section = config["backbone"]
    widths = [section["channels"] * mult for mult in section["channel_mult"]]
    attends = [2**i in section["attention_factors"] for i in range(len(widths))]
    for option in ("resblock_updown", "up_num_heads"):
        if section.get(option):
            raise ConversionError(f"diffusers' U-Nets have no backbone.{option}")
    if not section.get("conv_resample", True):
        raise ConversionError("diffusers' U-Nets resample with convolutions")
    attend = "CrossAttn" if context_dim else "Attn"
    result = dict(
        _class_name="UNet2DConditionModel" if context_dim else "UNet2DModel",
        sample_size=config["data"]["image_size"],
        in_channels=channels[0],
        out_channels=channels[1],
        block_out_channels=widths,
        layers_per_block=_list(section["num_res_blocks"]),
        down_block_types=[f"{attend if a else ''}DownBlock2D" for a in attends],
        up_block_types=[f"{attend if a else ''}UpBlock2D" for a in attends[::-1]],
        act_fn="silu",
        norm_eps=1e-5,
        norm_num_groups=section.get("norm_groups", 32),
        dropout=section.get("dropout", 0.0),
        downsample_padding=1,
        flip_sin_to_cos=True,
        freq_shift=0,
        resnet_time_scale_shift=(
            "scale_shift" if section.get("scale_shift_norm") else "default"
        ),
    )
    heads, size = section.get("num_heads"), section.get("head_channels")
    if not context_dim:
        sizes = {width // heads for width in widths} if heads else {size}
        if heads == 1:
            sizes = {None}
        if len(sizes) > 1:
            raise ConversionError("diffusers' UNet2DModel has one head size everywhere")
        return result | dict(attention_head_dim=sizes.pop())
    return result | dict(
        attention_head_dim=_list(heads) or [width // size for width in widths],
        cross_attention_dim=context_dim,
        transformer_layers_per_block=_list(section["transformer_depth"]),
        use_linear_projection=origin.get("linear_projection", False),
    )


# What both share.


def _attends(config, kinds):
    """Factors at which attention follows; refuses blocks of other kinds."""
    down = _require(config, "down_block_types")
    for kind in down:
        if kind not in kinds:
            raise ConversionError(
                f"the block {kind} of {config['_class_name']} is not supported: "
                + ", ".join(kinds)
            )
    up = [
        kind.replace("Up", "Down").replace("Decoder", "Encoder")
        for kind in config.get("up_block_types", [])
    ]
    if up and up[::-1] != list(down):
        raise ConversionError(
            f"up_block_types of {config['_class_name']} do not mirror down_block_types"
        )
    return tuple(2**i for i, kind in enumerate(down) if kinds[kind])


def _get(config, key):
    return config[key] if key in config else _DEFAULTS[config.get("_class_name"), key]


def _require(config, key):
    if key not in config:
        raise ConversionError(f"{config.get('_class_name')}: config.json lacks {key}")
    return config[key]


def _ratios(widths):
    ratios = [width / widths[0] for width in widths]
    return tuple(int(r) if r == int(r) else r for r in ratios)


def _tuple(value):
    return tuple(value) if isinstance(value, list) else value


def _list(value):
    return list(value) if isinstance(value, tuple) else value


# Options whose other values our networks do not have; absent means the same.
_FIXED = dict(
    act_fn=("silu", "swish"),
    addition_embed_type=(None,),
    attention_type=("default",),
    center_input_sample=(False,),
    class_embed_type=(None,),
    conv_in_kernel=(3,),
    conv_out_kernel=(3,),
    cross_attention_norm=(None,),
    downsample_padding=(1,),
    downsample_type=("conv",),
    dual_cross_attention=(False,),
    encoder_hid_dim=(None,),
    flip_sin_to_cos=(True,),
    freq_shift=(0,),
    mid_block_scale_factor=(1, 1.0),
    mid_block_type=("UNetMidBlock2DCrossAttn", "UNetMidBlock2D"),
    norm_eps=(1e-5,),
    norm_type=("group",),
    only_cross_attention=(False,),
    resnet_out_scale_factor=(1, 1.0),
    time_cond_proj_dim=(None,),
    time_embedding_type=("positional",),
    upsample_type=("conv",),
    lookup_from_codebook=(False,),
)
_FIRST_STAGES = {"AutoencoderKL": "kl", "VQModel": "vq"}
# What they leave out has these values: (class, option) -> value.
_DEFAULTS = {
    ("AutoencoderKL", "latent_channels"): 4,
    ("AutoencoderKL", "layers_per_block"): 1,
    ("AutoencoderKL", "out_channels"): 3,
    ("VQModel", "latent_channels"): 3,
    ("VQModel", "layers_per_block"): 1,
    ("VQModel", "num_vq_embeddings"): 256,
    ("VQModel", "out_channels"): 3,
    ("UNet2DConditionModel", "layers_per_block"): 2,
    ("UNet2DModel", "layers_per_block"): 2,
}
