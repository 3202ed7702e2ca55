"""Tiny runs of both stages as processes of their own, and how two of them differ."""

import argparse
import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np

from ldm_jax import checkpoint
from tests.flags import xla_flags

ROOT = pathlib.Path(__file__).parent.parent.parent

# Few steps with much going on around each: saves, rotations, evaluations, previews,
# measured samples, the best checkpoint.
COMMON = {
    "train.num_steps": 12,
    "train.checkpoint_every": 2,
    "train.keep_last": 2,
    "train.log_every": 1,
    "train.eval_every": 4,
    "train.eval_batches": 2,
    "train.preview_every": 4,
    "train.preview_images": 2,
    "eval.every": 3,
    "eval.num_samples": 12,
    "eval.batch_size": 8,
    "eval.distances": "frechet",
    "eval.best": "frechet",
    "eval.levels": 2,
}
FIRST = ("shapes_autoencoder:tiny", COMMON)
SECOND = ("shapes_class:tiny", COMMON)

# What a run may end with, by the signals that came: before there is anything to
# save the machine's own way is taken, and a run that is done is done.
EXPECTED = {
    signal.SIGKILL: {-signal.SIGKILL, 0},
    signal.SIGTERM: {143, -signal.SIGTERM, 0},
    signal.SIGINT: {130, -signal.SIGINT, 0},
}

# Metrics that say how fast the machine was.
_SPEED = ("_per_s", "_ms", "_gb", "memory")


