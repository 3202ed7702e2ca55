"""Converts CompVis's conditioning to our config section `conditions`, and back.

Conditions with weights are rows of `cond_stages`. Those without follow from the U-Net:
a class embedding of its own, input channels besides the latents', and a context that no
network computes.

| condition | kind | models |
| --- | --- | --- |
| label | class_label | class-conditional models |
| caption | text, clip_text | text to image, Stable Diffusion |
| boxes | layout | layout to image |
| segmentation | spatial | semantic synthesis |
| low_res | raw | super-resolution |
| masked_image | masked_image | inpainting |
| depth | spatial | Stable Diffusion 2's depth to image |
| source_image | encoded | InstructPix2Pix |
| embedding | raw | retrieval-augmented diffusion |
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from ldm_jax.annotations import Shaped
from ldm_jax.conditioners.conditioner import CONDITIONERS
from ldm_jax.convert.compvis.cond_stages import COND_STAGES
from ldm_jax.diffusion.latent_statistics import LatentStatistics
from ldm_jax.errors import ConversionError
from ldm_jax.weights.state_dict import Row, StateDict, prefixed

# An entry of the config section is the options of one condition, with its "kind".
Conditions = Mapping[str, Mapping[str, Any]]

_MODULES = "ldm.modules.encoders.modules"
_UNCONDITIONAL, _FIRST_STAGE = "__is_unconditional__", "__is_first_stage__"
_NO_WEIGHTS = {"target": "torch.nn.Identity"}
# Batch keys of conditions without weights.
EMBEDDING, _MASKED, _LOW_RES, _DEPTH = "embedding", "masked_image", "low_res", "depth"
SOURCE = "source_image"
# Order and scale of a mask in Stable Diffusion; CompVis's own inpainting model has the
# opposite.
_STABLE_MASK = dict(mask_first=True, signed_mask=False)
_MASK = dict(mask_first=False, signed_mask=True)


# Reading.


def deduce_cond_stage(
    weights: StateDict, unet: Mapping[str, Any]
) -> dict[str, Any] | str:
    """Deduces the YAML's `cond_stage_config` from the weights.

    Args:
      weights: Dict of key, without prefix -> array with a shape; {} if there are none.
      unet: UNetModel options.

    Returns:
      Dict of "target", or the name of a cond stage without weights of its own.

    Raises:
      ConversionError: If the kind of cond stage is unknown.
    """
    if not weights:
        more = unet["in_channels"] > unet["out_channels"]
        return _NO_WEIGHTS if more or unet.get("context_dim") else _UNCONDITIONAL
    if "encoder.conv_in.weight" in weights:
        return _FIRST_STAGE
    for name, row in COND_STAGES.items():
        if any(key.startswith(row.mark) for key in weights):
            return {"target": f"{_MODULES}.{name}"}
    raise ConversionError(
        f"a cond stage with weights such as {next(iter(weights))} is not known"
    )


def read_conditions(
    config: Mapping[str, Any] | str | None,
    unet: Mapping[str, Any],
    weights: StateDict,
    factor: int,
) -> dict[str, dict[str, Any]]:
    """Reads the config section `conditions` from the options of a YAML.

    Args:
      config: Its `cond_stage_config`; None is unconditional.
      unet: Its UNetModel options.
      weights: The cond stage's weights, without prefix.
      factor: Downsampling factor of the first stage.

    Returns:
      Batch key -> entry.

    Raises:
      ConversionError: If the kind of the cond stage is not supported or its weights are
        incomplete.
    """
    conditions, name = {}, _name(config)
    if name in COND_STAGES:
        row = COND_STAGES[name]
        try:
            options = row.deduce(weights, factor) | (config.get("params") or {})
        except KeyError as error:
            raise ConversionError(
                f"missing key cond_stage_model.{error.args[0]}"
            ) from error
        entry = row.to_entry(options)
        conditions["boxes" if entry["kind"] == "layout" else row.key] = entry
    elif name == "Identity" and unet.get("context_dim"):
        conditions |= {EMBEDDING: dict(kind="raw", slot="context")}
    elif name not in ("Identity", _UNCONDITIONAL, _FIRST_STAGE):
        raise ConversionError(
            f"the cond stage {name} is not supported; known are "
            + ", ".join([*COND_STAGES, "Identity", _UNCONDITIONAL, _FIRST_STAGE])
        )
    return conditions | unet_conditions(unet, conditions, factor)


def unet_conditions(
    unet: Mapping[str, Any], conditions: Conditions, factor: int
) -> dict[str, dict[str, Any]]:
    """Finds the conditions without weights of their own that a U-Net implies.

    Args:
      unet: UNetModel options.
      conditions: The conditions that have weights.
      factor: Downsampling factor of the first stage.

    Returns:
      Batch key -> entry: its class embedding, and maps for the input channels that are
      neither the latents' nor those of `conditions`.

    Raises:
      ConversionError: If the number of these channels has no known use.
    """
    entries = {}
    if unet.get("num_classes") is not None:
        entries["label"] = dict(
            kind="class_label",
            slot="vector",
            num_classes=unet["num_classes"],
            features=4 * unet["model_channels"],
            null_class=False,
        )
    more, latents = unet["in_channels"] - unet["out_channels"], unet["out_channels"]
    for entry in _of_kind(conditions, "spatial"):
        more -= entry["features"] or entry["num_classes"]
    if more == latents + 1:
        entries[_MASKED] = dict(kind="masked_image", **_mask(unet.get("context_dim")))
    elif more == 1:
        small = dict(num_stages=1, method="bicubic", multiplier=1 / factor)
        entries[_DEPTH] = dict(kind="spatial", **small, stretch=True)
    elif more == latents and unet.get("context_dim"):
        entries[SOURCE] = dict(kind="encoded", slot="concat")
    elif more == 3:
        entries[_LOW_RES] = dict(kind="raw", slot="concat")
    elif more:
        raise ConversionError(
            f"the U-Net takes {unet['in_channels']} channels and gives {latents}, "
            f"which is no known use: beside the latents there may be 1 of depth, 3 of "
            f"a small image, {latents} of an image's latents and a context, or "
            f"{latents + 1} of a masked image"
        )
    return entries


def with_scale(conditions: Conditions, scaling_factor: float) -> None:
    """Sets the scale of a source image, whose latents are used without scaling factor.

    Args:
      conditions: Config section, of dicts; changed in place.
      scaling_factor: Factor that scales latents to unit variance.
    """
    if SOURCE in conditions:
        conditions[SOURCE]["scale"] = 1.0 / scaling_factor


def require_scale(conditions: Conditions, statistics: LatentStatistics) -> None:
    """Checks that latents of a source image are scaled as in other formats.

    Args:
      conditions: Config section.
      statistics: Statistics of the latents, on the host.

    Raises:
      ConversionError: If they are scaled otherwise.
    """
    for entry in _of_kind(conditions, "encoded"):
        scale, factor = entry.get("scale", 1.0), statistics.scale
        plain = not statistics.per_channel and not statistics.shift
        if not plain or abs(scale * factor - 1) > 1e-6:
            raise ConversionError(
                "models of other formats take the latents of an image as the first "
                "stage makes them (scale = 1 / scaling_factor), but this one takes "
                f"them of scale={scale:.6g}: keep it as a workdir"
            )


def _mask(context_dim):
    """Options of the mask; inpainting models with a context are Stable Diffusion's."""
    return _STABLE_MASK if context_dim else _MASK


