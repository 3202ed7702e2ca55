"""The configs of diffusers' and transformers' folders and our sections."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ldm_jax.convert.compvis.cond_stages import clip_entry
from ldm_jax.convert.model import first_stage_row, require_nearest
from ldm_jax.diffusion.latent_statistics import LatentStatistics
from ldm_jax.errors import ConversionError

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
    use_post_quant_conv=(True,),
    use_quant_conv=(True,),
    lookup_from_codebook=(False,),
)
_SCHEDULES = {
    "scaled_linear": "scaled_linear",
    "linear": "linear",
    "squaredcos_cap_v2": "cosine",
}
_PREDICTIONS = {"epsilon": "noise", "sample": "x0", "v_prediction": "v"}


def check_options(config):
    """Raises ConversionError if an option asks for what our networks do not have."""
    for option, allowed in _FIXED.items():
        if option in config and config[option] not in allowed:
            raise ConversionError(
                f"{option}={config[option]!r} of {config.get('_class_name')} is not "
                f"supported: only {allowed[0]!r} is"
            )


def first_stage_section(config):
    """The section `first_stage` of an AutoencoderKL or a VQModel."""
    check_options(config)
    widths = _require(config, "block_out_channels")
    attends = _attends(config, {"DownEncoderBlock2D": 0, "AttnDownEncoderBlock2D": 1})
    section = dict(
        kind=_FIRST_STAGES[config["_class_name"]],
        channels=widths[0],
        channel_mult=_ratios(widths),
        num_res_blocks=_get(config, "layers_per_block"),
        z_channels=_get(config, "latent_channels"),
        embed_dim=_get(config, "latent_channels"),
        attention_factors=attends,
        mid_attention=config.get("mid_block_add_attention", True),
        image_channels=_get(config, "out_channels"),
        norm_groups=config.get("norm_num_groups", 32),
    )
    if section["kind"] == "vq":
        section["embed_dim"] = config.get("vq_embed_dim") or section["z_channels"]
        section["num_codes"] = _get(config, "num_vq_embeddings")
    return section


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


def first_stage_config(config):
    """The config.json of a first stage of ours, but for the statistics of its latents;
    the inverse of `first_stage_section`."""
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
    if kind == "vq":
        result["num_vq_embeddings"] = section["num_codes"]
        result["vq_embed_dim"] = section["embed_dim"]
    return result


def unet_section(config):
    """The section `backbone` of a UNet2DConditionModel or a UNet2DModel."""
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


def unet_config(config, channels, context_dim, origin):
    """The config.json of a UNet of ours; the inverse of the above."""
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


def schedule_section(config):
    """The section `schedule` of a scheduler_config.json."""
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


def schedule_config(section):
    """The scheduler_config.json of DDIM; the inverse of the above."""
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


def text_entry(config):
    """The condition of a CLIPTextModel or an LDMBertModel."""
    kind = text_class(config)
    if kind == "LDMBertModel":
        entry = dict(
            kind="text",
            vocab_size=config.get("vocab_size", 30522),
            features=config.get("d_model", 1280),
            num_layers=config.get("encoder_layers", 32),
            max_length=config.get("max_position_embeddings", 77),
            num_heads=config.get("encoder_attention_heads", 8),
            head_channels=config.get("head_dim", 64),
        )
        known = entry["vocab_size"] == 30522
        return entry if known else entry | {"null_ids": (0,)}
    config = config.get("text_config") or config
    width = _get(config, "hidden_size")
    heads = _get(config, "num_attention_heads")
    return clip_entry(
        vocab_size=config.get("vocab_size", 49408),
        features=width,
        num_layers=_get(config, "num_hidden_layers"),
        max_length=config.get("max_position_embeddings", 77),
        mlp_width=_get(config, "intermediate_size"),
        num_heads=heads,
        head_channels=width // heads,
        activation=config.get("hidden_act", "quick_gelu"),
    )


def text_class(config):
    """Which class of text encoder a config.json is of."""
    found = config.get("_class_name") or (config.get("architectures") or [None])[0]
    if found is None and config.get("model_type") == "ldmbert":
        found = "LDMBertModel"
    if found not in ("CLIPTextModel", "LDMBertModel"):
        raise ConversionError(
            f"the text encoder {found} is not supported: only CLIPTextModel and "
            "LDMBertModel are"
        )
    return found


def text_config(entry):
    """The config.json of a text condition; the inverse of `text_entry`."""
    heads, size = entry.get("num_heads", 8), entry.get("head_channels", 64)
    if entry["kind"] == "text":
        return dict(
            architectures=["LDMBertModel"],
            model_type="ldmbert",
            vocab_size=entry["vocab_size"],
            d_model=entry["features"],
            encoder_layers=entry["num_layers"],
            max_position_embeddings=entry.get("max_length", 77),
            encoder_attention_heads=heads,
            head_dim=size,
            encoder_ffn_dim=entry.get("mlp_ratio", 4) * entry["features"],
            activation_function="gelu",
        )
    return dict(
        architectures=["CLIPTextModel"],
        model_type="clip_text_model",
        vocab_size=entry["vocab_size"],
        hidden_size=entry["features"],
        num_hidden_layers=entry["num_layers"],
        num_attention_heads=heads,
        max_position_embeddings=entry.get("max_length", 77),
        intermediate_size=entry.get("mlp_ratio", 4) * entry["features"],
        hidden_act=entry["activation"],
        layer_norm_eps=1e-5,
    )


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


_FIRST_STAGES = {"AutoencoderKL": "kl", "VQModel": "vq"}
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
    (None, "hidden_size"): 512,
    (None, "num_attention_heads"): 8,
    (None, "num_hidden_layers"): 12,
    (None, "intermediate_size"): 2048,
}
