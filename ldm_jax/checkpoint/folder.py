"""Where the checkpoints of a run lie."""

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
# A step as a number, also in letters, or "best"; None is the newest.
Step = int | str | None

CHECKPOINTS = "checkpoints"


def absolute(workdir: Folder) -> Place:
    """Makes a path absolute and expands `~`; Orbax takes no other.

    Args:
      workdir: Folder of a run.

    Returns:
      Its path.
    """
    return as_path(workdir).absolute()


def saved_steps(folder: Place) -> list[int]:
    """Lists the steps of which there are checkpoints.

    Read from the folder's names, not from Orbax, which passes over a damaged checkpoint
    in silence: a whole one is renamed into place, so whatever bears a step's name must
    be readable; in a store, whatever bears its mark, too.

    Args:
      folder: `checkpoints` of a workdir; it need not be there.

    Returns:
      Steps, the smallest first.
    """
    paths = folder.iterdir() if is_dir(folder) else ()
    paths = [path for path in paths if read_whole(path.name) is not None]
    if is_remote(folder):
        # Where nothing can be renamed, a whole one bears a mark.
        marked = for_each(lambda path: is_file(path / MARK), paths, folder)
        paths = itertools.compress(paths, marked)
    return sorted(int(path.name) for path in paths)


def refuse_unmarked(folder: Place) -> None:
    """Refuses checkpoints in a store that are whole and do not say so.

    Older versions wrote none of the marks by which a store's checkpoints are known, and
    Orbax takes away what has none.

    Args:
      folder: `checkpoints` of a workdir; it need not be there.

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
                f"mark: copy an empty file to {path}/{MARK}, and go on"
            )


def checkpoint_folder(workdir: Folder, step: Step = None) -> Place:
    """Finds a checkpoint folder.

    Args:
      workdir: Folder of a run.
      step: Step wanted, or "best", which `best.json` names; the newest by default.

    Returns:
      Path of the checkpoint folder.

    Raises:
      CheckpointError: If there is none.
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

    Process 0 looks: while another run saves, and on disks over a network, processes see
    different folders. Every process must call it.

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
    """Says how to make older checkpoints the newest, with nothing lost.

    Args:
      folders: Folders of the checkpoints that are to be out of the way.
      name: Name of the folder beside `checkpoints` that takes them; a number is put
        behind it if there is one already.

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
    """Copies some items of a checkpoint, those that it has, with their checksums.

    Args:
      source: Folder of the checkpoint.
      workdir: New workdir, made for the copy, on a local disk.
      items: Their names.

    Raises:
      CheckpointError: If it is not what it was when all is copied.
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
      workdir: Folder of the run, made if need be.
      config: Its config.
    """
    write_bytes(as_path(workdir) / "config.json", to_json(config).encode())
