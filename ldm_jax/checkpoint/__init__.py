"""Saves and restores a training state, and loads trained weights for use.

A checkpoint is a folder `<workdir>/checkpoints/<step>` with the items `params`,
`ema_params`, `training` (step, optimiser states, batch statistics) and `meta` (JSON:
the config and other metadata of the run), and `checksums.json`, by which damage is
detected before anything is used. Weights and training state are separate, so that
sampling reads no optimiser state. Orbax writes to a temporary folder and renames it: a
run killed while it saves leaves its previous checkpoints intact.

| module | what |
| --- | --- |
| `checkpoints` | saves and restores the checkpoints of a run, and deletes old ones |
| `best` | the record of the best checkpoint by a metric, and the policy to keep it |
| `weights` | weights and metadata of a trained run, as NumPy arrays |
| `items` | reads the items of a checkpoint with Orbax, and upgrades old names |
| `checksums` | checksums of files and of weights |
| `damage` | the error for a damaged checkpoint, with a way to return to an intact one |
| `state` | the training state |
| `folder` | paths of checkpoints |
"""

from ldm_jax.checkpoint.best import Best
from ldm_jax.checkpoint.checkpoints import Checkpoints
from ldm_jax.checkpoint.checksums import is_copy, tree_checksum
from ldm_jax.checkpoint.damage import DamagedCheckpoint
from ldm_jax.checkpoint.folder import (
    CHECKPOINTS,
    Folder,
    Step,
    absolute,
    checkpoint_folder,
    common_step,
    copy_items,
    move_away,
    write_config,
)
from ldm_jax.checkpoint.state import TrainState
from ldm_jax.checkpoint.weights import load_item, load_weights, read_meta

__all__ = [
    "CHECKPOINTS",
    "Best",
    "Checkpoints",
    "DamagedCheckpoint",
    "Folder",
    "Step",
    "TrainState",
    "absolute",
    "checkpoint_folder",
    "common_step",
    "copy_items",
    "is_copy",
    "load_item",
    "load_weights",
    "move_away",
    "read_meta",
    "tree_checksum",
    "write_config",
]
