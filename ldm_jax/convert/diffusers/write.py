"""Writes models as folders of diffusers: one network, or a whole pipeline."""

import os
from collections.abc import Callable
from typing import Any

import numpy as np

from ldm_jax.build import make_first_stage
from ldm_jax.convert.carried import write_files
from ldm_jax.convert.compvis.conditions import (
    is_embedded,
    require_mask,
    require_options,
    require_scale,
)
from ldm_jax.convert.diffusers import config as diffusers_config
from ldm_jax.convert.diffusers.pipelines import NO_CLASS, VERSION, index_of
from ldm_jax.convert.diffusers.rows import (
    first_stage_folder,
    first_stage_rows,
    pipeline_rows,
)
from ldm_jax.convert.diffusers.schedule_config import schedule_config, schedule_section
from ldm_jax.convert.diffusers.text_config import text_config, text_limits
from ldm_jax.convert.diffusers.tokenizer_files import tokenizer_files
from ldm_jax.convert.diffusers.unet_config import unet_config
from ldm_jax.convert.hints import SECTION, hints_of
from ldm_jax.convert.model import Model, Options, cast
from ldm_jax.files import write_json
from ldm_jax.store import as_path
from ldm_jax.weights.files import write_weights
from ldm_jax.weights.state_dict import select, to_state_dict


def write(
    model: Model,
    folder: str | os.PathLike,
    options: Options,
    log: Callable[[str], Any] = print,
) -> None:
    """Writes a network or a pipeline.

    Args:
      model: Model.
      folder: Folder to create.
      options: Options; `raw` writes the trained weights, not their average.
      log: Called with lines of information.

    Raises:
      ConversionError: If diffusers does not have such a model.
      ValueError: If a weight has no key in diffusers' format.
    """
    folder = as_path(folder)
    configs, tensors = state(model, options.raw)
    if "discriminator" in model.params:
        log("discriminator: has no place in diffusers' format, left out")
    single = len(configs) == 1 and model.first_stage is None
    for name, config in configs.items():
        part = folder if single else folder / name
        text = name in ("text_encoder", "bert")
        file = "model.safetensors" if text else "diffusion_pytorch_model.safetensors"
        write_weights(part / file, select(tensors, f"{name}/"))
        write_json(part / "config.json", config)
    if not single:
        _write_rest(model, configs, folder, log)


def _write_rest(model, configs, folder, log):
    """Writes the parts of a pipeline besides its networks."""
    scheduler = _scheduler(model)
    write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
    _add_tokenizer(model, log)
    write_files(folder, model.files)
    index = index_of(model, configs, scheduler["_class_name"])
    write_json(folder / "model_index.json", index)
    if index["_class_name"] == NO_CLASS:
        log(
            "diffusers has no pipeline class that runs this model: model_index.json "
            f"says {NO_CLASS}; open its parts ({', '.join(configs)}, scheduler) with "
            "from_pretrained of their own classes"
        )
    elif index.get("depth_estimator") == [None, None]:
        log(
            "the pipeline's depth_estimator is not written, as models have none: open "
            "it with from_pretrained(folder, depth_estimator=None, "
            "feature_extractor=None) and give it a depth_map"
        )


def _add_tokenizer(model, log):
    """Adds the tokenizer of the captions, if there are any and it is missing."""
    sections = model.config["data"].get("inputs") or {}
    for key, entry in model.config["conditions"].items():
        section = sections.get(key)
        if entry["kind"] not in ("text", "clip_text") or _has(model, "tokenizer"):
            continue
        files = tokenizer_files(section) if section else {}
        model.files = model.files | files
        if not files:
            name = section["tokenizer"] if section else "its captions"
            log(
                f"the tokenizer of {name} is not on this machine: put its files into "
                "tokenizer/ and its class into model_index.json"
            )


def _has(model, part):
    return any(name.startswith(f"{part}/") for name in model.files)


def _scheduler(model):
    """The scheduler as it was read, if it matches the config, or else a new one."""
    section = model.config["schedule"]
    kept = model.origin.get("scheduler")
    if kept is not None:
        read = schedule_section(kept)
        if all(section.get(key, value) == value for key, value in read.items()):
            return {"_class_name": "DDIMScheduler"} | kept
    made = schedule_config(section, model.config.get("sample") or {})
    return made | {"_diffusers_version": VERSION}


