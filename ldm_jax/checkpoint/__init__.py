"""Saves and restores a training state, and loads trained weights for use.

A checkpoint is a folder `<workdir>/checkpoints/<step>` with the items `params`,
`ema_params`, `training` (step, optimiser states, batch statistics) and `meta` (JSON:
the config and what else describes the run), and `checksums.json`, by which damage is
found before anything is used. Weights and training state are apart, so that sampling
reads no optimiser state. Orbax writes to a temporary folder and renames it: a run
killed while it saves leaves its previous checkpoints whole.

| module | what |
| --- | --- |
| `checkpoints` | the checkpoints of a run: saving, restoring, which ones stay |
| `best` | which checkpoint is the best by a result, and that it stays |
| `weights` | weights and records of a trained run, as NumPy arrays |
| `items` | the items of a checkpoint: from Orbax, under the names of today |
| `checksums` | checksums of files and of weights |
| `damage` | what is said of a damaged checkpoint: the step and the way to go back to |
| `state` | what training carries from step to step |
| `folder` | where things lie |
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
