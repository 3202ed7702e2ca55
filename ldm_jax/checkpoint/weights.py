"""Loads weights, as NumPy arrays, and metadata of a trained run."""

import json
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from ldm_jax import config as config_
from ldm_jax.checkpoint.checksums import has_item
from ldm_jax.checkpoint.folder import Folder, Step, checkpoint_folder
from ldm_jax.checkpoint.items import load, shapes_of, upgrade, verify
from ldm_jax.store import as_path


def load_weights(
    workdir: Folder, step: Step = None, average: bool = True
) -> tuple[ConfigDict, dict[str, Any], dict[str, Any]]:
    """Loads the weights of a trained stage as NumPy arrays.

    Args:
      workdir: Folder of the run.
      step: See `checkpoint_folder`.
      average: Whether to load the moving average, if the run kept one.

    Returns:
      (config, params, meta): the ConfigDict and the metadata that the checkpoint
      records, and a pytree of NumPy arrays.

    Raises:
      CheckpointError: If there is none, or it cannot be read.
    """
    folder = checkpoint_folder(workdir, step)
    meta = read_meta(folder)
    averaged = average and has_item(folder, "ema_params")
    item = "ema_params" if averaged else "params"
    params = load_item(folder, item)
    config = config_.from_json(json.dumps(meta["config"]))
    for name in config_.NETWORKS.values():
        # The kernel was chosen for the device of that run, not for its weights.
        if "attention_kernel" in config.get(name, {}):
            del config[name].attention_kernel
    meta |= {"folder": str(folder), "item": item, "step": int(folder.name)}
    return config, params, meta


def load_item(folder: Folder, item: str) -> Any:
    """Loads one item of a checkpoint as NumPy arrays.

    Args:
      folder: Folder of the checkpoint.
      item: "params", "ema_params" or "training".

    Returns:
      Pytree of NumPy arrays.

    Raises:
      CheckpointError: If it cannot be read, or is damaged.
    """
    folder = as_path(folder)
    verify(folder, item)
    shapes = shapes_of(folder, item, "params")
    target = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), shapes[item])
    return upgrade(load(folder, {item: target}), shapes)[item]


def read_meta(folder: Folder) -> dict[str, Any]:
    """Reads the `meta` item of a checkpoint.

    Args:
      folder: Folder of the checkpoint.

    Returns:
      The `meta` dict that was saved, with current names in the config.

    Raises:
      CheckpointError: If it cannot be read, or is damaged.
    """
    folder = as_path(folder)
    verify(folder, "meta")
    meta = load(folder, {"meta": None})["meta"]
    upgraded = {"config": config_.upgrade(meta["config"])} if "config" in meta else {}
    return meta | upgraded
