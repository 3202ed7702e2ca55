"""Trained weights as a part of another run, or as its start."""

import dataclasses
import zlib
from typing import Any, NamedTuple

import jax
import numpy as np

from ldm_jax import checkpoint
from ldm_jax.conditioners import CONDITIONERS
from ldm_jax.config import ConfigError, build, differences, to_dict
from ldm_jax.diffusion.schedule import make_schedule
from ldm_jax.models.classifier import Classifier
from ldm_jax.models.unet import UNet
from ldm_jax.sharding import path_name
from ldm_jax.training.autoencoder import make_first_stage

# What may differ between two first stages that share their latents.
DECODER_PARTS = ("from_latents", "decoder", "to_images")

# Networks that serve training alone: a run may start without the old one.
_AIDS = ("discriminator",)

# Fields that do not say what weights mean, and those that their shapes show, which may
# be written in more than one way.
_FREE_FIELDS = ("parent", "name", "dtype", "remat", "dropout", "frozen")
_SHOWN_FIELDS = ("attention_factors", "num_res_blocks", "transformer_depth")


class FirstStage(NamedTuple):
    """A trained first stage.

    Attributes:
      module: The autoencoder.
      params: Its weights, NumPy.
      config: The config it was trained with; None for the identity.
      record: Dict that says where the weights came from.
    """

    module: Any
    params: Any
    config: Any
    record: dict


def load_first_stage(workdir, step=None, average=True, key="first_stage.workdir"):
    """Loads a trained first stage.

    Args:
      workdir: Its workdir, or "identity" for none: diffusion on pixels.
      step: Checkpoint to take; the newest by default.
      average: Take the moving average of the weights where one was kept.
      key: What the workdir is called, for messages.

    Returns:
      A FirstStage.

    Raises:
      ConfigError: If the workdir is not given or holds something else.
      CheckpointError: If there is no checkpoint in it, or it cannot be read.
    """
    if workdir == "identity":
        module = make_first_stage({"kind": "identity"})
        return FirstStage(module, {}, None, {"workdir": "identity", "step": None})
    if not workdir:
        raise ConfigError(
            f"{key} is not set: train a first stage with train.py "
            f"(configs/*autoencoder*.py) and give --config.{key}=ITS_WORKDIR"
        )
    config, params, meta = checkpoint.load_weights(workdir, step, average)
    if config.stage != "autoencoder":
        raise ConfigError(
            f"{key}={workdir} holds a {config.stage} run; give the workdir of an "
            "autoencoder"
        )
    record = _record(workdir, meta) | {
        "image_size": config.data.image_size,
        "checksum": _latents_checksum(params["autoencoder"]),
    }
    module = make_first_stage(config.first_stage)
    return FirstStage(module, params["autoencoder"], config, record)


def _latents_checksum(params):
    """CRC-32 of the weights that make latents: equal ones make equal latents."""
    parts = {name: tree for name, tree in params.items() if name not in DECODER_PARTS}
    checksum = 0
    for leaf in jax.tree.leaves(parts):
        checksum = zlib.crc32(np.asarray(leaf, np.float32).tobytes(), checksum)
    return checksum


def _record(workdir, meta):
    return {
        "workdir": str(checkpoint.absolute(workdir)),
        "step": meta["step"],
        "weights": meta["item"],
    }


def check_same_latents(first, second):
    """Checks that two first stages give the same latents, to the bit.

    Args:
      first: FirstStage that a second stage was trained on.
      second: FirstStage whose decoder is to take its place.

    Raises:
      ConfigError: If they differ in anything but the decoder.
    """
    one, other = (_what_makes_latents(stage) for stage in (first, second))
    places = [stage.record["workdir"] for stage in (first, second)]
    for name in sorted(one.keys() | other.keys()):
        if not np.array_equal(one.get(name), other.get(name)):
            raise ConfigError(
                f"the decoder in {places[1]} is of other latents than {places[0]}: "
                f"{name} differs; train it with train.init_from={places[0]} and the "
                "variant `decoder` of its config"
            )


def _what_makes_latents(stage):
    params = {k: v for k, v in stage.params.items() if k not in DECODER_PARTS}
    return _flat(params) | _fields(stage.module)


def _fields(module):
    """The fields of a module that say what its weights mean."""
    names = [field.name for field in dataclasses.fields(module)]
    return {name: getattr(module, name) for name in names if name not in _FREE_FIELDS}


