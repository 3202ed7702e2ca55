"""Where a run's numbers and pictures go: console, metrics.jsonl, TensorBoard, wandb."""

import json
import os
import pathlib

import numpy as np

from ldm_jax.errors import ConfigError
from ldm_jax.images import make_grid, to_uint8, write_png


class Writer:
    """Writes one run's metrics and previews; only process 0 has one that writes."""

    def __init__(self, workdir, config, start_step=0, active=True, wandb=False):
        """Opens the files of a workdir.

        Lines of `metrics.jsonl` past `start_step` come from steps that were not
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
        from tensorboardX import SummaryWriter

        self._folder = pathlib.Path(workdir)
        self._metrics = self._folder / "metrics.jsonl"
        _drop_lines_after(self._metrics, start_step)
        self._board = SummaryWriter(
            str(self._folder / "tensorboard"), purge_step=start_step or None
        )
        if wandb:
            self._wandb = _start_wandb(self._folder, config)

    def scalars(self, step, metrics):
        """Appends one line of metrics, a dict of name -> number."""
        if not self._active:
            return
        metrics = {name: float(value) for name, value in metrics.items()}
        with open(self._metrics, "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step} | metrics) + "\n")
        for name, value in metrics.items():
            self._board.add_scalar(name, value, step)
        if self._wandb:
            self._wandb.log(metrics, step=step)

    def images(self, step, previews):
        """Writes previews as PNG grids and to TensorBoard.

        Args:
          step: Number of steps done.
          previews: Dict of name -> images [B, H, W, 3] in [-1, 1].
        """
        if not self._active:
            return
        for name, images in previews.items():
            grid = make_grid(to_uint8(np.asarray(images)))
            write_png(self._folder / "previews" / f"{name}_{step:08d}.png", grid)
            self._board.add_image(name, grid, step, dataformats="HWC")
            if self._wandb:
                import wandb

                self._wandb.log({name: wandb.Image(grid)}, step=step)

    def close(self):
        """Flushes and closes."""
        if self._active:
            self._board.close()
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
        project="ldm_jax", name=folder.name, dir=folder, config=config, resume="allow"
    )


def _drop_lines_after(path, step):
    """Keeps the lines of steps up to `step`; a line cut by a kill goes too."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (json.JSONDecodeError, KeyError):
            continue
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(kept), encoding="utf-8")
    os.replace(temporary, path)


def format_metrics(step, total, metrics):
    """Formats a log line: `step 100/2000  loss 0.123  images_per_s 55.1  ...`."""
    names = sorted(metrics, key=lambda name: name != "loss")
    numbers = "  ".join(f"{name} {_short(metrics[name])}" for name in names)
    return f"step {step}/{total}  {numbers}"


def _short(value):
    value = float(value)
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        return f"{value:.4g}"
    return f"{value:.2e}"
