"""The first stage of a second one: its own copy, or where the checkpoint says.

A second stage is worth nothing without the first stage whose latents it was trained on,
to the bit; but that may be trained further, which rotates the checkpoint away, made
anew in place, or moved. So a run keeps a copy in `first_stage_copy` of its workdir: one
checkpoint without what only training needs. Wherever a first stage is read from, its
checksums are compared with those that the second stage's checkpoint records.
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
    """Says whether a workdir holds a copy of its first stage.

    Args:
      workdir: Workdir of a second stage.

    Returns:
      Whether it does.
    """
    return is_dir(absolute(workdir) / _COPY)


def keep_first_stage(workdir: Folder, first: FirstStage) -> None:
    """Copies a first stage into the workdir of a run on its latents, once.

    Process 0 does it. The copy appears as a whole or not at all.

    Args:
      workdir: Workdir of the run.
      first: FirstStage of the run.

    Raises:
      CheckpointError: If it is gone meanwhile.
      DiskError: If the copy cannot be written.
    """
    if first.config is None or jax.process_index():
        return
    copy = absolute(workdir) / _COPY
    source = checkpoint_folder(first.record["workdir"], first.record["step"])
    if is_copy(copy / CHECKPOINTS / source.name, source, _ITEMS):
        return
    # What is left of a run on another first stage that came to no checkpoint.
    remove_folder(copy)
    with drafted(copy) as draft:
        copy_items(source, draft, _ITEMS)


def first_stage_folder(recorded: str, workdir: Folder) -> Place | str:
    """Finds the first stage of a second one, also if both moved together.

    Args:
      recorded: Its workdir as the second stage's checkpoint records it; where it lies
        inside of that workdir, relative to it; "identity" for none.
      workdir: Workdir of the second stage; the copy in it goes first.

    Returns:
      Path of the first stage's workdir, or "identity".

    Raises:
      ConfigError: If it is not there.
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
    """Loads the first stage that a second one was trained on.

    Args:
      workdir: Workdir of the second stage.
      recorded: What its checkpoint records of the first stage; None if it came without.
      given: Workdir of the first stage; by default the copy, or where it is recorded.
      key: Flag or config key that gives it, for messages.

    Returns:
      A FirstStage, whose record says where the copy was taken from.

    Raises:
      ConfigError: If it is not there, or holds something else.
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
        # Of the identity nothing else says them.
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
      found: Record of the first stage that is there, see FirstStage.
      recorded: The one that the second stage's checkpoint holds; what old or converted
        ones do not record is not compared.

    Returns:
      What the one that is there does otherwise; None if it is the same.
    """
    verbs = {
        "checksum": "makes other latents",
        "decoder_checksum": "has another decoder",
    }
    for key, verb in verbs.items():
        if key in recorded and found.get(key) != recorded[key]:
            return verb
    return None
