"""Loads frozen text encoders, which checkpoints of runs on stored text states lack.

Such a run trains on stored outputs of the text encoder (tower) of its captions and does
not hold it, but sampling needs it. So it keeps a copy in `text_towers_copy` of its
workdir, as it does for its first stage, and its checkpoints record the tower's
checksum. The copy, or if there is none `conditions.KEY.weights`, is compared with that.
"""

import types
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

from ldm_jax.build import fill_conditions
from ldm_jax.checkpoint import Folder, absolute, tree_checksum
from ldm_jax.conditioners import CONDITIONERS, Conditioner, Text, make_conditioner
from ldm_jax.errors import CheckpointError, ConfigError, ConversionError
from ldm_jax.reading import answering
from ldm_jax.store import exists, is_remote
from ldm_jax.weights.files import read_weights, write_weights
from ldm_jax.weights.towers import load_tower

_COPIES = "text_towers_copy"


class TextTower(NamedTuple):
    """A frozen text encoder with its weights.

    Attributes:
      module: The conditioner.
      params: Its parameters, NumPy.
      checksum: Checksum of the parameters.
    """

    module: Text
    params: dict[str, Any]
    checksum: int


def load_text_towers(
    config: ConfigDict, keys: Collection[str] | None = None
) -> dict[str, TextTower]:
    """Loads the frozen text encoders of a config from their weights files.

    Args:
      config: ConfigDict of a second stage.
      keys: Batch keys of the encoders to load; None for all.

    Returns:
      Batch key -> TextTower; encoders without `weights` in the config are left out.

    Raises:
      ConfigError: If a file cannot be used.
    """
    entries = {
        key: entry
        for key, entry in config.conditions.items()
        if issubclass(CONDITIONERS.get(entry.get("kind"), object), Text)
    }
    captions = types.SimpleNamespace(conditions=entries, data=config.data)
    conditioner = make_conditioner(fill_conditions(captions, None, None))
    found = {}
    for key, tower in conditioner.towers().items():
        if not tower.frozen or not tower.weights or key not in (keys or [key]):
            continue
        try:
            params = load_tower(tower.weights, tower.module)
        except ConversionError as error:
            raise ConfigError(f"conditions.{key}.weights: {error}") from error
        found[key] = TextTower(tower.module, params, int(tree_checksum(params)))
    return found


def stored_text_states(
    config: ConfigDict,
    conditioner: Conditioner,
    data: Any,
    workdir: Folder,
    recorded: Mapping[str, int] | None = None,
) -> dict[str, int]:
    """Finds the conditions with stored text states, and checks their text encoders.

    An encoder is read to compare its checksum, copied into the workdir, and not kept in
    memory.

    Args:
      config: ConfigDict.
      conditioner: Conditioner of the model.
      data: The run's `Data`.
      workdir: Workdir of the run.
      recorded: Earlier result, from the checkpoint that a run resumes from.

    Returns:
      Batch key -> checksum of the encoder that made the states; empty if batches hold
      token ids.

    Raises:
      ConfigError: If the states were made by another encoder than that of the config,
        or if that one is to be trained.
      DiskError: If a copy cannot be written.
    """
    keys = sorted(conditioner.entries.keys() & data.null_states.keys())
    if not keys:
        return {}
    if config.train.init_from:
        raise ConfigError(
            "data.text_states=True does not go with train.init_from, which has text "
            "towers of its own: set it to False to train on the token ids"
        )
    theirs = {key: data.header.text_states[key]["checksum"] for key in keys}
    if recorded == theirs and all(
        _checksum_of_copy(workdir, key) == theirs[key] for key in keys
    ):
        return theirs
    towers = load_text_towers(config, keys)
    _check_towers(config, towers, theirs)
    _keep(workdir, towers)
    return theirs