def load_initial(config, params):
    """Loads the weights that a run starts from, as `train.init_from` says.

    The moving average where one was kept.  What the other run has no weights of, and a
    discriminator of another make, is left out and noted.

    Args:
      config: ConfigDict of the run that starts.
      params: The weights that it trains, shapes suffice: dict with one entry per
        network.

    Returns:
      (weights, stats, record, notes): dict like `params` of NumPy arrays, batch
      statistics of the networks in it that have some, where they came from, and
      sentences on what was left out or differs.

    Raises:
      ConfigError: If the other run trained something else.
      CheckpointError: If there is no checkpoint, or it cannot be read.
    """
    workdir = config.train.init_from
    theirs, found, meta = checkpoint.load_weights(workdir)
    if theirs.stage != config.stage:
        raise ConfigError(
            f"train.init_from={workdir} holds a run of the stage '{theirs.stage}'; "
            f"this one is of the stage '{config.stage}'"
        )
    if found.keys() != params.keys():
        # An average is not kept of everything.
        found = checkpoint.load_weights(workdir, meta["step"], average=False)[1] | found
    weights, notes = {}, [f"starting from step {meta['step']} of {workdir}"]
    for name, ours in params.items():
        reason = _difference(name, ours, found.get(name))
        if not reason:
            weights[name] = found[name]
        elif name in found and name not in _AIDS:
            raise ConfigError(
                f"train.init_from={workdir} holds another model: {reason}; use the "
                "config that made it"
            )
        else:
            notes.append(f"{name} starts anew: {reason}")
    stats = _load_stats(meta["folder"], weights)
    notes += _model_notes(config, theirs)
    return weights, stats, _record(workdir, meta), notes


def _load_stats(folder, weights):
    """Batch statistics, which lie beside optimiser states: read where there are any."""
    if not any(name in weights for name in _AIDS):
        return {}
    stats = checkpoint.load_item(folder, "training")["stats"]
    return {name: tree for name, tree in stats.items() if name in weights}


def _model_notes(config, theirs):
    """Sentences on fields that shapes do not show."""
    return [
        f"warning: {key} is {now}, in train.init_from it was {then}"
        for key, now, then in differences(_meaning(config), _meaning(theirs))
        if key.rpartition(".")[2] not in _SHOWN_FIELDS
    ]


def _meaning(config):
    """What weights of a config mean, also where it leaves that to defaults."""
    if config.stage == "autoencoder":
        return {"first_stage": _fields(make_first_stage(config.first_stage))}
    if config.stage == "classifier":
        network = build(Classifier, config.classifier, "classifier", out_channels=1)
        schedule = _schedule_fields(to_dict(config.schedule))
        return {"classifier": _unet_fields(network), "schedule": schedule}
    entries = {key: to_dict(entry) for key, entry in config.conditions.items()}
    return {
        "unet": _unet_fields(build(UNet, config.unet, "unet", out_channels=1)),
        "schedule": _schedule_fields(to_dict(config.schedule)),
        "conditions": {
            key: _entry_fields(entry)
            for key, entry in entries.items()
            if entry.get("kind") != "none"
        },
    }


def _unet_fields(unet):
    """As `_fields`, with the heads that follow from the ways to say them."""
    fields = _fields(unet)
    for name in ("num_heads", "head_channels", "up_num_heads"):
        del fields[name]
    levels = range(len(unet.channel_mult))
    attending = [level for level in levels if unet.attends_at(level)]
    # The middle, of the last level's width, attends always.
    down = [unet.heads_at(level) for level in (*attending, levels[-1])]
    up = [unet.heads_at(level, up=True) for level in attending]
    return fields | {"heads": down, "up_heads": up}


def _schedule_fields(section):
    """The noise levels, whatever options they are of."""
    prediction_type = section.pop("prediction_type", "noise")
    alpha = build(make_schedule, section, "schedule").alpha
    places = {"first": 0, "middle": len(alpha) // 2, "last": -1}
    return {
        "prediction_type": prediction_type,
        "num_train_timesteps": len(alpha),
        **{f"{name}_alpha": f"{alpha[place]:.6g}" for name, place in places.items()},
    }


def _entry_fields(entry):
    """Options of a condition that have a default.

    Shapes show the others, which a config may leave to the data set.
    """
    fields = dataclasses.fields(CONDITIONERS[entry["kind"]])
    options = {
        field.name: entry.get(field.name, field.default)
        for field in fields
        if field.default is not dataclasses.MISSING and field.name not in _FREE_FIELDS
    }
    return options | {"kind": entry["kind"]}


def _difference(name, ours, theirs):
    """Names the first place where two trees of weights do not agree in shape."""
    if theirs is None:
        return f"{name} is absent there"
    trees = [_flat(tree, name) for tree in (ours, theirs)]
    for path in sorted(trees[0].keys() | trees[1].keys()):
        here, there = (
            tuple(tree[path].shape) if path in tree else "absent" for tree in trees
        )
        if here != there:
            return f"{path} is {there} there and {here} here"
    return None


def _flat(tree, name=""):
    leaves = jax.tree_util.tree_leaves_with_path({name: tree} if name else tree)
    return {path_name(path): leaf for path, leaf in leaves}
