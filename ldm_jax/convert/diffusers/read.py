"""Reads folders of diffusers: one network with its config.json, or a whole pipeline.

A pipeline's networks are read as one dict, with the folder names as prefixes of the
keys, so that one mapping (`rows`) covers all of it, as for a checkpoint of CompVis.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from ldm_jax.build import make_first_stage
from ldm_jax.convert.bounds import check_numbers
from ldm_jax.convert.compvis.conditions import (
    EMBEDDING,
    SOURCE,
    examples,
    unet_conditions,
    with_scale,
)
from ldm_jax.convert.compvis.published import usual_guidance
from ldm_jax.convert.diffusers import config as diffusers_config
from ldm_jax.convert.diffusers.fields import complete
from ldm_jax.convert.diffusers.pipelines import (
    NETWORKS,
    note_left_out,
    parts_of,
    read_files,
)
from ldm_jax.convert.diffusers.rows import first_stage_rows, pipeline_rows
from ldm_jax.convert.diffusers.schedule_config import (
    sample_section,
    schedule_section,
    unlike,
)
from ldm_jax.convert.diffusers.text_config import text_entry
from ldm_jax.convert.diffusers.unet_config import unet_section, unet_shape
from ldm_jax.convert.diffusers.values import whole
from ldm_jax.convert.hints import SECTION, take_hints
from ldm_jax.convert.model import (
    Model,
    Options,
    autoencoder_config,
    diffusion_config,
    diffusion_shapes,
    first_stage_shapes,
)
from ldm_jax.diffusion.latent_statistics import LatentStatistics
from ldm_jax.errors import ConversionError
from ldm_jax.store import Place, is_dir, is_file
from ldm_jax.weights.files import read_json, read_weights
from ldm_jax.weights.folders import find_weights, variants
from ldm_jax.weights.state_dict import to_params


def recognise(path: Place) -> bool:
    """Recognises a folder of diffusers.

    Args:
      path: File or folder.

    Returns:
      Whether it is one.
    """
    names = ("config.json", "model_index.json")
    return any(is_file(path / name) for name in names)


def read(folder: Place, options: Options, log: Callable[[str], Any] = print) -> Model:
    """Reads a network or a pipeline.

    Args:
      folder: Folder with config.json or model_index.json.
      options: Options, see `model.Options`.
      log: Called with lines of information.

    Returns:
      Model.

    Raises:
      ConversionError: If a network or an option is not supported.
      ValueError: If keys are unread or missing, or shapes wrong.
    """
    parts, index = _parts(folder, options)
    tensors, configs = {}, {}
    files = _files(parts, options.variant, log)
    for name, part in parts.items():
        configs[name] = _read_config(part / "config.json")
        found = _modern(read_weights(files[name]).tensors)
        tensors |= {f"{name}/{key}": tensor for key, tensor in found.items()}
    origin = dict(format="diffusers", configs=configs)
    if index:
        origin["model_index"] = index
        scheduler = folder / "scheduler" / "scheduler_config.json"
        origin["scheduler"] = _read_config(scheduler)
    origin["dtypes"] = {
        key: str(tensor.dtype)
        for key, tensor in tensors.items()
        if tensor.dtype != np.float32
    }
    if _named(configs, _UNETS) is None:
        return _read_first_stage(tensors, configs, origin, options, log)
    model = _read_pipeline(tensors, configs, origin, options)
    if index:
        _read_rest(model, folder, index, log)
    else:
        log(
            "a U-Net alone says nothing of its noise levels: those of a DDIMScheduler "
            "are taken; give the folder of the pipeline to read them"
        )
    return model


def _read_rest(model, folder, index, log):
    """Keeps the files of other parts, and records what is left out."""
    parts = parts_of(index)
    others = parts.keys() - {*NETWORKS, "scheduler"}
    model.files = read_files(folder, others)
    if model.files:
        carried = sorted({name.partition("/")[0] for name in model.files})
        log(f"carried along as they are: {', '.join(carried)}")
    note_left_out(model, parts)
    for difference in unlike(model.origin["scheduler"]):
        model.left_out[f"{difference} of the scheduler"] = True


def _read_config(path):
    config = read_json(path)
    if not isinstance(config, dict):
        raise ConversionError(f"{path} holds no options but a {type(config).__name__}")
    check_numbers(config, str(path))
    return config


def _files(parts, variant, log):
    """The weights file of each network; a variant may be missing for some."""
    if variant is None:
        return {name: find_weights(part, log=log) for name, part in parts.items()}
    lacking = [name for name, part in parts.items() if variant not in variants(part)]
    if len(lacking) == len(parts):
        for part in parts.values():
            find_weights(part, variant)
    for name in lacking:
        log(f"{name}: has no variant {variant}, so the usual one is taken")
    return {
        name: find_weights(part, None if name in lacking else variant, log)
        for name, part in parts.items()
    }


def _parts(folder, options):
    """(name -> folder of each network, the model_index.json or {})."""
    if not is_file(folder / "model_index.json"):
        found = _read_config(folder / "config.json").get("_class_name")
        if found not in (*_UNETS, *_FIRST_STAGES):
            raise ConversionError(
                f"{folder} holds a {found}; supported are "
                + ", ".join((*_UNETS, *_FIRST_STAGES))
                + " and whole pipelines"
            )
        return {"unet" if found in _UNETS else "vae": folder}, {}
    index = _read_config(folder / "model_index.json")
    if options.only == "first_stage":
        found = [name for name in ("vae", "vqvae") if is_dir(folder / name)]
        if not found:
            raise ConversionError(f"{folder} holds neither vae nor vqvae")
        return {found[0]: folder / found[0]}, {}
    names = parts_of(index)
    return {name: folder / name for name in NETWORKS if name in names}, index


def _modern(tensors):
    """Renames tensors of old files to current names."""
    renamed = {}
    for key, tensor in tensors.items():
        if ".attentions." in key and ".transformer_blocks." not in key:
            for old, new in _OLD_NAMES.items():
                key = key.replace(old, new)
        renamed[key] = tensor
    return renamed


def _named(configs, classes):
    """The name of the first network of one of these classes, or None."""
    for name, config in configs.items():
        if config.get("_class_name") in classes:
            return name
    return None


def _side(config, default):
    """The longer side of the images or the latents of a network."""
    size = config.get("sample_size") or default
    size = max(size) if isinstance(size, list) else size
    return whole(config["_class_name"], "sample_size", size)


def _first_stage(config, image_size=None):
    """A first stage without weights."""
    section = diffusers_config.first_stage_section(config)
    size = image_size or _side(config, 256)
    return Model(autoencoder_config(section, size), {})


def _read_first_stage(tensors, configs, origin, options, log):
    name = _named(configs, _FIRST_STAGES)
    if name is None:
        raise ConversionError(
            f"there is no first stage among {', '.join(configs)}: supported are "
            + ", ".join(_FIRST_STAGES)
        )
    config = configs[name]
    model = _first_stage(config, options.image_size)
    take_hints(model, config.get(f"_{SECTION}"))
    if diffusers_config.says_no_statistics(config):
        log(
            f"{name}: its scaling_factor of {config['scaling_factor']:g} stands for "
            "none; a second stage measures its latents"
        )
    elif any(config.get(key) is not None for key in diffusers_config.STATISTICS):
        log(_statistics_as_flags(config))
    target = {"params": {"autoencoder": first_stage_shapes(model.config)}}
    tree = to_params(first_stage_rows(model.config, name, ""), tensors, target)
    model.params, model.origin = tree["params"], origin
    return model


def _statistics_as_flags(config):
    """A line with the flags that make a second stage scale latents like the config."""
    statistics = diffusers_config.latent_statistics(config)
    if not statistics.per_channel and not statistics.shift:
        flags = f"--config.first_stage.scaling_factor={statistics.scale:.8g}"
    else:
        channels = complete(config)["latent_channels"]
        shift, scale = np.broadcast_arrays(*statistics, np.zeros(channels))[:2]
        mean, std = (",".join(f"{v:.8g}" for v in a) for a in (shift, 1 / scale))
        flags = (
            f"--config.first_stage.latents_mean={mean} "
            f"--config.first_stage.latents_std={std}"
        )
    return f"its authors normalise the latents: {flags} for a second stage"


def _read_pipeline(tensors, configs, origin, options):
    config = configs["unet"]
    section = unet_section(config)
    vae = _named(configs, _FIRST_STAGES)
    first = _first_stage(configs[vae]) if vae else None
    factor = 1
    if first:
        factor = make_first_stage(first.config["first_stage"]).downsampling_factor
    size = options.image_size or factor * _side(config, 64)
    if first:
        first.config["data"]["image_size"] = size
    shape = unet_shape(config)
    schedule = origin.get("scheduler", {})
    conditions = _conditions(configs, shape)
    conditions |= unet_conditions(shape, conditions, factor)
    section |= _given_heads(options)
    sections = dict(
        image_size=size,
        factor=factor,
        guidance_scale=usual_guidance(shape, conditions),
        backbone=section,
        conditions=conditions,
        schedule=schedule_section(schedule),
    )
    if options.prediction_type:
        sections["schedule"]["prediction_type"] = options.prediction_type
    model = Model(diffusion_config(**sections), {}, first_stage=first, origin=origin)
    if schedule:
        model.config["sample"] |= sample_section(schedule)
    take_hints(model, origin.get("model_index", {}).get(f"_{SECTION}"))
    origin["linear_projection"] = config.get("use_linear_projection", False)
    origin["text_prefix"] = _text_prefix(tensors)
    model.statistics = LatentStatistics()
    if vae:
        model.statistics = diffusers_config.latent_statistics(configs[vae])
    if SOURCE in model.config["conditions"]:
        with_scale(model.config["conditions"], model.scaling_factor)
    _read_weights(model, tensors, shape, size, factor)
    return model


def _given_heads(options):
    if options.num_heads:
        return dict(num_heads=options.num_heads, head_channels=options.head_channels)
    if options.head_channels:
        return dict(num_heads=None, head_channels=options.head_channels)
    return {}


def _conditions(configs, shape):
    for name in ("text_encoder", "bert"):
        if name in configs:
            return {"caption": text_entry(configs[name])}
    return {EMBEDDING: dict(kind="raw", slot="context")} if shape["context_dim"] else {}


def _text_prefix(tensors):
    old = any(key.startswith("text_encoder/text_model.") for key in tensors)
    return "text_model." if old else ""


def _read_weights(model, tensors, shape, size, factor):
    first = model.first_stage
    batch = examples(model.config["conditions"], shape, size, factor)
    config, channels = first and first.config, shape["out_channels"]
    target = {"params": diffusion_shapes(model.config, config, channels, batch)}
    if first:
        autoencoder = first_stage_shapes(first.config)
        target["first_stage"] = {"params": {"autoencoder": autoencoder}}
    rows = pipeline_rows(model)
    tree = to_params(rows, tensors, target)
    model.params = {"backbone": {}, "conditioner": {}} | tree["params"]
    if first:
        first.params = tree["first_stage"]["params"]
    unused = {row.theirs for row in rows if not row.ours}
    model.carried = {key: tensors[key] for key in unused if key in tensors}


_UNETS = ("UNet2DConditionModel", "UNet2DModel")
_FIRST_STAGES = ("AutoencoderKL", "VQModel")
# Old names of an attention's projections -> current names.
_OLD_NAMES = {
    ".query.": ".to_q.",
    ".key.": ".to_k.",
    ".value.": ".to_v.",
    ".proj_attn.": ".to_out.0.",
}
