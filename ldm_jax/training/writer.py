"""Output of a run's metrics and images: `metrics.jsonl`, TensorBoard, wandb and PNG."""

import json
import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from absl import logging

from ldm_jax.annotations import Array, Float
from ldm_jax.errors import ConfigError
from ldm_jax.files import move, open_log, write_bytes, writing
from ldm_jax.images import make_grid, to_uint8, write_png
from ldm_jax.lock import require_held
from ldm_jax.store import as_path, exists, is_remote

# Bytes after which a new file of TensorBoard is started in an object store.
_PART = 2**22

# Suffix of previews until all of a step are written.
_UNFINISHED = ".unfinished"


class Writer:
    """Writes a run's metrics and previews; only that of process 0 is active.

    If another run has taken over the workdir, nothing more is written.
    """

    def __init__(
        self,
        workdir: str | os.PathLike,
        config: Mapping[str, Any],
        start_step: int = 0,
        active: bool = True,
        wandb: bool = False,
    ) -> None:
        """Opens the files of a workdir.

        Lines of `metrics.jsonl` after `start_step` come from steps that were not
        checkpointed and are run again; they are dropped, so a step has one line.

        Args:
          workdir: Folder of the run.
          config: Plain dict, recorded by wandb.
          start_step: Number of steps already done.
          active: False on all processes but the first.
          wandb: Also log to Weights & Biases (needs the extra `[wandb]`).
        """
        self._active = active
        self._wandb = None
        if not active:
            return
        self._folder = as_path(workdir)
        path = self._folder / "metrics.jsonl"
        _drop_lines_after(path, start_step)
        self._metrics = open_log(path)
        self._logs, self._failing = [self._metrics], set()
        # The first step to drop.
        purge_step = start_step + 1 if start_step else None
        self._board = _open_board(self._folder, self._logs, purge_step)
        if wandb:
            self._wandb = _start_wandb(self._folder, config)

    def scalars(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Appends one line of metrics.

        Args:
          step: Number of steps done.
          metrics: Dict of name -> number.
        """
        if not self._active:
            return
        require_held()
        metrics = {name: float(value) for name, value in metrics.items()}
        self._metrics.write((json.dumps({"step": step} | metrics) + "\n").encode())
        self._metrics.flush()
        for name, value in metrics.items():
            self._board.add_scalar(name, value, step)
        if self._wandb:
            self._wandb.log(metrics, step=step)
        self._say_what_fails()

    def images(
        self, step: int, previews: Mapping[str, Float[Array, "batch height width 3"]]
    ) -> None:
        """Writes previews as PNG grids and to TensorBoard.

        All are written under temporary names before they are renamed, so a run that is
        killed in between leaves a temporary file, which `has_images` checks.

        Args:
          step: Number of steps done.
          previews: Dict of name -> images [B, H, W, 3] in [-1, 1].
        """
        if not self._active:
            return
        require_held()
        grids = {
            name: make_grid(to_uint8(np.asarray(i))) for name, i in previews.items()
        }
        paths = {name: self._preview_path(name, step) for name in grids}
        try:
            for name, grid in grids.items():
                write_png(f"{paths[name]}{_UNFINISHED}", grid)
            for path in paths.values():
                move(f"{path}{_UNFINISHED}", path)
        except OSError as error:
            logging.warning(
                "no previews of step %d, training continues: %s", step, error
            )
        for name, grid in grids.items():
            self._board.add_image(name, grid, step, dataformats="HWC")
            if self._wandb:
                import wandb

                self._wandb.log({name: wandb.Image(grid)}, step=step)

    def has_images(self, step: int) -> bool:
        """Returns whether all previews of a step were written.

        Args:
          step: Number of steps done.

        Returns:
          Whether they were, False on all processes but the first.
        """
        if not self._active:
            return False
        done = self._preview_path("*", step)
        unfinished = f"{done.name}{_UNFINISHED}"
        return any(done.parent.glob(done.name)) and not any(
            done.parent.glob(unfinished)
        )

    def has_scalars(self, step: int, counts: Callable[[str], bool]) -> bool:
        """Returns whether metrics of a kind were written at a step.

        Args:
          step: Number of steps done.
          counts: Function of a metric's name -> whether it is of that kind.

        Returns:
          Whether there is a line with one, False on all processes but the first.
        """
        if not self._active or not exists(self._metrics.path):
            return False
        self.flush()
        rows = _read_rows(self._metrics.path.read_bytes())
        return any(row["step"] == step and any(map(counts, row)) for _, row in rows)

    def _preview_path(self, name, step):
        return self._folder / "previews" / f"{name}_{step:08d}.png"

    def _say_what_fails(self):
        """Warns once if a file cannot be written, and once if it can again."""
        for log in self._logs:
            if log.failure and log.path not in self._failing:
                self._failing.add(log.path)
                logging.warning(
                    "cannot write %s: %s; training continues, and what is to be "
                    "written waits for room",
                    log.path,
                    log.failure,
                )
            elif not log.failure and log.path in self._failing:
                self._failing.remove(log.path)
                logging.warning("%s is written again", log.path)

    def flush(self) -> None:
        """Writes out all metrics logged so far.

        Call it before a checkpoint is saved: a run that resumes from it does not log
        the steps before it again.
        """
        if self._active:
            require_held()
            self._metrics.flush(now=True)

    def close(self) -> None:
        """Flushes and closes; warns about what could not be written."""
        if self._active:
            self._board.close()
            for log in self._logs:
                log.flush(now=True)
                if log.failure:
                    text = "the end of %s is missing, it cannot be written: %s"
                    logging.warning(text, log.path, log.failure)
        if self._wandb:
            self._wandb.finish()


def _start_wandb(folder, config):
    try:
        import wandb
    except ImportError as error:
        raise ConfigError(
            "train.wandb=True needs the package wandb: pip install 'ldm-jax[wandb]'"
        ) from error
    return wandb.init(
        project="ldm_jax",
        name=folder.name,
        # wandb keeps its own files on a local disk.
        dir=None if is_remote(folder) else folder,
        config=config,
        resume="allow",
    )


class _Boards:
    """Opens files for TensorBoard's writer, whose own would hang on a full disk."""

    # Paths with this prefix are opened by this class.
    PREFIX = "ldm_jax"

    def __init__(self, logs):
        self._logs = logs

    def directory_check(self, path):
        """Does nothing: the file creates its folder."""

    def open(self, path):
        """Opens a file with `open_log`."""
        self._logs.append(open_log(path.removeprefix(f"{self.PREFIX}:"), _PART))
        return self._logs[-1]


def _open_board(folder, logs, purge_step):
    """Opens TensorBoard's writer; its file is added to `logs`."""
    from tensorboardX import SummaryWriter, record_writer

    # The factory is global, so it is replaced for each writer, which opens its file at
    # once.
    record_writer.REGISTERED_FACTORIES[_Boards.PREFIX] = _Boards(logs)
    place = f"{_Boards.PREFIX}:{(folder / 'tensorboard').absolute()}"
    return SummaryWriter(place, purge_step=purge_step)


def _read_rows(data):
    """Yields (line, parsed row) of `metrics.jsonl`; skips a line cut off by a kill."""
    for line in data.splitlines(keepends=True):
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if line.endswith(b"\n") and isinstance(row, dict) and "step" in row:
            yield line, row


def _drop_lines_after(path, step):
    """Keeps the lines of steps up to `step`; drops also a line cut off by a kill."""
    if not exists(path):
        return
    data = path.read_bytes()
    kept = b"".join(line for line, row in _read_rows(data) if row["step"] <= step)
    if data.startswith(kept) and not is_remote(path):
        # Truncating needs no space on a full disk.
        with writing(path):
            os.truncate(path, len(kept))
    elif data != kept:
        write_bytes(path, kept)
