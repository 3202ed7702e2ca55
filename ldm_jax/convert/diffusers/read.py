"""Folders of diffusers, read: one network with its config.json, or a whole pipeline.

A pipeline's networks are read as one dict whose keys begin with their folder's name, so
that one mapping (`rows`) covers all of it, as with a checkpoint of CompVis.
"""

import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from ldm_jax.build import make_first_stage
from ldm_jax.convert.compvis.conditions import EMBEDDING, examples, unet_conditions
from ldm_jax.convert.compvis.published import usual_guidance
from ldm_jax.convert.diffusers import config as diffusers_config
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
from ldm_jax.weights.files import find_weights, read_json, read_weights
from ldm_jax.weights.state_dict import to_params


def recognise(path: pathlib.Path) -> bool:
    """Recognises a folder of diffusers.

    Args:
      path: File or folder.

    Returns:
      Whether it is one.
    """
    names = ("config.json", "model_index.json")
    return any((path / name).is_file() for name in names)


def read(
    folder: pathlib.Path, options: Options, log: Callable[[str], Any] = print
) -> Model:
    """Reads a network or a pipeline.

    Args:
      folder: Folder with config.json or model_index.json.
      options: Options, see `model.Options`.
      log: Called with lines worth knowing.

    Returns:
      Model.

    Raises:
      ConversionError: If a network or an option is not supported.
      ValueError: If keys are unread or missing, or shapes wrong.
    """
    parts, index = _parts(folder)
    tensors, configs = {}, {}
    for name, part in parts.items():
        configs[name] = read_json(part / "config.json")
        found = _modern(read_weights(find_weights(part)).tensors)
        tensors |= {f"{name}/{key}": tensor for key, tensor in found.items()}
    origin = dict(format="diffusers", configs=configs)
    if index:
        origin["model_index"] = index
        origin["scheduler"] = read_json(folder / "scheduler" / "scheduler_config.json")
    origin["dtypes"] = {
        key: str(tensor.dtype)
        for key, tensor in tensors.items()
        if tensor.dtype != np.float32
    }
    first = _named(configs, _FIRST_STAGES)
    if _named(configs, _UNETS) is None:
        return _read_first_stage(tensors, configs[first], first, origin, options)
    model = _read_pipeline(tensors, configs, origin, options)
    if index:
        _read_rest(model, folder, index, log)
    return model


def _read_rest(model, folder, index, log):
    """Carries along what is no network, and notes what is left out."""
    parts = parts_of(index)
    others = parts.keys() - {*NETWORKS, "scheduler"}
    model.files = read_files(folder, others)
    if model.files:
        carried = sorted({name.partition("/")[0] for name in model.files})
        log(f"carried along as they are: {', '.join(carried)}")
    note_left_out(model, parts)
    for difference in unlike(model.origin["scheduler"]):
        model.left_out[f"{difference} of the scheduler"] = True


def _parts(folder):
    """(name -> folder of each network, the model_index.json or {})."""
    if not (folder / "model_index.json").is_file():
        found = read_json(folder / "config.json").get("_class_name")
        if found not in (*_UNETS, *_FIRST_STAGES):
            raise ConversionError(
                f"{folder} holds a {found}; supported are "
                + ", ".join((*_UNETS, *_FIRST_STAGES))
                + " and whole pipelines"
            )
        return {"unet" if found in _UNETS else "vae": folder}, {}
    index = read_json(folder / "model_index.json")
    if not isinstance(index, dict):
        raise ConversionError(f"{folder / 'model_index.json'} holds no dict")
    names = parts_of(index)
    return {name: folder / name for name in NETWORKS if name in names}, index


def _modern(tensors):
    """Gives tensors of old files today's names."""
    renamed = {}
    for key, tensor in tensors.items():
        if ".attentions." in key and ".transformer_blocks." not in key:
            for old, new in _OLD_NAMES.items():
                key = key.replace(old, new)
        renamed[key] = tensor
    return renamed


def _named(configs, classes):
    """The name of the network that is of one of these classes."""
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


def _read_first_stage(tensors, config, name, origin, options):
    model = _first_stage(config, options.image_size)
    target = {"params": {"autoencoder": first_stage_shapes(model.config)}}
    tree = to_params(first_stage_rows(model.config, name, ""), tensors, target)
    model.params, model.origin = tree["params"], origin
    return model


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
    section |= _given_heads(options)
    sections = dict(
        image_size=size,
        factor=factor,
        guidance_scale=usual_guidance(shape),
        backbone=section,
        conditions=conditions | unet_conditions(shape, conditions, factor),
        schedule=schedule_section(schedule),
    )
    if options.prediction_type:
        sections["schedule"]["prediction_type"] = options.prediction_type
    model = Model(diffusion_config(**sections), {}, first_stage=first, origin=origin)
    if schedule:
        model.config["sample"] |= sample_section(schedule)
    take_hints(model.config, origin.get("model_index", {}).get(f"_{SECTION}"))
    origin["linear_projection"] = config.get("use_linear_projection", False)
    origin["text_prefix"] = _text_prefix(tensors)
    model.statistics = LatentStatistics()
    if vae:
        model.statistics = diffusers_config.latent_statistics(configs[vae])
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
# The names that old files give to an attention's projections.
_OLD_NAMES = {
    ".query.": ".to_q.",
    ".key.": ".to_k.",
    ".value.": ".to_v.",
    ".proj_attn.": ".to_out.0.",
}
