"""Whether a run may go on with the config it is given."""

import os
import pathlib

from ml_collections import ConfigDict

from ldm_jax.checkpoint import CheckpointError
from ldm_jax.config import differences, to_json

# Keys that may change between two runs of one workdir: they do not alter what a step
# computes, or say how it began (train.init_from) and how long it goes on.
FREE_KEYS = (
    "sample",
    "first_stage.workdir",
    "data.data_dir",
    "data.workers",
    "data.eval_split",
    "train.init_from",
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

# Keys that a checkpoint settles for good.
FIXED_KEYS = ("first_stage.step", "first_stage.scaling_factor")


def check_config(config, meta, allow_change):
    """Compares the config with the one that a checkpoint records.

    Args:
      config: ConfigDict of this run.
      meta: The checkpoint's `meta`.
      allow_change: Accept a difference.

    Returns:
      Sentences on free keys that changed and should be noticed.

    Raises:
      CheckpointError: If they differ, naming the keys.
    """
    if meta.get("converted"):
        raise CheckpointError(
            "this workdir holds a converted model, which no run can go on from: give "
            "another --workdir, and this one as --config.train.init_from"
        )
    recorded = ConfigDict(meta["config"])
    rows = differences(config, recorded, FREE_KEYS)
    for key, ours, theirs in rows:
        if key in FIXED_KEYS:
            raise CheckpointError(
                f"{key} is {theirs} in this workdir and {ours} here, but the denoiser "
                "knows those latents alone; use another --workdir, and this one as "
                "--config.train.init_from"
            )
    if not rows or allow_change:
        return _notes(config.train, recorded.train, rows)
    changes = (f"{key}: {theirs} there, {ours} here" for key, ours, theirs in rows)
    shown = "; ".join(changes)
    raise CheckpointError(
        f"the checkpoint in this workdir belongs to another config ({shown}); use "
        "another --workdir, or --allow_config_change to go on with the new values"
    )


def _notes(train, recorded, rows):
    notes = [f"changed: {key} from {theirs} to {ours}" for key, ours, theirs in rows]
    decays = train.decay != "constant" and train.decay_steps is None
    if decays and train.num_steps != recorded.num_steps:
        notes.append(
            f"train.num_steps is {train.num_steps}, was {recorded.num_steps}: the "
            f"{train.decay} learning rate now ends at step {train.num_steps}"
        )
    return notes


def write_config(workdir, config):
    """Writes `config.json` beside the checkpoints, for people to read."""
    path = pathlib.Path(workdir) / "config.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(to_json(config), encoding="utf-8")
    os.replace(temporary, path)