class Job:
    """One workdir, whose command is started again and again."""

    def __init__(self, stage, workdir, data_dir, cache, usual_seconds=20.0, **changes):
        name, values = stage
        self.workdir = pathlib.Path(workdir)
        self.checkpoints = self.workdir / "checkpoints"
        self.usual_seconds = usual_seconds
        values = values | {"data.data_dir": data_dir} | changes
        self._arguments = [f"--config={name}", f"--workdir={workdir}"]
        self._arguments += [f"--config.{key}={value}" for key, value in values.items()]
        self._cache = cache
        self._process = None

    def allow_change(self):
        """Has the command accept that the config is not the checkpoint's."""
        self._arguments.append("--allow_config_change")

    def environment(self):
        """Environment of the command."""
        return os.environ | {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": xla_flags(1),
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
            "JAX_COMPILATION_CACHE_DIR": str(self._cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
            "PYTHONPATH": str(ROOT),
        }

    def command(self, more=()):
        """The command and its arguments."""
        return [sys.executable, str(ROOT / "train.py"), *self._arguments, *more]

    def start(self):
        """Starts the command, which continues where it was."""
        self.workdir.mkdir(parents=True, exist_ok=True)
        self._started = time.time()
        self._log = self.workdir.with_suffix(".log")
        with open(self._log, "w") as log:
            self._process = subprocess.Popen(
                self.command(),
                env=self.environment(),
                cwd=ROOT,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    @property
    def pid(self):
        """Number of the process."""
        return self._process.pid

    def running(self):
        """Whether the command has not ended."""
        return self._process.poll() is None

    def send(self, number):
        """Sends a signal, if there still is somebody to take it."""
        self._process.send_signal(number)

    def end(self, seconds=600):
        """Waits for the end; returns (exit status, what was printed)."""
        try:
            status = self._process.wait(seconds)
        finally:
            self._process.kill()
        return status, self._log.read_text(errors="replace")

    def run(self):
        """Runs the command to its good end; returns what it printed."""
        start = time.monotonic()
        self.start()
        status, output = self.end()
        assert status == 0, output
        self.usual_seconds = time.monotonic() - start
        return output

    def hit(self, moment, random):
        """Starts the command and hits it at a moment; returns (last signal, status)."""
        self.start()
        signals = moment(self, random)
        for seconds, number in signals:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(seconds)
            self.send(number)
        status, output = self.end()
        expected = set().union(*(EXPECTED[number] for _, number in signals))
        assert status in expected, f"{moment.__name__}: {status}\n{output}"
        assert "Traceback" not in output, f"{moment.__name__}\n{output}"
        return signals[-1][1], status

    def steps(self):
        """Steps of the checkpoints that bear their names."""
        with contextlib.suppress(FileNotFoundError):
            return {p.name for p in self.checkpoints.iterdir() if p.name.isdigit()}
        return set()

    def saving(self):
        """Whether a checkpoint is being written, by this start of the command."""
        with contextlib.suppress(FileNotFoundError):
            paths = self.checkpoints.glob("*tmp*")
            return any(path.stat().st_ctime > self._started for path in paths)
        return False

    def log_size(self):
        """Bytes of the metrics that are written."""
        with contextlib.suppress(FileNotFoundError):
            return (self.workdir / "metrics.jsonl").stat().st_size
        return 0


def command_line(doc, run, layout, **choices):
    """Runs a script that kills; prints what was hit and what differed in the end.

    Args:
      doc: Docstring of the script.
      run: Function of outdir, kills, seed and the choices; returns a Counter of hits,
        by tuples, and a list of sentences, empty where all is the same.
      layout: Format of a tuple and its count.
      **choices: What to choose among, by the name of the flag; all of it by default.

    Returns:
      The exit status.
    """
    parser = argparse.ArgumentParser(description=doc.split("\n")[0])
    parser.add_argument("--outdir", required=True)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    for name, among in choices.items():
        parser.add_argument(f"--{name}", nargs="+", choices=among, default=among)
    start = time.monotonic()
    counts, found = run(**vars(parser.parse_args()))
    for hit, count in sorted(counts.items()):
        print(layout.format(*hit, count))
    print(f"{sum(counts.values())} hits in {time.monotonic() - start:.0f} s")
    print("\n".join(found) if found else "all ended in the same bits")
    return 1 if found else 0


def differences(one, other, kills=1):
    """What differs between two finished runs: arrays, metrics, images, leftovers.

    Args:
      one: Workdir of a run that was left alone.
      other: Workdir of a run that was not.
      kills: How often it was killed, at most.

    Returns:
      List of sentences, empty where they are the same.
    """
    found = []
    folders = [checkpoint.checkpoint_folder(workdir) for workdir in (one, other)]
    if folders[0].name != folders[1].name:
        found.append(f"one ended at step {folders[0].name}, other {folders[1].name}")
    for item in ("params", "ema_params", "training"):
        trees = [checkpoint.load_item(folder, item) for folder in folders]
        leaves = [jax.tree_util.tree_leaves_with_path(tree) for tree in trees]
        for (path, a), (_, b) in zip(*leaves, strict=True):
            if np.asarray(a).tobytes() != np.asarray(b).tobytes():
                found.append(f"{item}{jax.tree_util.keystr(path)} differs")
    rows = [_metrics(workdir) for workdir in (one, other)]
    if rows[0] != rows[1]:
        keys = sorted(rows[0].keys() | rows[1].keys())
        changed = [key for key in keys if rows[0].get(key) != rows[1].get(key)]
        found.append(f"metrics differ at (step, what they are of): {changed}")
    best = [(pathlib.Path(d) / "best.json").read_bytes() for d in (one, other)]
    if best[0] != best[1]:
        found.append(f"the best checkpoints: {best}")
    # It is an error if it is not there.
    checkpoint.checkpoint_folder(other, "best")
    images = [_files(workdir, "previews") for workdir in (one, other)]
    if images[0] != images[1]:
        changed = {name for name, _ in images[0].items() ^ images[1].items()}
        found.append(f"previews differ: {sorted(changed)}")
    # A run that was asked to stop has saved at another step, too, and one that was
    # killed right after a save has not yet deleted the oldest; the next save does.
    # The best one stays beside them.
    names = sorted(path.name for path in folders[1].parent.iterdir())
    most = COMMON["train.keep_last"] + 1 + max(kills, 1)
    if len(names) > most or not all(map(str.isdigit, names)):
        found.append(f"what is kept as checkpoints: {names}")
    return found


def _metrics(workdir):
    """(step, what they are of) -> metrics, each of which must be there once."""
    rows = {}
    text = (pathlib.Path(workdir) / "metrics.jsonl").read_text()
    for line in text.splitlines():
        row = json.loads(line)
        kept = {k: v for k, v in row.items() if not any(s in k for s in _SPEED)}
        kinds = {k.rpartition("/")[0] for k in row.keys() - {"step"}}
        key = row["step"], ", ".join(sorted(kinds))
        assert key not in rows, f"two records of {key} in {workdir}"
        rows[key] = kept
    return rows


def _files(workdir, folder):
    paths = (pathlib.Path(workdir) / folder).iterdir()
    return {path.name: path.read_bytes() for path in paths}
