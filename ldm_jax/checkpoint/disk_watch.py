"""Ends a job of which one process's disk refuses what all of them save together.

Orbax holds a process whose disk is full at a barrier, beside those that wait there for
its part of the checkpoint: for twenty minutes nobody would say why nothing goes on.
"""

import os
import tempfile
import time
from typing import Any

from ldm_jax import peers
from ldm_jax.errors import DiskError
from ldm_jax.files import writing
from ldm_jax.store import Place, is_remote

# More than what a limit on the size of files leaves to the small files of a run.
_TRIAL_BYTES = 2**16


def await_saved(saving: Any, folder: Place, kept: str, every: float = 3.0) -> None:
    """Waits for a checkpoint, and gives the job up if the disk refuses its part.

    One process alone is not held at a barrier, and a store says by itself that a
    request failed: there it only waits.

    Args:
      saving: Orbax's answer to the request to save.
      folder: Folder of the checkpoints.
      kept: What is not lost.
      every: Seconds between two trials of the disk; two refusals in a row count, as
        room may come of the checkpoint that is rotated away.

    Raises:
      Exception: What Orbax raises where it cannot save.
    """
    before = None
    while peers.several() and not is_remote(folder):
        start = time.monotonic()
        try:
            saving.result(timeout=every)
            return
        except TimeoutError:
            # Orbax's barriers raise the same.
            if time.monotonic() - start < every:
                raise
        refused = _refusal(folder, kept)
        if before and refused:
            peers.give_up(str(refused), refused.exit_code)
        before = refused
    saving.result()


def _refusal(folder, kept):
    """Writes a file of no name, of which nothing stays; returns the error if it fails.

    Where the checkpoints are, which a link may have put on another disk.
    """
    try:
        with (
            writing(f"a checkpoint in {folder}", kept),
            tempfile.TemporaryFile(dir=folder) as trial,
        ):
            trial.write(os.urandom(_TRIAL_BYTES))
            trial.flush()
    except DiskError as error:
        return error
    return None
