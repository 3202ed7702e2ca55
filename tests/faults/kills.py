r"""Kills runs of both stages, has them continue, and compares their end, bit for bit.

    python -m tests.faults.kills --outdir=/tmp/kills --kills=100 --seed=1

A run that was left alone is made of each stage. Then others are hit at moments drawn
from the table MOMENTS, with the seed, and continue by the same command until they are
through; then the next ones begin, until so many kills are spent. In the scenario
`retrained` the first stage under a second one is trained further meanwhile, so the
checkpoint that the second one began with is gone.
"""

import collections
import pathlib
import random
import shutil
import sys

from ldm_jax.data.shapes import prepare
from tests.faults.jobs import FIRST, SECOND, Job, command_line, differences
from tests.faults.moments import MOMENTS

SCENARIOS = ("first", "second", "retrained")


class Trial:
    """Reference runs, and runs beside them that are hit."""

    def __init__(self, outdir, seed):
        """Prepares data and trains each stage once, undisturbed."""
        self._folder = pathlib.Path(outdir)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._random = random.Random(seed)
        self._rounds = collections.Counter()
        self.counts = collections.Counter()
        self._data = str(self._folder / "data")
        prepare.prepare(self._data, image_size=32, num_train=64, num_validation=12)
        self._whole = {
            "first": self._job(FIRST, "whole_first"),
            "second": self._second("whole_second", "whole_first"),
        }
        for job in (*self._whole.values(), *self._whole.values()):
            # Twice: how long a run takes counts with the compiler's cache filled.
            shutil.rmtree(job.workdir, ignore_errors=True)
            job.run()

    def _job(self, stage, name, **changes):
        cache = self._folder / "cache"
        return Job(stage, self._folder / name, self._data, cache, **changes)

    def _second(self, name, first, **changes):
        changes["first_stage.workdir"] = self._folder / first
        return self._job(SECOND, name, **changes)

    def round(self, scenario, moments, kills):
        """Hits one new run until it is through, or so many times; then compares.

        Args:
          scenario: One of SCENARIOS.
          moments: Names in MOMENTS.
          kills: Most hits.

        Returns:
          (number of hits, list of what differs in the end).
        """
        self._rounds[scenario] += 1
        name = f"{scenario}_{self._rounds[scenario]}"
        retrained = None
        if scenario == "first":
            job = self._job(FIRST, name)
        elif scenario == "second":
            job = self._second(name, "whole_first")
        else:
            shutil.copytree(
                self._folder / "whole_first", self._folder / f"{name}_below"
            )
            job = self._second(name, f"{name}_below")
            more = {"train.num_steps": 20, "train.keep_last": 1}
            retrained = self._job(FIRST, f"{name}_below", **more)
        whole = self._whole["first" if scenario == "first" else "second"]
        job.usual_seconds = whole.usual_seconds
        hits, status, begun = 0, None, False
        while hits < kills and status != 0:
            # The first stage continues as soon as the second one has saved once.
            if retrained and job.steps() and not begun:
                begun = True
                retrained.run()
            moment = self._random.choice(moments)
            number, status = job.hit(MOMENTS[moment], self._random)
            if status != 0:
                hits += 1
                self.counts[scenario, moment, number.name] += 1
            print(f"{name}: {moment}: exit {status}, has {_newest(job)}", flush=True)
        if status != 0:
            job.run()
        found = differences(whole.workdir, job.workdir, hits)
        # Nothing is done twice.
        assert "nothing to do" in job.run()
        found += differences(whole.workdir, job.workdir, hits)
        if not found:
            for folder in self._folder.glob(f"{name}*"):
                shutil.rmtree(folder) if folder.is_dir() else folder.unlink()
        return hits, found


def _newest(job):
    return max(map(int, job.steps()), default=0)


def run(outdir, kills, seed, scenarios=SCENARIOS, moments=tuple(MOMENTS)):
    """Spends so many kills over rounds of all scenarios.

    Args:
      outdir: Folder for all runs.
      kills: How many.
      seed: Seed of the moments.
      scenarios: Some of SCENARIOS.
      moments: Some of MOMENTS.

    Returns:
      (Counter of hits by scenario, moment and signal, list of what differed).
    """
    trial, spent, found = Trial(outdir, seed), 0, []
    while spent < kills:
        for scenario in scenarios:
            hits, differs = trial.round(scenario, moments, max(1, kills - spent))
            found += [f"{scenario}: {text}" for text in differs]
            spent += hits
            print(f"{spent} of {kills} kills, {len(found)} differences", flush=True)
            if spent >= kills:
                break
    return trial.counts, found


if __name__ == "__main__":
    choices = {"scenarios": list(SCENARIOS), "moments": list(MOMENTS)}
    sys.exit(command_line(__doc__, run, "{:<10} {:<18} {:<8} {}", **choices))
