"""Saves and restores a training state, and loads trained weights for use.

A checkpoint is a folder `<workdir>/checkpoints/<step>` with the items `params`,
`ema_params`, `training` (step, optimiser states, batch statistics) and `meta` (JSON:
the config and what else describes the run).  Weights and training state are apart, so
that sampling reads no optimiser state.  Orbax writes to a temporary folder and renames
it: a run killed while it saves leaves its previous checkpoints whole.

Checkpoints of older versions are read with the names of today, here and nowhere else.
"""

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict
from orbax.checkpoint import v1 as ocp

from ldm_jax.config import Section, from_json, to_json, upgrade
from ldm_jax.errors import CheckpointError
from ldm_jax.sharding import named_leaves

_FOLDER = "checkpoints"

Folder = str | os.PathLike


class Checkpoints:
    """The checkpoints of one workdir: saved in the background, kept by policy."""

    def __init__(
        self, workdir: Folder, keep_last: int = 2, keep_every: int | None = None
    ) -> None:
        """Opens (and creates) the folder.

        Args:
          workdir: Folder of the run.
          keep_last: How many of the newest checkpoints stay.
          keep_every: Steps divisible by it stay for ever; None keeps no others.
        """
        keep = ocp.training.preservation_policies
        policies = [keep.LatestN(keep_last)]
        if keep_every:
            policies.append(keep.EveryNSteps(keep_every))
        self._folder = absolute(workdir) / _FOLDER
        self._checkpointer = ocp.training.Checkpointer(
            self._folder,
            preservation_policy=keep.AnyPreservationPolicy(policies),
            cleanup_tmp_directories=True,
        )

    @property
    def latest_step(self) -> int | None:
        """Step of the newest checkpoint, None where there is none.

        Read from the folder's names, not from Orbax, which passes over a damaged
        checkpoint in silence: a whole one is renamed into place, so whatever bears a
        step's name must be readable.
        """
        return max(_saved_steps(self._folder), default=None)

    @property
    def folders(self) -> list[pathlib.Path]:
        """Folders of the checkpoints that are on disk, the oldest first."""
        return [self._folder / str(step) for step in _saved_steps(self._folder)]

    def save(self, step: int, state: "TrainState", meta: Mapping[str, Any]) -> None:
        """Starts to save; returns once the arrays have been copied off the devices.

        Args:
          step: Python int; saving a step twice does nothing.
          state: TrainState.
          meta: JSON-serialisable dict.
        """
        if step == self.latest_step:
            return
        self._checkpointer.save_checkpointables_async(
            step, _items(state) | {"meta": meta}, force=True
        )

    def restore(self, step: int, abstract_state: "TrainState") -> "TrainState":
        """Reads a state back onto the devices.

        Args:
          step: Step of a checkpoint.
          abstract_state: TrainState of `ShapeDtypeStruct` with shardings; the mesh may
            differ from the one that saved.

        Returns:
          TrainState of arrays.

        Raises:
          CheckpointError: If it cannot be read or holds other shapes.
        """
        folder = self._folder / str(step)
        targets = _items(abstract_state)
        saved = _metadata(folder)
        _check_structure(folder, _upgrade(saved, saved), targets)
        if _is_old(saved):
            targets = _rename(targets, "backbone", "unet")
        items = _upgrade(_load(folder, targets), saved)
        return abstract_state.replace(
            params=items["params"],
            ema_params=items.get("ema_params", {}),
            **items["training"],
        )

    def meta(self, step: int) -> dict[str, Any]:
        """Reads the `meta` item of a checkpoint.

        Args:
          step: Step of the checkpoint.

        Returns:
          See `read_meta`.

        Raises:
          CheckpointError: If it cannot be read.
        """
        return read_meta(self._folder / str(step))

    def wait(self) -> None:
        """Blocks until what is being saved is on disk."""
        self._checkpointer.wait()

    def close(self) -> None:
        """Waits and releases the folder; without it a running save is lost."""
        self._checkpointer.close()


def absolute(workdir: Folder) -> pathlib.Path:
    """Makes a path absolute and expands `~`; Orbax takes no other.

    Args:
      workdir: Folder of a run.

    Returns:
      Its path.
    """
    return pathlib.Path(workdir).expanduser().absolute()


def _items(state):
    """Splits a state into checkpoint items; an empty one is left out."""
    items = {
        "params": state.params,
        "training": {
            "step": state.step,
            "opt_state": state.opt_state,
            "stats": state.stats,
        },
    }
    if jax.tree.leaves(state.ema_params):
        items["ema_params"] = state.ema_params
    return items


def read_meta(folder: Folder) -> dict[str, Any]:
    """Reads the `meta` item of a checkpoint.

    Args:
      folder: Folder of the checkpoint.

    Returns:
      What `save` was given, the config with the names of today.

    Raises:
      CheckpointError: If it cannot be read.
    """
    meta = _load(folder, {"meta": None})["meta"]
    return meta | ({"config": upgrade(meta["config"])} if "config" in meta else {})


def _load(folder, targets):
    try:
        return ocp.load_checkpointables(folder, targets)
    except Exception as error:  # Orbax raises many kinds for a damaged folder.
        raise _unreadable(folder, error) from error


def _is_old(saved):
    """Whether a checkpoint calls the backbone `unet`, as up to version 0.1."""
    return "unet" in saved["params"]


