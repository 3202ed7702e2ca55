"""Whether a run may go on with the config it is given."""

import os
import pathlib

from ldm_jax.checkpoint import CheckpointError
from ldm_jax.config import differences, to_json
from ml_collections import ConfigDict

# Keys that may change between two runs of one workdir: they do not alter what a step
# computes, or (train.num_steps) say how long it goes on.
FREE_KEYS = (
    "sample",
    "first_stage.workdir",
    "data.data_dir",
    "data.workers",
    "data.eval_split",
    "train.num_steps",
    "train.log_every",
    "train.eval_every",
    "train.eval_batches",
    "train.preview_every",
    "train.preview_images",
    "train.checkpoint_every",
    "train.keep_last",
    "train.keep_every",
    "train.mesh",
    "train.sharding_overrides",
    "train.wandb",
)


def check_config(config, meta, allow_change):
    """Compares the config with the one that a checkpoint records.

    Args:
      config: ConfigDict of this run.
      meta: The checkpoint's `meta`.
      allow_change: Accept a difference.

    Raises:
      CheckpointError: If they differ, naming the keys.
    """
    rows = differences(config, ConfigDict(meta["config"]), FREE_KEYS)
    if not rows or allow_change:
        return
    shown = "; ".join(f"{key}: {theirs} there, {ours} here" for key, ours, theirs in rows)
    raise CheckpointError(
        f"the checkpoint in this workdir belongs to another config ({shown}); use "
        "another --workdir, or --allow_config_change to go on with the new values"
    )


def write_config(workdir, config):
    """Writes `config.json` beside the checkpoints, for people to read."""
    path = pathlib.Path(workdir) / "config.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(to_json(config), encoding="utf-8")
    os.replace(temporary, path)
