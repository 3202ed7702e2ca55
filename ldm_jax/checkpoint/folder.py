"""Where the checkpoints of a run lie."""

import os
import pathlib
import shutil
from collections.abc import Collection

from ldm_jax.checkpoint.checksums import copy_checksums
from ldm_jax.config import Section, to_json
from ldm_jax.errors import CheckpointError

Folder = str | os.PathLike

CHECKPOINTS = "checkpoints"


def absolute(workdir: Folder) -> pathlib.Path:
    """Makes a path absolute and expands `~`; Orbax takes no other.

    Args:
      workdir: Folder of a run.

    Returns:
      Its path.
    """
    return pathlib.Path(workdir).expanduser().absolute()


def saved_steps(folder: pathlib.Path) -> list[int]:
    """Lists the steps of which there are checkpoints.

    Read from the folder's names, not from Orbax, which passes over a damaged checkpoint
    in silence: a whole one is renamed into place, so whatever bears a step's name must
    be readable.

    Args:
      folder: `checkpoints` of a workdir; it need not be there.

    Returns:
      Steps, the smallest first.
    """
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
    folder = absolute(workdir) / CHECKPOINTS
    steps = saved_steps(folder)
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


def copy_items(
    source: pathlib.Path, workdir: pathlib.Path, items: Collection[str]
) -> None:
    """Copies some items of a checkpoint, those that it has, with their checksums.

    Args:
      source: Folder of the checkpoint.
      workdir: New workdir, made for the copy.
      items: Their names.
    """
    target = workdir / CHECKPOINTS / source.name
    target.mkdir(parents=True)
    for path in source.iterdir():
        if path.is_file():
            shutil.copyfile(path, target / path.name)
        elif path.name in items:
            shutil.copytree(path, target / path.name)
    copy_checksums(source, target, items)


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