def _check_towers(config, towers, theirs):
    for key, checksum in theirs.items():
        if key not in towers:
            raise ConfigError(
                f"data.text_states=True, but conditions.{key} has no frozen tower of "
                f"given weights: set conditions.{key}.frozen=True and "
                f"conditions.{key}.weights, or data.text_states=False"
            )
        if towers[key].checksum != checksum:
            raise ConfigError(
                f"conditions.{key}.weights={config.conditions[key].weights} is another "
                f"text tower than that which made the states of {config.data.name} "
                f"(checksum {towers[key].checksum}, not {checksum}): give that one, or "
                "encode the data again"
            )


def _copy_of(workdir, key):
    return absolute(workdir) / _COPIES / f"{key}.safetensors"


def _keep(workdir, towers):
    """Copies towers into a workdir, on process 0; each copy is atomic."""
    for key, tower in towers.items():
        if (
            not jax.process_index()
            and _checksum_of_copy(workdir, key) != tower.checksum
        ):
            write_weights(_copy_of(workdir, key), flatten_dict(tower.params, sep="/"))


def _read_copy(workdir, key):
    """Parameters of the copy of a tower; None if it is missing or damaged."""
    path = _copy_of(workdir, key)
    try:
        with answering(path):
            tensors = read_weights(path).tensors
            tensors = {tuple(k.split("/")): np.asarray(v) for k, v in tensors.items()}
    except ConversionError as error:
        if isinstance(error.__cause__, PermissionError):
            raise CheckpointError(
                f"{path}, the run's copy of its text tower, may not be read: see that "
                "this user may (chmod, chown), and the same command continues"
            ) from error
        return None
    return unflatten_dict(tensors)


def _checksum_of_copy(workdir, key):
    params = _read_copy(workdir, key)
    return None if params is None else int(tree_checksum(params))


def with_text_towers(
    params: Mapping[str, Any],
    config: ConfigDict,
    meta: Mapping[str, Any],
    workdir: Folder,
) -> dict[str, Any]:
    """Adds the text encoders that a run on stored text states was trained without.

    Args:
      params: Weights of a second stage.
      config: Its ConfigDict.
      meta: Metadata of its checkpoint.
      workdir: Its workdir, whose copies take precedence.

    Returns:
      The weights with those of the encoders; unchanged for other runs.

    Raises:
      CheckpointError: If an encoder is missing, may not be read, or is another one.
      Unreachable: If the storage of a copy does not respond.
    """
    recorded = meta.get("text_states")
    if not recorded:
        return dict(params)
    conditioner = dict(params["conditioner"])
    for key, checksum in recorded.items():
        tower = _recorded_tower(config, workdir, key, checksum)
        conditioner |= unflatten_dict({(key,): tower})
    return dict(params) | {"conditioner": conditioner}


def _recorded_tower(config, workdir, key, checksum):
    """Parameters of the tower that made the states that a run was trained on."""
    copy = _copy_of(workdir, key)
    with answering(copy):
        is_there = exists(copy)
    if is_there:
        params = _read_copy(workdir, key)
        if params is None or int(tree_checksum(params)) != checksum:
            remove = "gcloud storage rm" if is_remote(copy) else "rm"
            raise CheckpointError(
                f"{copy} is damaged: it is a copy of the text tower whose states the "
                "run was trained on; remove it to read conditions."
                f"{key}.weights={config.conditions[key].get('weights')} in its place: "
                f"{remove} {copy}"
            )
        return params
    where = f"conditions.{key}.weights={config.conditions[key].get('weights')}"
    try:
        tower = load_text_towers(config, [key]).get(key)
    except ConfigError as error:
        raise CheckpointError(
            f"there is no {copy}, the copy of the run's text tower, and {error}: bring "
            "either back"
        ) from error
    if tower is None or tower.checksum != checksum:
        raise CheckpointError(
            f"{where} is not the text tower whose states the run was trained on, and "
            f"there is no {copy}: bring either back"
        )
    return tower.params
