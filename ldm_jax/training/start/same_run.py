"""Checks that config and data match the checkpoint, and the data match on all hosts."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from ldm_jax import peers
from ldm_jax.conditioners import CONDITIONERS
from ldm_jax.config import NETWORKS, differences
from ldm_jax.data.sources import compare_records
from ldm_jax.errors import CheckpointError, ConfigError
from ldm_jax.training.freeze import freeze_paths
from ldm_jax.training.start.idle_keys import idle_keys
from ldm_jax.training.start.same_state import check_same_state

# Keys that may change when a workdir is resumed: they do not change what a step
# computes, or only how the run started (train.init_from) and its length.
FREE_KEYS = (
    "sample",
    "eval",
    "first_stage.workdir",
    "data.data_dir",
    "data.workers",
    "data.restart_workers",
    "data.eval_split",
    "data.eval_name",
    "data.max_image_gb",
    "data.cache_gb",
    "data.index_dir",
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
    # It only changes rounding, and depends on the devices of a run.
    *(f"{section}.attention_kernel" for section in NETWORKS.values()),
)


# Keys that cannot be changed once there is a checkpoint.
FIXED_KEYS = (
    "first_stage.step",
    "first_stage.scaling_factor",
    "first_stage.latents_mean",
    "first_stage.latents_std",
    "first_stage.latent_statistics",
)


def check_config(
    config: ConfigDict, meta: Mapping[str, Any], allow_change: bool
) -> list[str]:
    """Compares the config with the one recorded in a checkpoint.

    Args:
      config: ConfigDict of this run.
      meta: The checkpoint's `meta`.
      allow_change: Whether to accept differences.

    Returns:
      Sentences on accepted changes that the user should know.

    Raises:
      CheckpointError: If they differ; the message has the keys.
    """
    if meta.get("converted"):
        raise CheckpointError(
            "this workdir holds a converted model, from which no run can continue: use "
            "another --workdir, and this one as --config.train.init_from"
        )
    recorded = ConfigDict(meta["config"])
    idle = idle_keys(config).keys() & idle_keys(recorded).keys()
    rows = differences(config, recorded, (*FREE_KEYS, *idle))
    if freeze_paths(config) == freeze_paths(recorded):
        rows = [row for row in rows if row[0] != "train.freeze"]
    for key, ours, theirs in rows:
        if key in FIXED_KEYS:
            raise CheckpointError(
                f"{key} is {theirs} in this workdir and {ours} here, but the denoiser "
                "was trained on those latents; use another --workdir, and this one as "
                "--config.train.init_from"
            )
    if config.stage == recorded.stage:
        check_same_state(config, recorded, rows)
    if not rows or allow_change:
        return _notes(config.train, recorded.train, rows)
    changes = (f"{key}: {theirs} there, {ours} here" for key, ours, theirs in rows)
    shown = "; ".join(changes)
    raise CheckpointError(
        f"the checkpoint in this workdir belongs to another config ({shown}); use "
        "another --workdir, or --allow_config_change to continue with the new values"
    )


def check_same_data(record: Mapping[str, Any]) -> None:
    """Checks that all processes of a job have the same data; all must call it.

    Each process loads its rows of every batch, by the order of all examples.

    Args:
      record: Result of `Data.record`.

    Raises:
      ConfigError: If the data differ from process to process.
    """
    names = "num_examples", "num_classes", "fingerprint"
    found = peers.gather(", ".join(f"{name} {record.get(name)}" for name in names))
    if len(set(found)) > 1:
        places = "; ".join(f"process {i}: {text}" for i, text in enumerate(found))
        raise ConfigError(
            f"the data are not the same on all hosts ({places}): see what the logs "
            "say of files that were left out, or copy one set to all of them"
        )


def check_data(
    config: ConfigDict,
    record: Mapping[str, Any],
    meta: Mapping[str, Any],
    allow_change: bool,
) -> list[str]:
    """Compares the data with the record in a checkpoint.

    Args:
      config: ConfigDict of this run.
      record: Result of `Data.record`.
      meta: The checkpoint's `meta`; older ones record only the classes, or nothing.
      allow_change: Whether to accept changes that are compatible with the model, such
        as more images.

    Returns:
      Sentences on accepted changes.

    Raises:
      CheckpointError: If they differ; the message has the differences.
    """
    then = meta.get("data") or {
        key: meta[key] for key in ("num_classes", "class_names") if key in meta
    }
    changes = compare_records(record, then, _knows_classes(config))
    texts = [change.text for change in changes]
    if all(change.fits for change in changes) and allow_change:
        return [f"the data have changed: {text}" for text in texts]
    if not changes:
        return []
    advice = "bring those back, or use another --workdir"
    if all(change.fits for change in changes):
        advice += ", or --allow_config_change to continue with these"
    raise CheckpointError(
        "the data are not those that this workdir was trained on: "
        f"{'; '.join(texts)}; {advice}"
    )


def _knows_classes(config):
    """Whether the model depends on the classes of the data."""
    entries = (config.get("conditions") or {}).values()
    kinds = [CONDITIONERS.get(entry.get("kind")) for entry in entries]
    return config.stage == "classifier" or any(
        "num_classes" in getattr(kind, "from_dataset", ()) for kind in kinds
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
