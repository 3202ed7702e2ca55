r"""Kills processes of a job of several, again and again, and compares the end.

    python -m tests.faults.lost_processes --outdir=/tmp/lost --kills=100 --seed=1

A second stage is trained on two devices: by one process that is left alone, and by jobs
of one or two processes, as drawn, of which one is hit at a random moment. Each start
goes on by the same command, whatever number of processes the last one had. In the end
all has the same bits: weights, averages, optimiser states, metrics and previews.
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
from tests.flags import xla_flags
from tests.processes import free_port

DEVICES = 2

# What the others end with when one was killed: told so, or, without process 0 in which
# the coordination service lives, by JAX itself; or they were through.
_LEFT = {ProcessLost.exit_code, -signal.SIGABRT, 0}
# With SIGTERM all save the same step and end alike.
_STOPPED = {143, -signal.SIGTERM, 0}
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

    def hit_one(self, count, random):
        """Starts so many processes and hits one of them; returns what happened."""
        self.start(count)
        number = random.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM])
        victim = self.processes[random.randrange(count)]
        with contextlib.suppress(subprocess.TimeoutExpired):
            victim.wait(random.uniform(0, self.usual_seconds * count))
        victim.send_signal(number)
        end, statuses = time.monotonic() + _SOON, []
        for process in self.processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.1, end - time.monotonic()))
            statuses.append(process.poll())
            process.kill()
            process.wait()
        output = "".join(log.read_text(errors="replace") for log in self.logs)
        usual = _STOPPED if number == signal.SIGTERM else _LEFT
        for process, status in zip(self.processes, statuses, strict=True):
            allowed = usual | ({-signal.SIGKILL} if process is victim else set())
            assert status in allowed, f"{number.name}: {statuses}\n{output}"
        assert "Traceback" not in output, output
        return number, statuses


def run(outdir, kills, seed):
    """Spends so many kills over jobs that are compared when they are through.

    Args:
      outdir: Folder for all runs.
      kills: How many.
      seed: Seed of the moments, of who is hit and of the numbers of processes.

    Returns:
      (Counter of hits by number of processes, process and signal, what differed).
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
    for _ in range(2):
        # Twice: how long a run takes counts with the compiler's cache filled.
        shutil.rmtree(whole.workdir, ignore_errors=True)
        whole.run()
    counts, found, spent = collections.Counter(), [], 0
    while spent < kills:
        name = folder / f"job_{spent}"
        job = PeersJob(SECOND, name, data, cache, **below)
        job.usual_seconds, hits, through = whole.usual_seconds, 0, False
        while not through and spent < kills:
            count = draw.choice([1, DEVICES])
            number, statuses = job.hit_one(count, draw)
            through = set(statuses) == {0}
            if not through:
                spent, hits = spent + 1, hits + 1
                counts[count, number.name, str(statuses)] += 1
            steps = max(map(int, job.steps()), default=0)
            print(
                f"{count} processes, {number.name}: {statuses}, has {steps}, {spent} "
                f"of {kills}",
                flush=True,
            )
        job.run()
        found += differences(whole.workdir, job.workdir, hits)
        print(f"{len(found)} differences", flush=True)
        if not found:
            shutil.rmtree(name)
    return counts, found


if __name__ == "__main__":
    sys.exit(command_line(__doc__, run, "{} processes  {:<8} {:<12} {}"))
