"""Deduces CompVis's options from the names and shapes of the weights.

The weights determine all of the structure that a YAML describes, except for the number
of attention heads, dropout and the order of queries and keys. The options have the
YAML's own terms, so that `read_yaml` reads both. The U-Net's heads are filled in by
`published.with_heads`, the cond stage by `conditions.deduce_cond_stage`.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ldm_jax.annotations import Shaped
from ldm_jax.convert.compvis.buffers import same_numbers
from ldm_jax.convert.compvis.conditions import deduce_cond_stage
from ldm_jax.convert.compvis.names import COND_STAGE, FIRST_STAGE, UNET
from ldm_jax.convert.compvis.options import SCHEDULE_NAMES
from ldm_jax.convert.compvis.published import find_published
from ldm_jax.diffusion.schedule import BETAS
from ldm_jax.errors import ConversionError
from ldm_jax.weights.state_dict import StateDict, select


def deduce_params(weights: StateDict, image_size: int | None = None) -> dict[str, Any]:
    """Deduces the `model.params` of a YAML from the weights.

    Args:
      weights: Dict of key -> array with a shape.
      image_size: Side of the images; by default that of the published model of this
        shape, or else 256.

    Returns:
      Dict; without "first_stage_config" if the weights hold no first stage.

    Raises:
      ConversionError: If they are not a whole model or first stage of CompVis.
    """
    if not any(key.startswith(UNET) for key in weights):
        return first_stage_options(weights, resolution=image_size or 256)
    _require_known(weights)
    unet = unet_options(weights, UNET)
    stable = unet["model_channels"] == 320 and unet.get("context_dim") in (768, 1024)
    known = find_published(unet)
    image_size = image_size or (known.image_size if known else 256)
    params = {"unet_config": {"params": unet}}
    if any(key.startswith(FIRST_STAGE) for key in weights):
        options = first_stage_options(weights, FIRST_STAGE, 256)
        params["first_stage_config"] = {"params": options}
        factor = 2 ** (len(coder_options(options)["ch_mult"]) - 1)
    else:
        factor = 1
    unet["image_size"] = image_size // factor
    cond = select(weights, COND_STAGE)
    params["cond_stage_config"] = deduce_cond_stage(cond, unet)
    params["learn_logvar"] = "logvar" in weights
    if stable:
        # Weights without schedule tables always use this schedule.
        params |= dict(linear_start=0.00085, linear_end=0.012, scale_factor=0.18215)
    if "betas" in weights:
        params |= _deduce_schedule(weights["betas"])
    elif not stable:
        raise ConversionError(
            "the weights hold no noise schedule (betas): give the YAML with --config"
        )
    return params


def _require_known(weights):
    """Raises an error for newer models, recognised by their keys, that names them."""
    for name, mark in _OTHERS.items():
        if any(mark in key for key in weights):
            raise ConversionError(
                f"this is {name}, whose denoiser is not supported; --only=first_stage "
                "converts the autoencoder in the file alone"
            )


def _deduce_schedule(betas):
    """The noise schedule in the terms of a YAML's `model.params`."""
    section = schedule_section(betas)
    if section is None:
        return {"unknown_betas": True}
    names = {ours: theirs for theirs, ours in SCHEDULE_NAMES.items()}
    return dict(
        beta_schedule=names[section["kind"]],
        timesteps=section["num_train_timesteps"],
        linear_start=section["beta_start"],
        linear_end=section["beta_end"],
    )


# Networks.


def unet_options(weights: StateDict, prefix: str = "") -> dict[str, Any]:
    """Deduces the options of a UNetModel, except for its heads.

    Args:
      weights: Dict of key -> array with a shape.
      prefix: Prefix of its keys.

    Returns:
      Dict of UNetModel options.

    Raises:
      ConversionError: If a key is missing or the widths are not those of a UNetModel.
    """
    shape = _shape_of(weights, prefix)
    channels = shape("time_embed.0.weight")[1]
    levels, attends, depths = _levels(weights, prefix)
    middle = _depth(weights, f"{prefix}middle_block.1")
    options = dict(
        in_channels=shape("input_blocks.0.0.weight")[1],
        out_channels=shape("out.2.weight")[0],
        model_channels=channels,
        channel_mult=[_ratio(width, channels) for width, _ in levels],
        num_res_blocks=_one_or_all([blocks for _, blocks in levels]),
        attention_resolutions=[2**i for i, has in enumerate(attends) if has],
        resblock_updown=_any(
            weights, prefix, r"output_blocks\.\d+\.[12]\.in_layers\..*"
        ),
        use_scale_shift_norm=shape("middle_block.0.emb_layers.1.weight")[0]
        == 2 * shape("middle_block.0.in_layers.2.weight")[0],
    )
    if not options["resblock_updown"]:
        resampling = _any(weights, prefix, r"input_blocks\.\d+\.0\.op\.weight")
        options["conv_resample"] = len(levels) == 1 or resampling
    if f"{prefix}label_emb.weight" in weights:
        options["num_classes"] = shape("label_emb.weight")[0]
    if middle:
        block = "middle_block.1.transformer_blocks.0.attn2.to_k.weight"
        projection = shape("middle_block.1.proj_in.weight")
        options |= dict(
            use_spatial_transformer=True,
            context_dim=shape(block)[1],
            transformer_depth=_one_or_all([d or middle for d in depths]),
            use_linear_in_transformer=len(projection) == 2,
        )
    return options