def _upgrade(items, saved):
    """Names the networks of a checkpoint, whose metadata is given, as today."""
    return _rename(items, "unet", "backbone") if _is_old(saved) else items


def _rename(tree, name, other):
    """Renames a network in a tree of parameters and of optimiser states of them."""

    def by_network(node):
        return isinstance(node, dict) and name in node

    def rename(node):
        if not by_network(node):
            return node
        return {other if key == name else key: node[key] for key in node}

    return jax.tree.map(rename, tree, is_leaf=by_network)


def _check_structure(folder, saved, targets):
    """Compares names and shapes before Orbax does, whose message names neither."""
    saved = {name: _flat_shapes(tree) for name, tree in saved.items()}
    wanted = {name: _flat_shapes(tree) for name, tree in targets.items()}
    for item in saved.keys() | wanted.keys():
        shapes, found = wanted.get(item, {}), saved.get(item, {})
        for name in sorted(shapes.keys() | found.keys()):
            if shapes.get(name) != found.get(name):
                raise CheckpointError(
                    f"{folder} belongs to another model: {item}/{name} is "
                    f"{found.get(name, 'absent')} there and "
                    f"{shapes.get(name, 'absent')} here; use the config that made it "
                    "or another --workdir"
                )


def _metadata(folder):
    """Returns item -> tree of shapes and dtypes for the items that hold arrays."""
    verbosity = logging.get_verbosity()
    try:
        # Orbax warns of the item `meta`, which is not a tree of arrays.
        logging.set_verbosity(logging.ERROR)
        metadata = ocp.checkpointables_metadata(folder).metadata
    except Exception as error:  # Orbax raises many kinds for a damaged folder.
        raise _unreadable(folder, error) from error
    finally:
        logging.set_verbosity(verbosity)
    trees = {name: tree for name, tree in metadata.items() if name != "meta"}
    for name in trees.keys() | {"params", "training"}:
        if trees.get(name) is None:
            raise _unreadable(folder, f"its item '{name}' is missing or damaged")
    return trees


def _unreadable(folder, reason):
    if isinstance(reason, Exception):
        lines = str(reason).strip().splitlines()
        first = lines[0][:200] if lines else "no reason given"
        reason = f"{type(reason).__name__}: {first}"
    return CheckpointError(
        f"cannot read the checkpoint {folder}: {reason}; move that folder away to go "
        "on from an older checkpoint, or use another --workdir"
    )


def _flat_shapes(tree):
    return {name: tuple(leaf.shape) for name, leaf in named_leaves(tree).items()}


def _saved_steps(folder):
    paths = folder.iterdir() if folder.is_dir() else ()
    return sorted(int(path.name) for path in paths if path.name.isdigit())


def checkpoint_folder(workdir: Folder, step: int | None = None) -> pathlib.Path:
    """Finds a checkpoint folder.

    Args:
      workdir: Folder of a run.
      step: Step wanted; the newest by default.

    Returns:
      Path of the checkpoint folder.

    Raises:
      CheckpointError: If there is none.
    """
    folder = absolute(workdir) / _FOLDER
    steps = _saved_steps(folder)
    if not steps:
        raise CheckpointError(
            f"no checkpoint in {folder}; train one with train.py --workdir={workdir}"
        )
    if step is not None and step not in steps:
        raise CheckpointError(
            f"no checkpoint of step {step} in {folder}; it holds "
            + ", ".join(map(str, steps))
        )
    return folder / str(steps[-1] if step is None else step)


def load_weights(
    workdir: Folder, step: int | None = None, average: bool = True
) -> tuple[ConfigDict, dict[str, Any], dict[str, Any]]:
    """Loads the weights of a trained stage as NumPy arrays.

    Args:
      workdir: Folder of the run.
      step: Step wanted; the newest by default.
      average: Take the moving average where the run kept one.

    Returns:
      (config, params, meta): the ConfigDict and the meta data that the checkpoint
      records, and a pytree of NumPy arrays.

    Raises:
      CheckpointError: If there is none, or it cannot be read.
    """
    folder = checkpoint_folder(workdir, step)
    meta = read_meta(folder)
    shapes = _metadata(folder)
    item = "ema_params" if average and "ema_params" in shapes else "params"
    params = _load_arrays(folder, item, shapes)
    config = from_json(json.dumps(meta["config"]))
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
      CheckpointError: If it cannot be read.
    """
    return _load_arrays(folder, item, _metadata(folder))


def _load_arrays(folder, item, shapes):
    target = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), shapes[item])
    return _upgrade(_load(folder, {item: target}), shapes)[item]


@flax.struct.dataclass
class TrainState:
    """Arrays only; modules and optimisers are closed over by the steps.

    Attributes:
      step: int32 scalar, the number of optimiser updates done.
      params: Parameters, a dict with one entry per network.
      ema_params: Moving average of `params` or of the part of it that is used after
        training; an empty dict where a config wants none.
      opt_state: Optimiser states, a dict with one entry per optimiser.
      stats: Statistics that no gradient trains: of norms, codebooks, logits; an empty
        dict where there are none.
    """

    step: Any
    params: Any
    ema_params: Any
    opt_state: Any
    stats: Any


def write_config(workdir: Folder, config: Section) -> None:
    """Writes `config.json` beside the checkpoints, for people to read.

    Args:
      workdir: Folder of the run, made if need be.
      config: Its config.
    """
    path = pathlib.Path(workdir) / "config.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(to_json(config), encoding="utf-8")
    os.replace(temporary, path)
