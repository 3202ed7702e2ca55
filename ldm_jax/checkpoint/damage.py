"""The error for a damaged checkpoint: its step, and how to return to an intact one."""

from ldm_jax.checkpoint.checksums import find_damage
from ldm_jax.checkpoint.folder import move_away, saved_steps
from ldm_jax.errors import CheckpointError, Unreachable
from ldm_jax.ranges import read_whole
from ldm_jax.store import Place, is_dir


class DamagedCheckpoint(CheckpointError):
    """Raised for a checkpoint that cannot be read, or is not what was saved.

    Attributes:
      problem: What is wrong, without what to do.
    """

    def __init__(self, folder: Place, reason: str | Exception) -> None:
        """Makes the message: the damage, and the newest intact checkpoint before it.

        Args:
          folder: Folder of the checkpoint.
          reason: What is wrong with it.
        """
        if isinstance(reason, Exception):
            lines = str(reason).strip().splitlines()
            first = lines[0][:200] if lines else "no reason given"
            reason = f"{type(reason).__name__}: {first}"
        self.problem = f"cannot read the checkpoint {folder}: {reason}"
        super().__init__(f"{self.problem}; {_way_back(folder)}")


def _way_back(folder):
    """What to do: the command that makes an earlier, intact checkpoint the newest."""
    steps = [step for step in saved_steps(folder.parent) if _precedes(step, folder)]
    whole = next(
        (s for s in reversed(steps) if _is_whole(folder.parent / str(s))), None
    )
    if whole is None:
        return "no earlier checkpoint is intact: start over in another --workdir"
    damaged = [*(folder.parent / str(step) for step in steps if step > whole), folder]
    return (
        f"step {whole} is intact: to continue from it, move damaged ones away and run "
        f"the same command again: {move_away(damaged, 'damaged')}"
    )


def _precedes(step, folder):
    found = read_whole(folder.name)
    return found is not None and step < found


def _is_whole(folder):
    """Whether a checkpoint is intact; those without checksums are assumed to be."""
    items = ("meta", "params", "training")
    try:
        complete = all(is_dir(folder / item) for item in items)
        return complete and find_damage(folder) is None
    # The damage that was found must be reported in any case.
    except (Unreachable, OSError):
        return False