def require_mask(conditions: Conditions, context_dim: int | None) -> None:
    """Checks that a masked image has the same options as in other formats.

    Args:
      conditions: Config section.
      context_dim: Width of the U-Net's context; None if it has none.

    Raises:
      ConversionError: If it has other options.
    """
    usual = _mask(context_dim)
    for entry in _of_kind(conditions, "masked_image"):
        found = {name: entry.get(name, default) for name, default in _MASK.items()}
        if found != usual or entry.get("scale", 1.0) != 1.0:
            known = usual | dict(scale=1)
            options = ", ".join(f"{name}={value}" for name, value in known.items())
            raise ConversionError(
                "the masked image of this model cannot be said in other formats: "
                f"{'with' if context_dim else 'without'} a context they take {options}"
            )


def _name(config):
    config = config or _UNCONDITIONAL
    return config if isinstance(config, str) else config["target"].rpartition(".")[2]


def _of_kind(conditions, kind):
    return [entry for entry in conditions.values() if entry["kind"] == kind]


# Writing.


def cond_stage(
    conditions: Conditions,
) -> tuple[str, str, dict[str, Any]] | None:
    """Finds the cond stage with weights that conditions need.

    Args:
      conditions: Config section.

    Returns:
      (name in COND_STAGES, batch key, entry), or None if there is none.

    Raises:
      ConversionError: If CompVis's code does not have such a cond stage.
    """
    entries = {
        key: with_defaults(entry)
        for key, entry in conditions.items()
        if not is_embedded(entry) and not _is_bare(key, entry)
    }
    if not entries:
        return None
    if len(entries) == 1:
        ((key, entry),) = entries.items()
        for name, row in COND_STAGES.items():
            if row.fits(entry):
                return name, key, entry
    raise ConversionError(
        f"CompVis has no cond stage for the conditions {', '.join(entries)}"
    )


