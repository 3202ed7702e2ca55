r"""Kills processes of a job of several, again and again, and compares the end.

    python -m tests.faults.lost_processes --outdir=/tmp/lost --kills=100 --seed=1

A second stage is trained on two devices: by one process and by two that are left
alone, and by jobs of one or two processes, as drawn, of which one is hit at a moment
drawn from the table MOMENTS. Each start continues by the same command, whatever number
of processes the last one had. In the end all has the same bits: weights, averages,
optimiser states, metrics and previews.
"""

import collections
import pathlib
import random
import shutil
import sys

from ldm_jax.data.shapes import prepare
from tests.faults.jobs import FIRST, SECOND, Job, command_line, differences
from tests.faults.moments import MOMENTS
from tests.faults.peers_job import DEVICES, PeersJob


def run(outdir, kills, seed, moments=tuple(MOMENTS)):
    """Spends so many kills over jobs that are compared when they are through.

    Args:
      outdir: Folder for all runs.
      kills: How many.
      seed: Seed of the moments, of who is hit and of the numbers of processes.
      moments: Names in MOMENTS.

    Returns:
      (Counter of hits by number of processes, moment and statuses, what differed).
    """
    folder, draw = pathlib.Path(outdir), random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    data, cache = str(folder / "data"), folder / "cache"
    prepare.prepare(data, image_size=32, num_train=64, num_validation=12)
    first = Job(FIRST, folder / "first", data, cache)
    if not first.steps():
        first.run()
    below = {"first_stage.workdir": folder / "first"}
    whole = PeersJob(SECOND, folder / "whole", data, cache, **below)
    several = PeersJob(SECOND, folder / "several", data, cache, **below)
    usual = {}
    for job, count in ((whole, 1), (several, DEVICES)):
        for _ in range(2):
            # Twice: how long a run takes counts with the compiler's cache filled.
            shutil.rmtree(job.workdir, ignore_errors=True)
            usual[count] = job.run_all(count)
    counts, spent = collections.Counter(), 0
    found = differences(whole.workdir, several.workdir)
    while spent < kills:
        name = folder / f"job_{spent}"
        job, hits, through = PeersJob(SECOND, name, data, cache, **below), 0, False
        while not through and spent < kills:
            count, moment = draw.choice([1, DEVICES]), draw.choice(list(moments))
            job.usual_seconds = usual[count]
            sent, statuses = job.hit_one(count, MOMENTS[moment], draw)
            through = set(statuses) == {0}
            if not through:
                spent, hits = spent + 1, hits + 1
                counts[count, moment, str(statuses)] += 1
            steps = max(map(int, job.steps()), default=0)
            print(
                f"{count} processes, {moment}, {sent}: {statuses}, has {steps}, "
                f"{spent} of {kills}",
                flush=True,
            )
        job.run()
        found += differences(whole.workdir, job.workdir, hits)
        print(f"{len(found)} differences", flush=True)
        if not found:
            shutil.rmtree(name)
    return counts, found


if __name__ == "__main__":
    layout = "{} processes  {:<22} {:<12} {}"
    sys.exit(command_line(__doc__, run, layout, moments=list(MOMENTS)))
