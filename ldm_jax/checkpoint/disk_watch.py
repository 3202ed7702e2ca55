"""Ends a job if the disk of one process fails while all processes save a checkpoint.

Orbax makes a process whose disk is full wait at a barrier, with the others, which wait
for its part of the checkpoint: for twenty minutes there would be no progress and no
error message.
"""

import os
import tempfile
import time
from typing import Any

from ldm_jax import peers
from ldm_jax.errors import DiskError
from ldm_jax.files import writing
from ldm_jax.store import Place, is_remote

# More than the small files of a run need, so that a limit on file sizes is noticed.
_TRIAL_BYTES = 2**16


def await_saved(saving: Any, folder: Place, kept: str, every: float = 3.0) -> None:
    """Waits for a checkpoint, and ends the job if the disk cannot be written.

    A single process does not wait at a barrier, and an object store itself raises an
    error for a failed request: in these cases it only waits.

    Args:
      saving: Orbax's response of the asynchronous save.
      folder: Folder of the checkpoints.
      kept: What is not lost, for the message.
      every: Seconds between two tests of the disk; only two failures in a row count, as
        deleting an old checkpoint may free space.

    Raises:
      Exception: Whatever Orbax raises if it cannot save.
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
    """Writes an anonymous temporary file; returns the error if that fails.

    It is written to the folder of the checkpoints, which may be a link to another disk.
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