def require_limits(conditions: Conditions) -> None:
    """Checks that CompVis's class of a cond stage has the options of a condition.

    Args:
      conditions: Config section.

    Raises:
      ConversionError: If an option has a value that the class does not have.
    """
    found = cond_stage(conditions)
    if found is None:
        return
    name, key, entry = found
    limits = COND_STAGES[name].limits(entry)
    require_options(key, entry, limits, f"CompVis's format, whose {name}")


def require_options(
    key: str, entry: Mapping[str, Any], limits: Mapping[str, Any], place: str
) -> None:
    """Checks that a class of another program has the options of a condition.

    Args:
      key: Batch key of the condition.
      entry: Its entry of the config section.
      limits: Option -> the only value that the class has.
      place: The format and the class, for messages.

    Raises:
      ConversionError: If an option has another value.
    """
    complete = with_defaults(entry)
    for option, value in limits.items():
        given = complete.get(option, value)
        if given != value:
            raise ConversionError(
                f"conditions.{key}.{option}={given} cannot be said in {place} has "
                f"{option}={value} always"
            )


def with_defaults(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Fills in the defaults of an entry's conditioner.

    Args:
      entry: Entry of the config section.

    Returns:
      Dict of all options that have a value.
    """
    fields = dataclasses.fields(CONDITIONERS[entry["kind"]])
    usual = {f.name: f.default for f in fields if f.name not in ("parent", "name")}
    known = {k: v for k, v in usual.items() if v is not dataclasses.MISSING}
    return known | dict(entry)


def is_embedded(entry: Mapping[str, Any]) -> bool:
    """Whether a condition is the U-Net's class embedding in CompVis.

    Args:
      entry: Entry of the config section.

    Returns:
      Whether its weights are the U-Net's `label_emb`.
    """
    return entry["kind"] == "class_label" and entry.get("slot") == "vector"


def _is_bare(key, entry):
    """Whether a condition has neither weights nor a cond stage in CompVis."""
    depth = key == _DEPTH and not entry.get("features")
    source = key == SOURCE and entry["kind"] == "encoded"
    return depth or source or entry["kind"] in ("raw", "masked_image")


def condition_rows(conditions: Conditions) -> list[Row]:
    """Maps the cond stage's weights to the conditioner's.

    Args:
      conditions: Config section.

    Returns:
      List of Rows; their keys have no prefix, ours begin with the batch key.
    """
    found = cond_stage(conditions)
    if found is None:
        return []
    name, key, entry = found
    return prefixed(COND_STAGES[name].rows(entry), "", f"{key}/")


def examples(
    conditions: Conditions, unet: Mapping[str, Any], image_size: int, factor: int
) -> dict[str, Shaped[np.ndarray, "1 ..."]]:
    """Makes an example batch, for shapes.

    Args:
      conditions: Config section.
      unet: UNetModel options.
      image_size: Side of the images.
      factor: Downsampling factor of the first stage.

    Returns:
      Batch key -> array [1, ...].
    """
    batch, size = {}, image_size // factor
    found = cond_stage(conditions)
    for key, entry in conditions.items():
        if found and key == found[1]:
            batch[key] = COND_STAGES[found[0]].example(found[2], image_size)
        elif entry["kind"] == "class_label":
            batch[key] = np.zeros(1, np.int32)
        elif key == EMBEDDING:
            batch[key] = _example(1, 1, unet["context_dim"])
        elif key == _LOW_RES:
            more = unet["in_channels"] - unet["out_channels"]
            batch[key] = _example(1, size, size, more)
        else:
            channels = {_MASKED: 4, _DEPTH: 1, SOURCE: 3}[key]
            batch[key] = _example(1, image_size, image_size, channels)
    return batch


def _example(*shape):
    """Zeros that use no memory, at any size."""
    return np.broadcast_to(np.float32(0), shape)


def conditions_yaml(conditions: Conditions) -> dict[str, Any]:
    """Writes the keys of the YAML's `model.params` for conditions.

    Args:
      conditions: Config section.

    Returns:
      Dict of `conditioning_key`, `cond_stage_config` and the like.
    """
    found = cond_stage(conditions)
    bare = {key for key, entry in conditions.items() if _is_bare(key, entry)}
    if found:
        name, _, entry = found
        row = COND_STAGES[name]
        config = {"target": f"{_MODULES}.{name}", "params": row.to_params(entry)}
        both = {"conditioning_key": "hybrid"} if bare else {}
        return {"cond_stage_config": config} | row.yaml | both
    if not bare:
        return {"conditioning_key": None, "cond_stage_config": _UNCONDITIONAL}
    context = any(entry.get("slot") == "context" for entry in conditions.values())
    return {
        "conditioning_key": "crossattn" if context else "concat",
        "cond_stage_config": _FIRST_STAGE if _MASKED in bare else _NO_WEIGHTS,
        "cond_stage_key": next(iter(conditions)),
    }
