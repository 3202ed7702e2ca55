"""Our own format: the workdir of a run, as written by training and read by sampling.

A converted second stage contains its first stage, in `first_stage/`, so that the folder
can be moved as a whole. `origin.json`, `origin.safetensors` and `origin_files/` hold
what our networks do not have; exporting writes it back.
"""

import os

import numpy as np

from ldm_jax import checkpoint, trained
from ldm_jax.build import make_first_stage
from ldm_jax.checkpoint import Step, TrainState, write_config
from ldm_jax.config import from_json, to_dict, to_json
from ldm_jax.convert.carried import write_files
from ldm_jax.convert.model import (
    Model,
    autoencoder_config,
    full_section,
    make_diffusion,
)
from ldm_jax.diffusion.latent_statistics import LatentStatistics
from ldm_jax.errors import ConversionError
from ldm_jax.files import write_json
from ldm_jax.models.first_stages import name_of
from ldm_jax.store import as_path, files_below, is_dir, is_file
from ldm_jax.weights.files import (
    NUMBER_TYPES,
    read_json,
    read_weights,
    write_weights,
)

_FIRST_STAGE = "first_stage"
_FILES = "origin_files"


def is_workdir(folder: str | os.PathLike) -> bool:
    """Recognises the workdir of a run.

    Args:
      folder: File or folder.

    Returns:
      Whether it is one.
    """
    return is_dir(as_path(folder) / "checkpoints")


def write(model: Model, folder: str | os.PathLike) -> None:
    """Writes a model as a workdir.

    Args:
      model: Model.
      folder: New folder, or one without checkpoints.

    Raises:
      ConversionError: If the folder holds checkpoints already.
      DiskError: If it cannot be written; `formats.convert` then removes it.
    """
    folder = as_path(folder)
    if is_workdir(folder):
        raise ConversionError(
            f"{folder} holds checkpoints already: give another folder"
        )
    config = from_json(to_json(model.config))
    meta = {"config": to_dict(config), "converted": True}
    if config.stage == "diffusion":
        meta |= _second_stage_meta(model)
        if model.first_stage is not None and not _is_identity(model.first_stage):
            write(model.first_stage, folder / _FIRST_STAGE)
    state = TrainState(
        step=np.asarray(model.step, np.int32),
        params=model.params,
        ema_params=model.ema_params,
        opt_state={},
        stats=model.stats,
    )
    checkpoints = checkpoint.Checkpoints(folder)
    try:
        checkpoints.save(model.step, state, meta)
    finally:
        checkpoints.close()
    write_config(folder, config)
    if model.origin:
        write_json(folder / "origin.json", model.origin | {"step": model.step})
    if model.carried:
        write_weights(folder / "origin.safetensors", model.carried)
    write_files(folder / _FILES, model.files)


def _is_identity(first_stage):
    return first_stage.config["first_stage"].get("kind") == "identity"


def _second_stage_meta(model):
    first, record = model.first_stage, None
    if first is not None and _is_identity(first):
        count = first.config["first_stage"].get("image_channels", 3)
        record = {"workdir": "identity", "step": None, "image_channels": count}
    elif first is not None:
        record = {
            "workdir": _FIRST_STAGE,  # relative to the workdir itself
            "step": first.step,
            "image_size": first.config["data"]["image_size"],
            "weights": "ema_params" if first.ema_params else "params",
        }
    return {
        "first_stage": record,
        **model.statistics.record(),
        "num_classes": None,
        "class_names": [],
    }


def read(folder: str | os.PathLike, step: Step = None) -> Model:
    """Reads a workdir.

    Args:
      folder: Workdir of either stage.
      step: Checkpoint to load; the newest by default.

    Returns:
      Model.

    Raises:
      CheckpointError: If there is no checkpoint, or it cannot be read.
      ConfigError: If its first stage cannot be found.
      ConversionError: If other formats have no such stage.
    """
    folder = as_path(folder)
    config, ema_params, meta = checkpoint.load_weights(folder, step)
    if config.stage == "classifier":
        raise ConversionError(
            f"{folder} holds a classifier of noisy latents, for which other formats "
            "have no place: give the workdir of a first or a second stage"
        )

    def whole(params):
        """Adds the text encoders that a run on stored text states lacks."""
        return trained.with_text_towers(params, config, meta, folder)

    params = ema_params = whole(ema_params)
    if config.data.get("text_states"):
        config.data.text_states = False
    if meta["item"] == "ema_params":
        params = whole(checkpoint.load_weights(folder, step, average=False)[1])
    else:
        ema_params = {}
    if not is_dir(as_path(meta["folder"]) / "training"):
        # The copy that a second stage keeps is for sampling. A discriminator is useless
        # without the statistics of its norms, which are saved with optimiser states.
        params = {k: v for k, v in params.items() if k != "discriminator"}
    model = Model(to_dict(config), params, ema_params, step=meta["step"])
    if config.stage == "diffusion":
        model.statistics = LatentStatistics.from_record(meta)
        if meta["first_stage"]:
            model.first_stage = _read_first_stage(meta["first_stage"], folder)
    elif "discriminator" in params:
        model.stats = checkpoint.load_item(meta["folder"], "training")["stats"]
    _complete(model, meta)
    if is_file(folder / "origin.json"):
        model.origin = _read_origin(folder / "origin.json")
    if is_file(folder / "origin.safetensors"):
        model.carried = read_weights(folder / "origin.safetensors").tensors
    model.files = {
        path.relative_to(folder / _FILES).as_posix(): path.read_bytes()
        for path in files_below(folder / _FILES)
    }
    return model


def _read_origin(path):
    """Reads what is needed to write the source again; checks the recorded dtypes."""
    origin = read_json(path)
    types = origin.get("dtypes", {}) if isinstance(origin, dict) else None
    if not isinstance(types, dict) or not all(
        isinstance(t, str) and t in NUMBER_TYPES for t in types.values()
    ):
        raise ConversionError(
            f"{path} is not what a conversion writes: its dtypes must be among "
            + ", ".join(NUMBER_TYPES)
        )
    return origin


def _read_first_stage(record, folder):
    found = trained.first_stage_folder(record["workdir"], folder)
    if found == "identity":
        section = {"kind": "identity"}
        if "image_channels" in record:
            section["image_channels"] = record["image_channels"]
        config = autoencoder_config(section, None)
        return Model(config, {"autoencoder": {}})
    # Checks that it is still the same first stage.
    trained.load_recorded(folder, record)
    return read(found, record["step"])


def _complete(model, meta):
    """Fills in what the config leaves to defaults and to the data set."""
    config = model.config
    if config["stage"] == "autoencoder":
        module = make_first_stage(config["first_stage"])
        config["first_stage"] = {"kind": name_of(module)} | full_section(module)
        return
    first = model.first_stage and model.first_stage.config
    channels = model.params["backbone"]["conv_out"]["kernel"].shape[-1]
    built = make_diffusion(config, first, channels, meta["num_classes"])
    entries = built.conditioner.entries
    config["conditions"] = {key: dict(entry) for key, entry in entries.items()}
    kind = config["backbone"].get("kind", "unet")
    config["backbone"] = {"kind": kind} | full_section(built.backbone)
