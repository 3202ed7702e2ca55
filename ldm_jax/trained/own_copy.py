"""Finds the first stage of a second stage: its own copy, or the recorded workdir.

A second stage is useless without exactly the first stage that it was trained on; but
that may be trained further, which deletes the checkpoint, be trained again in place, or
be moved. So a run keeps a copy in `first_stage_copy` of its workdir: one checkpoint,
without the training state. Wherever a first stage is read from, its checksums are
compared with those that the second stage's checkpoint records.
"""

from collections.abc import Mapping
from typing import Any

import jax

from ldm_jax.checkpoint import (
    CHECKPOINTS,
    DamagedCheckpoint,
    Folder,
    absolute,
    checkpoint_folder,
    copy_items,
    is_copy,
)
from ldm_jax.errors import CheckpointError, ConfigError
from ldm_jax.files import drafted, remove_folder
from ldm_jax.store import Place, as_path, is_dir, is_remote
from ldm_jax.trained.first_stage import FirstStage, load_first_stage

_COPY, _ITEMS = "first_stage_copy", ("meta", "params", "ema_params")


def has_own_copy(workdir: Folder) -> bool:
    """Whether a workdir holds a copy of its first stage.

    Args:
      workdir: Workdir of a second stage.

    Returns:
      Whether it does.
    """
    return is_dir(absolute(workdir) / _COPY)


def keep_first_stage(workdir: Folder, first: FirstStage) -> None:
    """Copies a first stage into the workdir of a second stage, once.

    Process 0 makes the copy, which is atomic.

    Args:
      workdir: Workdir of the second stage.
      first: FirstStage of the run.

    Raises:
      CheckpointError: If the first stage is gone or damaged.
      DiskError: If the copy cannot be written.
    """
    if first.config is None or jax.process_index():
        return
    copy = absolute(workdir) / _COPY
    source = checkpoint_folder(first.record["workdir"], first.record["step"])
    if is_copy(copy / CHECKPOINTS / source.name, source, _ITEMS):
        return
    # Left over from a run on another first stage that saved no checkpoint.
    remove_folder(copy)
    with drafted(copy) as draft:
        copy_items(source, draft, _ITEMS)


def first_stage_folder(recorded: str, workdir: Folder) -> Place | str:
    """Finds the first stage of a second stage, also if both were moved together.

    Args:
      recorded: Its workdir as recorded in the second stage's checkpoint, relative to
        the second stage's workdir if it is inside that; "identity" for none.
      workdir: Workdir of the second stage; the copy in it takes precedence.

    Returns:
      Path of the first stage's workdir, or "identity".

    Raises:
      ConfigError: If it is not found.
    """
    if recorded == "identity":
        return recorded
    workdir, recorded = absolute(workdir), as_path(recorded)
    apart = is_remote(recorded) or recorded.is_absolute()
    for folder in (
        workdir / _COPY,
        recorded if apart else workdir / recorded,
        workdir.parent / recorded.name,
    ):
        if is_dir(folder):
            return folder
    raise ConfigError(
        f"the first stage is no longer in {recorded}; say where it is with "
        "--first_stage=ITS_WORKDIR"
    )


def load_recorded(
    workdir: Folder,
    recorded: Mapping[str, Any] | None,
    given: Folder | None = None,
    key: str = "--first_stage",
) -> FirstStage:
    """Loads the first stage that a second stage was trained on.

    Args:
      workdir: Workdir of the second stage.
      recorded: Its checkpoint's record of the first stage; None if it has none.
      given: Workdir of the first stage; by default the copy, or the recorded workdir.
      key: Flag or config key of that workdir, for messages.

    Returns:
      A FirstStage; for a copy, its record has the workdir that was copied.

    Raises:
      ConfigError: If it is not found, or is not a first stage.
      CheckpointError: If it cannot be read, or is another first stage.
    """
    if recorded is None and not given:
        raise ConfigError(
            f"{workdir} came without a first stage; say where one is with "
            f"{key}=ITS_WORKDIR"
        )
    if recorded is None:
        return load_first_stage(given, key=key)
    folder = given or first_stage_folder(recorded["workdir"], workdir)
    where = f"step {recorded['step']} of {recorded['workdir']}"
    copied = folder == absolute(workdir) / _COPY
    remedy = f"give that one with {key}=ITS_WORKDIR"
    if copied:
        remove = "gcloud storage rm" if is_remote(folder) else "rm"
        remedy = f"remove the copy to read that one in its place: {remove} -r {folder}"
    try:
        # For the identity these are recorded nowhere else.
        count = recorded.get("image_channels") or 3
        first = load_first_stage(
            folder, recorded["step"], key=key, image_channels=count
        )
    except DamagedCheckpoint as error:
        if not copied:
            raise
        raise CheckpointError(
            f"{error.problem}; it is a copy of {where}: {remedy}"
        ) from error
    problem = difference(first.record, recorded)
    if problem:
        raise CheckpointError(
            f"the first stage in {folder} {problem} than what {workdir} was trained "
            f"on, {where}: {remedy}"
        )
    if copied:
        place = {"workdir": recorded["workdir"]}
        first = first._replace(record=first.record | place)
    return first


def difference(found: Mapping[str, Any], recorded: Mapping[str, Any]) -> str | None:
    """Compares a first stage with the one that a second stage was trained on.

    Args:
      found: Record of the first stage that was found, see FirstStage.
      recorded: Record in the second stage's checkpoint; checksums that old or converted
        checkpoints lack are not compared.

    Returns:
      How the first stage differs, for a message; None if it is the same.
    """
    verbs = {
        "checksum": "makes other latents",
        "decoder_checksum": "has another decoder",
    }
    for key, verb in verbs.items():
        if key in recorded and found.get(key) != recorded[key]:
            return verb
    return None