def _levels(weights, prefix):
    """Per level, finest first: (width, ResBlocks on the down path), attention, depth.

    They are read from the up path, where each level but the finest ends with an
    upsampling.
    """
    levels, attends, depths, index, count = [], [], [], 0, 0
    while f"{prefix}output_blocks.{index}.0.in_layers.2.weight" in weights:
        block = f"output_blocks.{index}"
        count, index = count + 1, index + 1
        upsamples = rf"{block}\.[12]\.(conv|in_layers\.2)\.weight"
        following = f"{prefix}output_blocks.{index}.0.in_layers.2.weight"
        if _any(weights, prefix, upsamples) or following not in weights:
            width = weights[f"{prefix}{block}.0.in_layers.2.weight"].shape[0]
            levels.insert(0, (width, count - 1))
            attends.insert(0, f"{prefix}{block}.1.norm.weight" in weights)
            depths.insert(0, _depth(weights, f"{prefix}{block}.1"))
            count = 0
    if not levels:
        raise ConversionError(
            f"missing key {prefix}output_blocks.0.0.in_layers.2.weight"
        )
    return levels, attends, depths


def _depth(weights, theirs):
    """Number of transformer blocks under `theirs`."""
    return _count(weights, f"{theirs}.transformer_blocks.")


def _count(weights, start):
    """Number of different names that follow `start` in the keys."""
    found = (key[len(start) :] for key in weights if key.startswith(start))
    return len({rest.split(".")[0] for rest in found})


def _any(weights, prefix, pattern):
    """Whether a key, after the prefix, matches a regular expression."""
    pattern = re.compile(re.escape(prefix) + pattern)
    return any(pattern.fullmatch(key) for key in weights)


