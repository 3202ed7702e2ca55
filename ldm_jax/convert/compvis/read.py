"""Reads checkpoints of CompVis: first stages and latent diffusion models.

The structure comes from a YAML (`read_yaml`) or from the weights (`deduce`), the names
of the weights from `rows`. Tensors that our networks have no place for are kept with
the model, to be written back by `write`.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ldm_jax.build import make_first_stage
from ldm_jax.convert.bounds import check_numbers
from ldm_jax.convert.compvis import deduce, read_yaml
from ldm_jax.convert.compvis.buffers import same_numbers
from ldm_jax.convert.compvis.conditions import examples, is_embedded, with_scale
from ldm_jax.convert.compvis.names import COND_STAGE, COUNTERS, EMA, FIRST_STAGE, UNET
from ldm_jax.convert.compvis.published import usual_guidance, with_heads
from ldm_jax.convert.compvis.rows import diffusion_rows, first_stage_rows
from ldm_jax.convert.hints import SECTION, take_hints
from ldm_jax.convert.model import (
    Model,
    Options,
    autoencoder_config,
    diffusion_config,
    diffusion_shapes,
    discriminator_shapes,
    first_stage_shapes,
)
from ldm_jax.diffusion.latent_statistics import LatentStatistics
from ldm_jax.diffusion.schedule import make_schedule
from ldm_jax.errors import ConversionError
from ldm_jax.weights.files import Weights
from ldm_jax.weights.state_dict import StateDict, select, to_params


def recognise(tensors: StateDict) -> bool:
    """Recognises a checkpoint of CompVis.

    Args:
      tensors: Key -> array.

    Returns:
      Whether the keys are those of a whole model or of a first stage.
    """
    return any(key.startswith((UNET, "encoder.down.0.block.")) for key in tensors)


def narrow(
    weights: Weights, options: Options, log: Callable[[str], Any] = print
) -> Weights:
    """Selects the part of a file to convert.

    Args:
      weights: Weights of the file.
      options: Options; only `only` is used.
      log: Called with a line that names what is left out.

    Returns:
      Weights: those of the first stage, without prefix, if only that is requested or
      there is nothing else; otherwise all of them.

    Raises:
      ConversionError: If a first stage is requested and the file has none.
    """
    tensors = weights.tensors
    for prefix in _FIRST_STAGE_PREFIXES:
        found = select(tensors, prefix)
        if len(found) == len(tensors) or (found and options.only == "first_stage"):
            rest = len(tensors) - len(found)
            if rest:
                log(f"left out, as the first stage alone is asked for: {rest} tensors")
            return Weights(found)
    if options.only == "first_stage" and any(key.startswith(UNET) for key in tensors):
        raise ConversionError(
            "there is no first stage in the file: no key begins with "
            + " or ".join(_FIRST_STAGE_PREFIXES)
        )
    return weights


def read(
    weights: Weights,
    params: Mapping[str, Any] | None,
    options: Options,
    log: Callable[[str], Any] = print,
) -> Model:
    """Reads a checkpoint of CompVis.

    Args:
      weights: Weights of the file.
      params: `model.params` of its YAML; None to deduce them.
      options: Options, see `model.Options`.
      log: Called with lines of information.

    Returns:
      Model.

    Raises:
      ConversionError: If the YAML is not that of this file, or an option is not
        supported.
      ValueError: If keys are unread or missing, or shapes wrong.
    """
    weights = weights._replace(tensors=_usual_names(weights.tensors))
    tensors = weights.tensors
    if params is None:
        params = deduce.deduce_params(tensors, options.image_size)
        check_numbers(params, "the weights")
    whole = any(key.startswith(UNET) for key in tensors)
    if whole != ("unet_config" in params):
        kinds = {True: "a whole model", False: "a first stage"}
        raise ConversionError(
            f"the file holds {kinds[whole]} but the YAML describes {kinds[not whole]}: "
            "give the YAML of this file"
        )
    if whole:
        return _read_diffusion(weights, params, options, log)
    return _read_first_stage(weights, params, options, log)


def _usual_names(tensors):
    """Renames keys from other versions of other libraries to their usual names."""
    start = f"{COND_STAGE}transformer."
    return {
        # Newer versions of transformers, and tools that merge models, leave it out.
        key.replace(start, f"{start}text_model.", 1)
        if key.startswith(tuple(start + part for part in _TEXT_MODEL))
        else key: tensor
        for key, tensor in tensors.items()
    }


def _read_first_stage(weights, params, options, log):
    tensors = weights.tensors
    section, resolution = read_yaml.first_stage_section({"params": params})
    model = _first_stage(tensors, "", section, options.image_size or resolution)
    take_hints(model, params.get(SECTION))
    rows = first_stage_rows(model.config, tensors, "", "")
    target = _first_stage_target(model.config)
    average = any(key.startswith(EMA) and key not in COUNTERS for key in tensors)
    if average:
        autoencoder = target["params"]["autoencoder"]
        target["ema_params"] = {"autoencoder": autoencoder}
    tree = to_params(rows, tensors, target)
    _fill_first_stage(model, tree)
    model.step = _step(weights)
    if average and not options.raw:
        model.ema_params = tree["ema_params"]
        model.origin["averaged"] = True
        model.config["train"]["ema_decay"] = _decay(tensors)
    _remember(model, rows, tensors, log)
    if options.raw:
        for key in [key for key in model.carried if key.startswith(EMA)]:
            del model.carried[key]
    return model


def _step(weights):
    """The training step, from the first counter that holds one."""
    updates = _number(weights.tensors, f"{EMA}num_updates", 0)
    for found in (weights.step, updates):
        if found and 1 <= found < 2**31:
            return int(found)
    return 1


def _decay(tensors):
    """Decay of the moving average; the default if half precision rounded it to 1."""
    decay = _number(tensors, f"{EMA}decay", _USUAL_DECAY)
    return float(f"{decay:.6g}") if 0 < decay < 1 else _USUAL_DECAY


def _number(tensors, key, default):
    """A scalar of a file; the default if it is missing or not finite."""
    values = np.asarray(tensors.get(key, default)).astype(np.float64).reshape(-1)
    return float(values[0]) if len(values) == 1 and np.isfinite(values[0]) else default


def _first_stage(tensors, prefix, section, image_size):
    """A first stage without weights."""
    discriminator = None
    if f"{prefix}loss.discriminator.main.0.weight" in tensors:
        start = f"{prefix}loss.discriminator."
        discriminator = deduce.discriminator_options(tensors, start)
    return Model(autoencoder_config(section, image_size, discriminator), {})


def _first_stage_target(config):
    target = {"params": {"autoencoder": first_stage_shapes(config)}}
    if "discriminator" in config:
        variables = discriminator_shapes(config)
        target["params"]["discriminator"] = variables["params"]
        target["stats"] = {"discriminator": variables["batch_stats"]}
    return target


def _fill_first_stage(model, tree):
    model.params = {"autoencoder": {}} | tree.get("params", {})
    model.stats = tree.get("stats", {})


def _read_diffusion(weights, params, options, log):
    tensors = weights.tensors
    first = None
    if "first_stage_config" in params:
        config = params["first_stage_config"]
        section, _ = read_yaml.first_stage_section(config)
        first = _first_stage(tensors, FIRST_STAGE, section, None)
    unet = with_heads(
        params["unet_config"]["params"], options.num_heads, options.head_channels, log
    )
    identity = first and first.config["first_stage"]["kind"] == "identity"
    if identity and unet["out_channels"] != 3:
        raise ConversionError(
            f"a model of pixels with {unet['out_channels']} channels is not supported: "
            "only 3 are"
        )
    factor = _factor(first)
    sections = read_yaml.diffusion_sections(params, unet, tensors, factor)
    size = options.image_size or sections["image_size"]
    sections |= dict(
        image_size=size,
        factor=factor,
        guidance_scale=usual_guidance(unet, sections["conditions"]),
    )
    if first is not None:
        first.config["data"]["image_size"] = size
    if options.prediction_type:
        sections["schedule"]["prediction_type"] = options.prediction_type
    model = Model(diffusion_config(**sections), {}, first_stage=first)
    take_hints(model, params.get(SECTION))
    model.origin = dict(
        head_major=not unet.get("use_new_attention_order", False),
        linear_projection=unet.get("use_linear_in_transformer", False),
        cond_is_first_stage=f"{COND_STAGE}encoder.conv_in.weight" in tensors,
    )
    _read_weights(model, weights, unet, options, log)
    _read_schedule(model, tensors, params, log)
    factor = _scaling_factor(params, tensors)
    model.statistics = LatentStatistics(scale=factor)
    with_scale(model.config["conditions"], factor)
    return model


def _scaling_factor(params, tensors):
    if "scale_factor" in tensors:
        stored = np.asarray(tensors["scale_factor"])
        found = _number(tensors, "scale_factor", 0.0)
        if found <= 0:
            raise ConversionError(
                f"the file's scale_factor is {stored}: give it as scale_factor in the "
                "YAML, and take it out of the file"
            )
        # Half precision loses digits, so known values are restored exactly.
        for known in (params.get("scale_factor"), *_KNOWN_FACTORS):
            if stored.itemsize < 4 and isinstance(known, float):
                with np.errstate(over="ignore"):
                    if stored == np.asarray(known).astype(stored.dtype):
                        return known
        return float(np.float32(found))
    if params.get("scale_by_std"):
        raise ConversionError(
            "scale_by_std is set but the file has no scale_factor: set scale_by_std to "
            "False and scale_factor to its value in the YAML"
        )
    return float(params.get("scale_factor", 1.0))


def _factor(first_stage):
    """Downsampling factor of a first stage; 1 if there is none."""
    if first_stage is None:
        return 1
    return make_first_stage(first_stage.config["first_stage"]).downsampling_factor


def _read_weights(model, weights, unet, options, log):
    """Reads all networks of a latent diffusion model into it."""
    tensors, config = weights.tensors, model.config
    average = any(key.startswith(f"{EMA}diffusion_model") for key in tensors)
    first = model.first_stage
    size = config["data"]["image_size"]
    batch = examples(config["conditions"], unet, size, _factor(first))
    first_config, channels = first and first.config, unet["out_channels"]
    params = diffusion_shapes(config, first_config, channels, batch)
    target = {"params": params}
    if average:
        conditioner = {
            key: value
            for key, value in params["conditioner"].items()
            if is_embedded(config["conditions"][key])
        }
        target["ema_params"] = {
            "backbone": params["backbone"],
            "conditioner": conditioner,
        }
    if first:
        target["first_stage"] = _first_stage_target(first.config)
    rows = diffusion_rows(model, tensors)
    tree = to_params(rows, tensors, target)
    model.params = {"backbone": {}, "conditioner": {}} | tree["params"]
    if average and not options.raw:
        _fill_average(model, tree["ema_params"])
    if first:
        _fill_first_stage(first, tree.get("first_stage", {}))
        first.step = 1
    model.step = _step(weights)
    if average:
        config["train"]["ema_decay"] = _decay(tensors)
    _remember(model, rows, tensors, log)
    if options.raw:
        config["train"]["ema_decay"] = None
        for name in COUNTERS:
            model.carried.pop(name, None)


def _fill_average(model, average):
    """Completes `ema_params` from `params`, as CompVis averages only the U-Net."""
    conditioner = model.params["conditioner"] | average.get("conditioner", {})
    model.ema_params = model.params | {
        "backbone": average["backbone"],
        "conditioner": conditioner,
    }


def _read_schedule(model, tensors, params, log):
    """Compares the file's betas with the schedule, unless they fit no known one."""
    schedule = dict(model.config["schedule"])
    schedule.pop("prediction_type", None)
    if "betas" not in tensors:
        return
    betas = np.asarray(tensors["betas"])
    exact = make_schedule(**schedule).betas
    if params.get("unknown_betas"):
        log(
            "warning: the file's betas are of no known schedule; they are carried "
            "along, not used: give the YAML with --config if samples look wrong"
        )
    elif not same_numbers(betas, exact):
        raise ConversionError(
            "the YAML's noise schedule is not that of the file's betas, which go from "
            f"{float(betas.flat[0]):.6g} to {float(betas.flat[-1]):.6g}: give the YAML "
            "of this file"
        )


