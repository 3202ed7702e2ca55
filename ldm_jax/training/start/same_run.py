"""Whether config and data are those that a checkpoint records, and on all hosts."""

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

# Keys that may change between two runs of one workdir: they do not alter what a step
# computes, or say how it began (train.init_from) and how long it goes on.
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
    # It alters roundings alone, and is of the devices that a run has.
    *(f"{section}.attention_kernel" for section in NETWORKS.values()),
)


# Keys that a checkpoint settles for good.
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
        "another --workdir, or --allow_config_change to go on with the new values"
    )


def check_same_data(record: Mapping[str, Any]) -> None:
    """Checks that all processes of a job have the same data; all must call it.

    Each loads its rows of every batch, by the order of all examples.

    Args:
      record: What `Data.record` gives.

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
    """Compares the data with those that a checkpoint records.

    Args:
      config: ConfigDict of this run.
      record: What `Data.record` gives.
      meta: The checkpoint's `meta`; older ones record the classes alone or nothing.
      allow_change: Accept what a model can go on with, as more images.

    Returns:
      Sentences on what changed and was accepted.

    Raises:
      CheckpointError: If they differ, naming how.
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
        advice += ", or --allow_config_change to go on with these"
    raise CheckpointError(
        "the data are not those that this workdir was trained on: "
        f"{'; '.join(texts)}; {advice}"
    )


def _knows_classes(config):
    """Whether a model is made for the classes of the data's images."""
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