def first_stage_options(
    weights: StateDict, prefix: str = "", resolution: int = 256
) -> dict[str, Any]:
    """Deduces the options of an AutoencoderKL or a VQModel.

    Args:
      weights: Dict of key -> array with a shape.
      prefix: Prefix of its keys.
      resolution: Side of the images that it was trained on.

    Returns:
      Dict of "ddconfig", "embed_dim" and, for a VQModel, "n_embed"; without quant
      convolutions the options of generative-models' AutoencodingEngine.

    Raises:
      ConversionError: If a key is missing.
    """
    shape = _shape_of(weights, prefix)
    channels, in_channels = shape("encoder.conv_in.weight")[:2]
    mult, attends, level = [], [], 0
    while f"{prefix}encoder.down.{level}.block.0.conv2.weight" in weights:
        block = f"encoder.down.{level}"
        mult.append(_ratio(shape(f"{block}.block.0.conv2.weight")[0], channels))
        attends.append(f"{prefix}{block}.attn.0.q.weight" in weights)
        level += 1
    if not mult:
        raise ConversionError(
            f"missing key {prefix}encoder.down.0.block.0.conv2.weight"
        )
    quant_conv = any(
        key.startswith((f"{prefix}quant_conv.", f"{prefix}post_quant_conv."))
        for key in weights
    )
    if quant_conv:
        z_channels, embed_dim = shape("post_quant_conv.weight")[:2]
    else:
        z_channels = shape("decoder.conv_in.weight")[1]
    mid_attention = f"{prefix}encoder.mid.attn_1.q.weight" in weights
    ddconfig = dict(
        double_z=shape("encoder.conv_out.weight")[0] == 2 * z_channels,
        z_channels=z_channels,
        resolution=resolution,
        in_channels=in_channels,
        out_ch=shape("decoder.conv_out.weight")[0],
        ch=channels,
        ch_mult=mult,
        num_res_blocks=_count(weights, f"{prefix}encoder.down.0.block."),
        attn_resolutions=[resolution // 2**i for i, has in enumerate(attends) if has],
        attn_type="vanilla" if mid_attention or any(attends) else "none",
        resamp_with_conv=len(mult) == 1
        or f"{prefix}encoder.down.0.downsample.conv.weight" in weights,
    )
    if not quant_conv:
        return {
            name: {"params": ddconfig} for name in ("encoder_config", "decoder_config")
        }
    options = dict(ddconfig=ddconfig, embed_dim=embed_dim)
    if f"{prefix}quantize.embedding.weight" in weights:
        options["n_embed"] = shape("quantize.embedding.weight")[0]
    return options


def coder_options(options: Mapping[str, Any]) -> Mapping[str, Any]:
    """Finds the options of the encoder and decoder among those of an autoencoder.

    Args:
      options: Options of CompVis's AutoencoderKL or VQModel, or of generative-models'
        AutoencodingEngine, which has no quant convolutions.

    Returns:
      The options of its encoder.

    Raises:
      ConversionError: If there are none.
    """
    if "encoder_config" in options:
        return options["encoder_config"]["params"]
    if "ddconfig" in options and "embed_dim" in options:
        return options["ddconfig"]
    raise ConversionError("a first stage's YAML needs ddconfig and embed_dim")


def discriminator_options(weights: StateDict, prefix: str = "") -> dict[str, Any]:
    """Deduces the structure of an NLayerDiscriminator.

    Args:
      weights: Dict of key -> array with a shape.
      prefix: Prefix of its keys.

    Returns:
      Config section `discriminator`: "channels", "num_layers" and "norm".

    Raises:
      ConversionError: If its layers are numbered otherwise.
    """
    shape = _shape_of(weights, prefix)
    start = f"{prefix}main."
    names = {
        key[len(start) :].split(".")[0] for key in weights if key.startswith(start)
    }
    # Few layers have no weights: an NLayerDiscriminator has no larger numbers.
    if not all(name.isdecimal() and int(name) < 3 * len(names) for name in names):
        raise ConversionError(f"{start}{min(names)} is no NLayerDiscriminator's")
    last = max(map(int, names))
    return dict(
        channels=shape("main.0.weight")[0], num_layers=(last - 2) // 3, norm="batch"
    )


# The noise schedule.


def schedule_section(betas: Shaped[Any, "..."]) -> dict[str, Any] | None:
    """Finds the schedule that betas come from, the nearest of those that fit.

    Args:
      betas: [T], of any floating type, compared as precisely as the type allows; arrays
        [...] of other shapes or types have no schedule.

    Returns:
      Config section `schedule` without the prediction type; None if no row of BETAS
      fits.
    """
    betas = np.asarray(betas)
    if betas.ndim != 1 or len(betas) < 2 or betas.dtype.kind in "biu":
        return None
    values = betas.astype(np.float64)
    if not np.all((values > 0) & (values <= 1)):
        return None
    found = []
    for kind, table in BETAS.items():
        # The table of the kind "sqrt" takes the squares of the first and last beta.
        power = 2 if kind == "sqrt" else 1
        ends = [_nearest(beta, power) for beta in betas[[0, -1]]]
        with np.errstate(all="ignore"):
            made = table(len(betas), *ends, 0.008)
        if same_numbers(betas, made):
            section = dict(
                kind=kind,
                num_train_timesteps=len(betas),
                beta_start=ends[0],
                beta_end=ends[1],
            )
            found.append((np.max(np.abs(made / values - 1)), section))
    return min(found, key=lambda pair: pair[0])[1] if found else None


def _nearest(stored, power):
    """The number whose root was stored: a published one, or one with few digits."""
    value = float(stored) ** power
    rounded = [float(f"{value:.{digits}g}") for digits in range(1, 7)]
    for number in (*_PUBLISHED_ENDS, *rounded):
        if np.asarray(number ** (1 / power)).astype(stored.dtype) == stored:
            return number
    return rounded[-1]


def _shape_of(weights: StateDict, prefix: str) -> Callable[[str], tuple[int, ...]]:
    """Makes a function that maps a key without prefix to the shape of its kernel."""

    def shape(key):
        if prefix + key not in weights:
            raise ConversionError(f"missing key {prefix}{key}")
        found = tuple(weights[prefix + key].shape)
        if len(found) < 2 or 0 in found:
            raise ConversionError(f"{prefix}{key} {found} is no kernel of a layer")
        return found

    return shape


def _ratio(width, channels):
    """`channel_mult` of a level; a width of 96 for 64 channels needs a fraction."""
    ratio = width / channels
    return int(ratio) if ratio == int(ratio) else ratio


def _one_or_all(values):
    return values[0] if len(set(values)) == 1 else values


# First and last betas of the noise schedules of published models.
_PUBLISHED_ENDS = 0.00085, 0.012, 0.0015, 0.0195, 0.0155, 0.0205, 0.015, 1e-4, 0.02

# Other models with the same prefixes -> text in the names of their weights.
_OTHERS = {
    "Stable Diffusion 3": f"{UNET}joint_blocks.",
    "Flux": f"{UNET}double_blocks.",
    "a model of generative-models, such as SDXL": "conditioner.embedders.",
    "the U-Net of SDXL": f"{UNET}label_emb.0.0.",
}
