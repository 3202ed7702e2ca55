r"""Kills processes of a job of several, again and again, and compares the end.

    python -m tests.faults.lost_processes --outdir=/tmp/lost --kills=100 --seed=1

A second stage is trained on two devices: by one process and by two that are left
alone, and by jobs of one or two processes, as drawn, of which one is hit at a moment
drawn from the table MOMENTS. Each start goes on by the same command, whatever number of
processes the last one had. In the end all has the same bits: weights, averages,
optimiser states, metrics and previews.
"""

import collections
import contextlib
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

from ldm_jax.data.shapes import prepare
from ldm_jax.errors import ProcessLost
from tests.faults.jobs import FIRST, ROOT, SECOND, Job, command_line, differences
from tests.faults.moments import MOMENTS
from tests.flags import xla_flags
from tests.processes import free_port

DEVICES = 2

# What a job's processes may end with, by the signals that came. When one was killed the
# others are told so, or, without process 0 in which the coordination service lives,
# ended by JAX itself. Asked to stop all save the same step and end alike, or the
# machine's own way before there is anything to save. Or all were through.
_ENDS = {
    signal.SIGKILL: {ProcessLost.exit_code, -signal.SIGABRT, 0},
    signal.SIGTERM: {143, -signal.SIGTERM, ProcessLost.exit_code, 0},
    signal.SIGINT: {130, -signal.SIGINT, ProcessLost.exit_code, 0},
}
# Seconds within which the others must have ended; what compiles is not asked meanwhile.
_SOON = 240


class PeersJob(Job):
    """A workdir whose command is started as one or several processes.

    Attributes:
      processes: Those of the last start.
      logs: Paths of what they printed.
    """

    def start(self, count=1):
        """Starts all processes, of `DEVICES` devices together."""
        address = f"127.0.0.1:{free_port()}"
        self.workdir.mkdir(parents=True, exist_ok=True)
        self._started = time.time()
        self.processes, self.logs = [], []
        environment = self.environment() | {"XLA_FLAGS": xla_flags(DEVICES // count)}
        for index in range(count):
            several = [f"--coordinator={address}", f"--num_processes={count}"]
            several += [f"--process_id={index}", "--start_timeout=120"]
            self.logs.append(self.workdir.with_suffix(f".{index}.log"))
            with open(self.logs[-1], "w") as log:
                self.processes.append(
                    subprocess.Popen(
                        self.command(several if count > 1 else ()),
                        env=environment,
                        cwd=ROOT,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                    )
                )
        self._process, self._log = self.processes[0], self.logs[0]

    def hit_one(self, count, moment, random):
        """Starts so many processes and hits one of them.

        Returns:
          (names of the signals, exit statuses, what all printed).
        """
        self.start(count)
        victim = self._process = random.choice(self.processes)
        signals = moment(self, random)
        for seconds, number in signals:
            with contextlib.suppress(subprocess.TimeoutExpired):
                victim.wait(seconds)
            victim.send_signal(number)
        statuses = self._ends()
        output = "".join(log.read_text(errors="replace") for log in self.logs)
        names = ", ".join(number.name for _, number in signals)
        usual = set().union(*(_ENDS[number] for _, number in signals))
        for process, status in zip(self.processes, statuses, strict=True):
            # Of Ctrl-C to one the others hear as of SIGTERM.
            others = {143} if 130 in usual else set()
            allowed = usual | ({-signal.SIGKILL} if process is victim else others)
            assert status in allowed, f"{names}: {statuses}\n{output}"
        assert "Traceback" not in output, f"{names}: {statuses}\n{output}"
        return names, statuses

    def _ends(self, seconds=_SOON):
        """Exit statuses; None of a process that has not ended after so many seconds."""
        end, statuses = time.monotonic() + seconds, []
        for process in self.processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.1, end - time.monotonic()))
            statuses.append(process.poll())
            process.kill()
            process.wait()
        return statuses

    def run_all(self, count):
        """Runs so many processes to their good end; returns the seconds."""
        began = time.monotonic()
        self.start(count)
        assert self._ends(900) == [0] * count, [log.read_text() for log in self.logs]
        return time.monotonic() - began


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
