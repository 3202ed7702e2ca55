"""Converts config.json of diffusers' autoencoders to our `first_stage`, and back."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ldm_jax.convert.diffusers.fields import complete
from ldm_jax.convert.diffusers.values import (
    attends_at,
    ratios,
    require_equal,
    whole,
    whole_widths,
)
from ldm_jax.convert.hints import SECTION
from ldm_jax.convert.model import first_stage_row, require_nearest
from ldm_jax.diffusion.latent_statistics import LatentStatistics
from ldm_jax.errors import ConversionError


def first_stage_section(config: Mapping[str, Any]) -> dict[str, Any]:
    """Reads the options of a first stage.

    Args:
      config: config.json of an AutoencoderKL or a VQModel.

    Returns:
      Config section `first_stage`.

    Raises:
      ConversionError: If an option is missing or not supported.
    """
    config = complete(config)
    name = config["_class_name"]
    widths = whole_widths(config)
    require_equal(config, "in_channels", (config["out_channels"],))
    numbers = {
        ours: whole(name, field, config[field]) for ours, field in _NUMBERS.items()
    }
    section = dict(
        kind=_FIRST_STAGES[name],
        channels=widths[0],
        channel_mult=ratios(widths),
        **numbers,
        embed_dim=numbers["z_channels"],
        attention_factors=attends_at(
            config, "AttnDownEncoderBlock2D", "DownEncoderBlock2D"
        ),
        mid_attention=config["mid_block_add_attention"],
        quant_conv=_quant_conv(config),
    )
    if section["kind"] == "vq":
        section["embed_dim"] = config["vq_embed_dim"] or section["z_channels"]
        section["num_codes"] = config["num_vq_embeddings"]
    return section


def _quant_conv(config):
    """Whether there are 1x1 convolutions next to the latents: both or none."""
    found = [config.get(key, True) for key in ("use_quant_conv", "use_post_quant_conv")]
    if found[0] != found[1]:
        raise ConversionError(
            f"use_quant_conv={found[0]} with use_post_quant_conv={found[1]} is not "
            "supported: only both or none"
        )
    return bool(found[0])


# Fields of an autoencoder's config.json with the statistics of its latents.
STATISTICS = ("scaling_factor", "shift_factor", "latents_mean", "latents_std")


def latent_statistics(config: Mapping[str, Any]) -> LatentStatistics:
    """Reads the statistics of the latents from the config.json of an autoencoder.

    Pipelines normalise latents z to (z - shift_factor) * scaling_factor or, per
    channel, to (z - latents_mean) * scaling_factor / latents_std.

    Args:
      config: The config.json.

    Returns:
      LatentStatistics on the host.

    Raises:
      ConversionError: If the values are invalid or contradict each other.
    """
    config = complete(config)
    scale, shift = config["scaling_factor"], config.get("shift_factor")
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
        found.check_channels(config["latent_channels"])
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
      ConversionError: If a model of that kind has no fields for them.
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


def no_statistics() -> dict[str, Any]:
    """Writes that the latents of a first stage have not been measured.

    Returns:
      "scaling_factor" of 1, with which diffusers does not scale latents (its default is
      0.18215), and our own section, which marks it as not measured.
    """
    return {"scaling_factor": _FILLER, f"_{SECTION}": {"scaling_factor": None}}


def says_no_statistics(config: Mapping[str, Any]) -> bool:
    """Recognises a config.json written with `no_statistics`.

    Args:
      config: The config.json, which may contain anything.

    Returns:
      Whether its scaling_factor was not measured; False if it was changed since.
    """
    hints = config.get(f"_{SECTION}")
    return (
        isinstance(hints, Mapping)
        and hints.get("scaling_factor", _FILLER) is None
        and config.get("scaling_factor") == _FILLER
    )


def first_stage_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Writes the config.json of a first stage; the inverse of `first_stage_section`.

    Args:
      config: Config of the first stage.

    Returns:
      The config.json, without the statistics of the latents.

    Raises:
      ConversionError: If diffusers has no such first stage.
    """
    section = config["first_stage"]
    names = {ours: theirs for theirs, ours in _FIRST_STAGES.items()}
    kind, class_name = first_stage_row(section, names, "diffusers")
    require_nearest(section)
    _refuse(section)
    widths = [int(section["channels"] * mult) for mult in section["channel_mult"]]
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


def _refuse(section):
    """Raises an error for options that no autoencoder of diffusers has."""
    ours = dict(conv_resample=True, tanh_output=False)
    for option, value in ours.items():
        if section.get(option, value) != value:
            raise ConversionError(
                f"first_stage.{option}={section[option]} cannot be said in diffusers' "
                "format: keep the model as a workdir"
            )
    for mult in section["channel_mult"]:
        if section["channels"] * mult % 1:
            raise ConversionError(
                f"first_stage.channel_mult={mult} of channels={section['channels']} is "
                "no whole number of channels"
            )


# A scaling factor that does not change latents.
_FILLER = 1.0
_FIRST_STAGES = {"AutoencoderKL": "kl", "VQModel": "vq"}
# Whole numbers: our field -> theirs.
_NUMBERS = dict(
    num_res_blocks="layers_per_block",
    z_channels="latent_channels",
    image_channels="out_channels",
    norm_groups="norm_num_groups",
)
