"""Converts config.json of diffusers' U-Nets to our section `backbone`, and back."""

from collections.abc import Mapping
from typing import Any

from ldm_jax.convert.diffusers.fields import complete
from ldm_jax.convert.diffusers.values import (
    attends_at,
    per_level,
    ratios,
    require_equal,
    whole,
    whole_widths,
)
from ldm_jax.convert.model import make_unet
from ldm_jax.errors import ConversionError
from ldm_jax.models.unet import UNet

# Reading.


def unet_section(config: Mapping[str, Any]) -> dict[str, Any]:
    """Reads the options of a U-Net.

    Args:
      config: config.json of a UNet2DConditionModel or a UNet2DModel.

    Returns:
      Config section `backbone`.

    Raises:
      ConversionError: If an option is not known or not supported.
    """
    config = complete(config)
    conditional = config["_class_name"] == "UNet2DConditionModel"
    widths = whole_widths(config)
    levels = len(widths)
    require_equal(config, "time_embedding_dim", (None, 4 * widths[0]))
    require_equal(config, "resnet_time_scale_shift", ("default", "scale_shift"))
    attend = "CrossAttn" if conditional else "Attn"
    layers = config["layers_per_block"]
    section = dict(
        channels=widths[0],
        channel_mult=ratios(widths),
        num_res_blocks=(
            per_level(config, "layers_per_block", levels)
            if conditional
            else whole(config["_class_name"], "layers_per_block", layers)
        ),
        attention_factors=attends_at(config, f"{attend}DownBlock2D", "DownBlock2D"),
        transformer_depth=0,
        scale_shift_norm=config["resnet_time_scale_shift"] == "scale_shift",
        dropout=float(config["dropout"]),
        norm_groups=whole(
            config["_class_name"], "norm_num_groups", config["norm_num_groups"]
        ),
    )
    if conditional:
        return section | _conditional(config, levels)
    return section | _plain(config, section)


def _conditional(config, levels):
    depth = per_level(config, "transformer_layers_per_block", levels)
    up = config["reverse_transformer_layers_per_block"]
    down = list(depth) if isinstance(depth, tuple) else [depth] * levels
    if up is not None and list(up) != down[::-1]:
        raise ConversionError(
            f"reverse_transformer_layers_per_block={up} of UNet2DConditionModel is not "
            "supported: only as many transformer blocks going up as going down are"
        )
    if 0 in down:
        raise ConversionError(
            f"transformer_layers_per_block={depth} of UNet2DConditionModel is not "
            "supported: every level needs at least 1"
        )
    # `attention_head_dim` of a conditional U-Net is the number of heads in diffusers.
    given = config["num_attention_heads"] is not None
    field = "num_attention_heads" if given else "attention_head_dim"
    return dict(transformer_depth=depth, num_heads=per_level(config, field, levels))


def _plain(config, section):
    size = config["attention_head_dim"]
    heads = dict(num_heads=1)
    if size is not None:
        heads = dict(head_channels=whole("UNet2DModel", "attention_head_dim", size))
    # Without it, U-Nets with scale_shift_norm have no norm in the middle attention.
    groups = config["attn_norm_num_groups"]
    if groups is None:
        groups = 0 if section["scale_shift_norm"] else section["norm_groups"]
    if groups != section["norm_groups"]:
        return heads | dict(middle_norm_groups=groups)
    return heads


def unet_shape(config: Mapping[str, Any]) -> dict[str, Any]:
    """Reads the options of a U-Net that determine its conditions.

    Args:
      config: config.json of a UNet2DConditionModel or a UNet2DModel.

    Returns:
      Dict in the terms of CompVis's options, for `compvis.conditions`.

    Raises:
      ConversionError: If an option is not known or not supported.
    """
    config = complete(config)
    widths = whole_widths(config)
    context = config.get("cross_attention_dim")
    if isinstance(context, list):
        if len(set(context)) != 1:
            raise ConversionError(
                f"cross_attention_dim={context} of UNet2DConditionModel is not "
                "supported: only one width for all levels is"
            )
        context = context[0]
    return dict(
        in_channels=config["in_channels"],
        out_channels=config["out_channels"],
        context_dim=context,
        num_classes=config["num_class_embeds"],
        model_channels=widths[0],
        channel_mult=ratios(widths),
    )