def _remember(model, rows, tensors, log):
    """Records what is needed to write the same file again."""
    model.origin["format"] = "compvis"
    model.origin["dtypes"] = {
        key: str(tensor.dtype)
        for key, tensor in tensors.items()
        if tensor.dtype != np.float32 and np.dtype(tensor.dtype).kind != "i"
    }
    unused = {row.theirs for row in rows if not row.ours}
    unused |= _unequal_copies(model, tensors, log)
    model.carried = {key: tensors[key] for key in unused if key in tensors}
    lost = [key for key in model.carried if "loss.perceptual_loss." in key]
    if lost:
        log(
            f"perceptual loss: {len(lost)} tensors are carried along, in a file "
            "origin.safetensors that loss.lpips_weights of a config takes"
        )
    return model


def _unequal_copies(model, tensors, log):
    """Keys of a cond stage that should equal the first stage's, and do not."""
    keys = set()
    if model.origin.get("cond_is_first_stage"):
        for key, tensor in tensors.items():
            twin = key.replace(COND_STAGE, FIRST_STAGE, 1)
            same = twin in tensors and np.array_equal(tensor, tensors[twin])
            if key.startswith(COND_STAGE) and not same:
                keys.add(key)
    if keys:
        log(
            f"warning: {len(keys)} weights of cond_stage_model differ from those of "
            "first_stage_model, which is used; they are carried along"
        )
    return keys


# Prefixes of the keys of an autoencoder in files of whole models.
_FIRST_STAGE_PREFIXES = (FIRST_STAGE, "vae.")
_USUAL_DECAY = 0.9999
# Scaling factors of Stable Diffusion, SDXL and retrieval-augmented diffusion.
_KNOWN_FACTORS = (0.18215, 0.13025, 0.22765929)
# Prefixes of the keys of transformers' CLIPTextModel.
_TEXT_MODEL = ("embeddings.", "encoder.", "final_layer_norm.")