def state(
    model: Model, raw: bool = False
) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Converts a model to configs and tensors with diffusers' names.

    Args:
      model: Model.
      raw: Whether to use the trained weights, not their average.

    Returns:
      (folder -> config.json, dict of "folder/key" -> array).
    """
    params = model.params if raw or not model.ema_params else model.ema_params
    origin = model.origin if model.origin.get("format") == "diffusers" else {}
    kept = origin.get("configs", {})
    if model.config["stage"] == "autoencoder":
        name = next(iter(kept), "vae")
        configs = {name: diffusers_config.first_stage_config(model.config)}
        if not kept or diffusers_config.says_no_statistics(kept[name]):
            configs[name] |= diffusers_config.no_statistics()
        if hints := hints_of(model):
            configs[name][f"_{SECTION}"] = configs[name].get(f"_{SECTION}", {}) | hints
        tree = {"params": {"autoencoder": params["autoencoder"]}}
        rows = first_stage_rows(model.config, name, "")
    else:
        first = model.first_stage
        configs = _configs(model)
        tree = {"params": params}
        if first:
            weights = first.ema_params or first.params
            weights = {"autoencoder": weights["autoencoder"]}
            tree["first_stage"] = {"params": weights}
        rows = pipeline_rows(model)
    tensors = to_state_dict(rows, tree)
    if origin:
        tensors |= model.carried
    for key, dtype in origin.get("dtypes", {}).items():
        tensors[key] = cast(tensors[key], np.dtype(dtype))
    return {name: _merged(kept.get(name), configs[name]) for name in configs}, tensors


def _merged(kept, config):
    """Adds the fields that a config.json had when it was read."""
    if kept is None:
        return {"_diffusers_version": VERSION} | config
    return kept | config


def _configs(model):
    config, first = model.config, model.first_stage
    unet = model.params["backbone"]
    channels = unet["conv_in"]["kernel"].shape[2], unet["conv_out"]["kernel"].shape[3]
    block = unet["middle_attention"].get("block_0")
    context = block and block["cross_attention"]["key"]["kernel"].shape[0]
    require_mask(config["conditions"], context)
    require_scale(config["conditions"], model.statistics)
    factor = 1
    if first:
        factor = make_first_stage(first.config["first_stage"]).downsampling_factor
    sized = config | {"data": {"image_size": config["data"]["image_size"] // factor}}
    configs = {"unet": unet_config(sized, channels, context, model.origin)}
    label = config["conditions"].get("label")
    if label and is_embedded(label):
        rows = label["num_classes"] + label.get("null_class", True)
        configs["unet"]["num_class_embeds"] = rows
    if first:
        name = first_stage_folder(model)
        described = diffusers_config.first_stage_config(first.config)
        configs[name] = described | statistics_of(model, name, described["_class_name"])
    for key, entry in config["conditions"].items():
        if entry["kind"] in ("text", "clip_text"):
            name = "bert" if entry["kind"] == "text" else "text_encoder"
            configs[name] = text_config(entry)
            place = f"diffusers' format, whose {configs[name]['architectures'][0]}"
            require_options(key, entry, text_limits(entry), place)
    return configs


def statistics_of(model: Model, name: str, kind: str) -> dict[str, Any]:
    """Makes the statistics of the latents in a first stage's config.json.

    Args:
      model: Model of a second stage.
      name: Folder of its first stage.
      kind: "AutoencoderKL" or "VQModel".

    Returns:
      Their fields of the config.json.

    Raises:
      ConversionError: If a model of that kind has no fields for them.
    """
    written = diffusers_config.statistics_config(model.statistics, kind)
    kept = model.origin.get("configs", {}).get(name)
    if kept is None:
        return written
    read = diffusers_config.latent_statistics(kept)
    kept = {key: kept[key] for key in diffusers_config.STATISTICS if key in kept}
    if read == model.statistics:
        # Kept as they were, since a division and its inverse may lose a digit.
        return written | kept
    return dict.fromkeys(kept) | written
