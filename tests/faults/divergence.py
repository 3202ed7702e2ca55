r"""Has runs diverge while they save, and goes the way back that the message names.

python -m tests.faults.divergence --outdir=/tmp/divergence --trials=8
"""

import argparse
import pathlib
import re
import subprocess
import sys

from ldm_jax.data.shapes import prepare
from tests.faults.jobs import FIRST, Job

# Rates that no weight survives for long.
RATES = ("1e8", "1e20", "1e30")


def trial(folder, data_dir, number):
    """Trains, diverges, goes back as the message says, and ends well.

    Args:
      folder: Folder for the runs.
      data_dir: Where the data set lies.
      number: Number of the trial, which varies rate and intervals.

    Returns:
      The step that diverged and the step from which it continued.
    """
    workdir, cache = folder / f"trial_{number}", folder / "cache"
    values = {"train.num_steps": 4, "train.checkpoint_every": 1, "train.keep_last": 3}
    values |= {"train.preview_images": 0, "train.log_every": 1}
    values |= {"data.eval_split": "", "eval.every": 0, "eval.best": None}
    Job(FIRST, workdir, data_dir, cache, **values).run()
    more = {"train.num_steps": 12, "train.learning_rate": RATES[number % 3]}
    more |= {"train.log_every": 1 + number % 4, "train.checkpoint_every": 1}
    bad = Job(FIRST, workdir, data_dir, cache, **values | more)
    bad.allow_change()
    bad.start()
    status, output = bad.end()
    assert status == 5, output
    line = output.strip().splitlines()[-1]
    assert line.startswith("error: step "), output
    step = int(re.search(r"step (\d+) is intact and kept", line)[1])
    assert (workdir / "checkpoints" / str(step)).is_dir(), line
    # What the line says is on disk when it says so: nothing newer appears.
    move = re.search(r"continue from it: (mkdir .*), and run the same", line)
    if move:
        subprocess.run(move[1], shell=True, check=True)
    assert max(map(int, bad.steps())) == step, line
    good = Job(FIRST, workdir, data_dir, cache, **values | {"train.num_steps": 8})
    good.allow_change()
    assert f"resuming at step {step}" in good.run()
    return int(re.search(r"step (\d+):", line)[1]), step


def run(outdir, trials):
    """Makes so many trials.

    Args:
      outdir: Folder for all runs.
      trials: How many.
    """
    folder = pathlib.Path(outdir)
    folder.mkdir(parents=True, exist_ok=True)
    data_dir = str(folder / "data")
    prepare.prepare(data_dir, image_size=32, num_train=64, num_validation=12)
    for number in range(trials):
        diverged, step = trial(folder, data_dir, number)
        print(f"{number}: diverged at {diverged}, continued from {step}", flush=True)


def main():
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--outdir", required=True)
    parser.add_argument("--trials", type=int, default=3)
    run(**vars(parser.parse_args()))


if __name__ == "__main__":
    sys.exit(main())
