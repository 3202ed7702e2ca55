"""Writes models as checkpoints of CompVis, with the YAML that describes them."""

from collections.abc import Callable
from typing import Any

import numpy as np

from ldm_jax.convert.compvis.buffers import schedule_buffers
from ldm_jax.convert.compvis.conditions import is_embedded
from ldm_jax.convert.compvis.names import COND_STAGE, EMA, FIRST_STAGE
from ldm_jax.convert.compvis.rows import diffusion_rows, first_stage_rows
from ldm_jax.convert.compvis.write_yaml import diffusion_yaml, first_stage_yaml
from ldm_jax.convert.model import Model, cast
from ldm_jax.diffusion.schedule import make_schedule
from ldm_jax.weights.state_dict import select, to_state_dict


def write(
    model: Model, log: Callable[[str], Any] = print
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Converts a model to tensors with CompVis's names, and its YAML.

    Args:
      model: Model.
      log: Called with lines of information.

    Returns:
      (dict of key -> array, the YAML's `model`).

    Raises:
      ConversionError: If CompVis's code does not have such a model.
      ValueError: If a weight has no key in CompVis's format.
    """
    if model.config["stage"] == "autoencoder":
        yaml = first_stage_yaml(model.config)
        rows = first_stage_rows(model.config, (), "", "")
        tree = _first_stage_tree(model, log)
        return _finish(model, to_state_dict(rows, tree)), yaml
    return _write_diffusion(model, log)


def _first_stage_tree(model, log):
    """The tree of a first stage to write: weights, average and discriminator."""
    names = ["autoencoder", "discriminator", "logvar"]
    norm = model.config.get("discriminator", {}).get("norm", "batch")
    if norm != "batch":
        log(f"discriminator: left out, CompVis has none with norm={norm}")
        names.remove("discriminator")
    params = {key: model.params[key] for key in names if key in model.params}
    average = {key: model.ema_params[key] for key in names if key in model.ema_params}
    stats = {key: model.stats[key] for key in names if key in model.stats}
    if model.origin.get("averaged"):
        return {"params": params, "stats": stats, "ema_params": average}
    return {"params": params | average, "stats": stats}


def _frozen_tree(first, source):
    """The tree of a first stage to write in a second stage: the weights that are used.

    In CompVis's second stages the first stage has no loss, and so no weights of one;
    those that a CompVis file had are written back.
    """
    names = ["autoencoder"]
    if source == "compvis":
        names += ["discriminator", "logvar"]
    params = {key: first.params[key] for key in names if key in first.params}
    params |= {key: first.ema_params[key] for key in names if key in first.ema_params}
    stats = {key: first.stats[key] for key in names if key in first.stats}
    return {"params": params, "stats": stats}


def _second_stage_tree(model, log):
    """The tree of a second stage to write: its weights, and the U-Net's average.

    CompVis averages only the U-Net, with its class embedding. Other conditioners have
    one set of weights in the file; the average is written there, as sampling uses it.
    In a model that was read from CompVis's format that equals the weights themselves.
    """
    if not model.ema_params:
        return {"params": model.params}
    embedded, others = {}, {}
    for key, value in model.ema_params["conditioner"].items():
        inside = is_embedded(model.config["conditions"][key])
        (embedded if inside else others)[key] = value
    if others and model.origin.get("format") != "compvis":
        log(
            f"conditioner: of {', '.join(others)} the moving average is written, not "
            "the trained weights: CompVis has one place for both"
        )
    conditioner = model.params["conditioner"] | others
    return {
        "params": model.params | {"conditioner": conditioner},
        "ema_params": {
            "backbone": model.ema_params["backbone"],
            "conditioner": embedded,
        },
    }


def _write_diffusion(model, log):
    config = model.config
    tree = _second_stage_tree(model, log)
    first = model.first_stage
    if first:
        tree["first_stage"] = _frozen_tree(first, model.origin.get("format"))
    tensors = to_state_dict(diffusion_rows(model), tree)
    shapes = model.params["backbone"]["conv_in"]["kernel"].shape
    channels = shapes[2], model.params["backbone"]["conv_out"]["kernel"].shape[3]
    label = config["conditions"].get("label")
    classes = None
    if label and is_embedded(label):
        classes = label["num_classes"] + label.get("null_class", True)
    kept = model.origin.get("format") != "compvis" or "scale_factor" in model.carried
    context = _context_dim(model.params["backbone"])
    yaml = diffusion_yaml(model, channels, context, classes, kept)
    shared = yaml["params"]["cond_stage_config"] == "__is_first_stage__"
    if shared and model.origin.get("format") != "compvis":
        # The same network under two names, as in CompVis's class.
        tensors |= {
            f"{COND_STAGE}{key}": tensor
            for key, tensor in select(tensors, FIRST_STAGE).items()
        }
    # After diffusion_yaml has checked that CompVis has such a schedule.
    tensors |= _tables(model)
    return _finish(model, tensors), yaml


def _context_dim(unet):
    block = unet["middle_attention"].get("block_0")
    return block and block["cross_attention"]["key"]["kernel"].shape[0]


def _tables(model):
    """The schedule's tables, the scaling factor and the counters of the average."""
    config, origin = model.config, model.origin
    schedule = dict(config["schedule"])
    schedule.pop("prediction_type", None)
    loss = config.get("loss") or {}
    tables = schedule_buffers(make_schedule(**schedule), loss.get("v_posterior", 0.0))
    tables["scale_factor"] = np.float32(model.scaling_factor)
    if model.ema_params:
        decay = config["train"].get("ema_decay") or 0.9999
        tables[f"{EMA}decay"] = np.float32(decay)
        tables[f"{EMA}num_updates"] = np.int32(model.step)
    # A CompVis file is written with the same tables that it was read with.
    kept = model.carried if origin.get("format") == "compvis" else tables
    return {name: np.asarray(tables[name]) for name in tables if name in kept}


def _finish(model, tensors):
    """Restores the tensors that were kept, and the types of the file that was read."""
    if model.origin.get("format") == "compvis":
        same = model.origin.get("step") in (None, model.step)
        for key, tensor in model.carried.items():
            if same or key not in tensors:
                tensors[key] = tensor
        for key, dtype in model.origin.get("dtypes", {}).items():
            if key in tensors:
                tensors[key] = cast(tensors[key], np.dtype(dtype))
    return tensors
