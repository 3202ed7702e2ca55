"""Finds, lists, copies and moves the checkpoints of a run."""

import contextlib
import itertools
import os
import shlex
from collections.abc import Collection, Sequence

import jax

from ldm_jax import peers
from ldm_jax.checkpoint.best import read_best
from ldm_jax.checkpoint.checksums import (
    MARK,
    copy_checksums,
    find_damage,
    has_checksums,
)
from ldm_jax.config import Section, to_json
from ldm_jax.errors import CheckpointError
from ldm_jax.files import write_bytes
from ldm_jax.ranges import read_whole
from ldm_jax.store import (
    Place,
    as_path,
    exists,
    fetch,
    files_below,
    for_each,
    is_dir,
    is_file,
    is_remote,
)

Folder = str | os.PathLike
# A step as a number or a string of digits, or "best"; None is the newest.
Step = int | str | None

CHECKPOINTS = "checkpoints"


def absolute(workdir: Folder) -> Place:
    """Makes a path absolute and expands `~`, as Orbax needs it.

    Args:
      workdir: Folder of a run.

    Returns:
      Its path.
    """
    return as_path(workdir).absolute()


def saved_steps(folder: Place) -> list[int]:
    """Lists the steps of the saved checkpoints.

    They are read from the names of folders, and not from Orbax, which silently skips
    damaged checkpoints. A complete checkpoint is renamed into place, so any folder
    named like a step must be readable; in an object store, any with the mark file.

    Args:
      folder: `checkpoints` of a workdir; it need not exist.

    Returns:
      Steps, the smallest first.
    """
    paths = folder.iterdir() if is_dir(folder) else ()
    paths = [path for path in paths if read_whole(path.name) is not None]
    if is_remote(folder):
        # Object stores cannot rename: a complete checkpoint has a mark file.
        marked = for_each(lambda path: is_file(path / MARK), paths, folder)
        paths = itertools.compress(paths, marked)
    return sorted(int(path.name) for path in paths)


def refuse_unmarked(folder: Place) -> None:
    """Raises an error for complete checkpoints in an object store without a mark file.

    Older versions did not write the mark files by which checkpoints in a store are
    recognised, and Orbax deletes checkpoints without one.

    Args:
      folder: `checkpoints` of a workdir; it need not exist.

    Raises:
      CheckpointError: If there is one.
    """
    if not is_remote(folder) or not is_dir(folder):
        return
    for path in folder.iterdir():
        whole = read_whole(path.name) is not None and has_checksums(path)
        if whole and not is_file(path / MARK):
            raise CheckpointError(
                f"{path} is of an older version's run on a disk, and lacks its "
                f"mark: copy an empty file to {path}/{MARK}, and continue"
            )


def checkpoint_folder(workdir: Folder, step: Step = None) -> Place:
    """Finds a checkpoint folder.

    Args:
      workdir: Folder of a run.
      step: Step, or "best" for the one in `best.json`; the newest by default.

    Returns:
      Path of the checkpoint folder.

    Raises:
      CheckpointError: If there is no such checkpoint.
    """
    folder = absolute(workdir) / CHECKPOINTS
    if step == "best":
        step = _best_step(workdir)
    steps = saved_steps(folder)
    if not steps:
        raise CheckpointError(
            f"no checkpoint in {folder}; train one with train.py --workdir={workdir}"
        )
    step = None if step is None else int(step)
    if step is not None and step not in steps:
        raise CheckpointError(
            f"no checkpoint of step {step} in {folder}; it holds "
            + ", ".join(map(str, steps))
        )
    return folder / str(steps[-1] if step is None else step)


def _best_step(workdir):
    best = read_best(absolute(workdir))
    if best is None:
        raise CheckpointError(
            f"no checkpoint of {workdir} is known to be the best one: name a step; "
            "--config.eval.best has a run choose it"
        )
    return best.step


def common_step(workdir: Folder) -> int:
    """Finds the newest checkpoint, the same one for all processes of a job.

    Process 0 chooses it: while another run saves, and on network file systems,
    processes may see different folders. Every process must call it.

    Args:
      workdir: Folder of a run.

    Returns:
      Its step.

    Raises:
      CheckpointError: If there is none.
    """
    found = "" if jax.process_index() else checkpoint_folder(workdir).name
    return int(peers.gather(found)[0])


def move_away(folders: Sequence[Place], name: str) -> str:
    """Returns the command that moves checkpoints away, so that older ones are newest.

    Args:
      folders: Folders of the checkpoints to move.
      name: Name of the folder beside `checkpoints` to move them to; a number is
        appended if it exists already.

    Returns:
      A shell command.
    """
    workdir = folders[0].parent.parent
    numbered = (workdir / f"{name}_{n}" for n in itertools.count(2))
    places = itertools.chain([workdir / name], numbered)
    aside = next(place for place in places if not exists(place))
    if is_remote(workdir):
        return f"gcloud storage mv {shlex.join([*map(str, folders), f'{aside}/'])}"
    moved = shlex.join(map(str, [*folders, aside]))
    return f"mkdir {shlex.quote(str(aside))} && mv {moved}"


def copy_items(source: Place, workdir: Place, items: Collection[str]) -> None:
    """Copies some items of a checkpoint, as far as it has them, with their checksums.

    Args:
      source: Folder of the checkpoint.
      workdir: New workdir, made for the copy, on a local disk.
      items: Their names.

    Raises:
      CheckpointError: If the checkpoint was removed or damaged while it was copied.
    """
    target = workdir / CHECKPOINTS / source.name
    with contextlib.suppress(FileNotFoundError):
        for path in files_below(source):
            name = path.relative_to(source)
            if len(name.parts) == 1 or name.parts[0] in items:
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                fetch(path, target / name)
        copy_checksums(source, target, items)
    if not is_dir(source) or find_damage(target):
        raise CheckpointError(
            f"the checkpoint {source} was removed or damaged while it was copied: run "
            "the same command again"
        )


def write_config(workdir: Folder, config: Section) -> None:
    """Writes `config.json` beside the checkpoints, for people to read.

    Args:
      workdir: Folder of the run, created if needed.
      config: Its config.
    """
    write_bytes(as_path(workdir) / "config.json", to_json(config).encode())