# Writing.


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
      context_dim: Width of the context; None if there is none.
      origin: See `model.Model`.

    Returns:
      config.json.

    Raises:
      ConversionError: If diffusers does not have such a U-Net.
    """
    section = config["backbone"]
    unet = make_unet(section)
    _refuse(unet)
    levels = range(len(unet.channel_mult))
    widths = [int(unet.channels * mult) for mult in unet.channel_mult]
    attends = [unet.attends_at(level) for level in levels]
    attend = "CrossAttn" if context_dim else "Attn"
    result = dict(
        _class_name="UNet2DConditionModel" if context_dim else "UNet2DModel",
        sample_size=config["data"]["image_size"],
        in_channels=channels[0],
        out_channels=channels[1],
        block_out_channels=widths,
        layers_per_block=_list(unet.num_res_blocks),
        down_block_types=[f"{attend if a else ''}DownBlock2D" for a in attends],
        up_block_types=[f"{attend if a else ''}UpBlock2D" for a in attends[::-1]],
        act_fn="silu",
        norm_eps=1e-5,
        norm_num_groups=unet.norm_groups,
        dropout=unet.dropout,
        downsample_padding=1,
        flip_sin_to_cos=True,
        freq_shift=0,
        resnet_time_scale_shift="scale_shift" if unet.scale_shift_norm else "default",
    )
    if not context_dim:
        return result | _plain_config(unet)
    depths = {unet.depth_at(level) for level in levels if attends[level]}
    if 0 in depths | {unet.depth_at(levels[-1])}:
        raise ConversionError(
            f"backbone.transformer_depth={unet.transformer_depth} cannot be said in "
            "diffusers' format, whose conditional U-Nets have transformer blocks in "
            "every attention"
        )
    return result | dict(
        attention_head_dim=_head_counts(unet, widths),
        cross_attention_dim=context_dim,
        transformer_layers_per_block=_list(unet.transformer_depth),
        use_linear_projection=origin.get("linear_projection", False),
    )


def _refuse(unet: UNet) -> None:
    """Raises an error for options that no U-Net of diffusers has."""
    wrong = {
        "resblock_updown": unet.resblock_updown,
        "conv_resample": not unet.conv_resample,
        "adaln_zero": unet.adaln_zero,
        "up_num_heads": unet.up_num_heads is not None
        and any(
            unet.heads_at(level) != unet.heads_at(level, up=True)
            for level in range(len(unet.channel_mult))
            if unet.attends_at(level)
        ),
        "channel_mult": any(
            int(unet.channels * mult) != unet.channels * mult
            for mult in unet.channel_mult
        ),
    }
    for option, found in wrong.items():
        if found:
            raise ConversionError(
                f"backbone.{option}={getattr(unet, option)} cannot be said in "
                "diffusers' format: keep the model as a workdir"
            )


def _plain_config(unet):
    """Fields in which a UNet2DModel differs from a conditional U-Net."""
    last = len(unet.channel_mult) - 1
    attending = [level for level in range(last + 1) if unet.attends_at(level)]
    counts, sizes = map(set, zip(*map(unet.heads_at, (*attending, last)), strict=True))
    if len(sizes) == 1 and unet.num_heads != 1:
        size = sizes.pop()
    elif counts == {1}:
        size = None
    else:
        raise ConversionError(
            f"backbone.num_heads={unet.num_heads}, head_channels={unet.head_channels}: "
            "diffusers' UNet2DModel has one head size everywhere"
        )
    layers = {unet.blocks_at(level) for level in range(last + 1)}
    if len(layers) > 1:
        raise ConversionError(
            f"backbone.num_res_blocks={unet.num_res_blocks}: diffusers' UNet2DModel "
            "has as many in every level"
        )
    result = dict(attention_head_dim=size, layers_per_block=layers.pop())
    groups = unet.middle_norm_groups
    groups = unet.norm_groups if groups is None else groups
    if groups == 0 and not unet.scale_shift_norm:
        raise ConversionError(
            "backbone.middle_norm_groups=0 cannot be said in diffusers' format without "
            "scale_shift_norm"
        )
    # If it is left out, the middle attention's norm has as many groups as the others,
    # but with scale_shift_norm there is no norm.
    if groups != unet.norm_groups or unet.scale_shift_norm:
        result["attn_norm_num_groups"] = groups or None
    return result


def _head_counts(unet, widths):
    """Heads of a conditional U-Net; count times size must be the width of a level."""
    heads, size = unet.num_heads, unet.head_channels
    if heads is not None and size is not None:
        for level, width in enumerate(widths):
            count, channels = unet.heads_at(level)
            if count * channels != width:
                raise ConversionError(
                    f"backbone.num_heads={heads}, head_channels={size} do not make up "
                    f"the {width} channels of level {level}, as they must in diffusers"
                )
    if heads is not None:
        return _list(heads)
    return [max(unet.heads_at(level)[0], 1) for level in range(len(widths))]


def _list(value):
    return list(value) if isinstance(value, tuple | list) else value
