"""Tiny runs of several processes, on this machine or on hosts of their own."""

import contextlib
import signal
import subprocess
import time

from ldm_jax.errors import ProcessLost
from tests.faults.jobs import ROOT, Job
from tests.flags import xla_flags
from tests.processes import free_port

# Those of a job, whatever the number of its processes.
DEVICES = 2

# What a job's processes may end with, by the signals that came. When one was killed the
# others end for it. Asked to stop all save the same step and end alike, or the
# machine's own way before there is anything to save. Or all were through.
_ENDS = {
    signal.SIGKILL: {ProcessLost.exit_code, 0},
    signal.SIGTERM: {143, -signal.SIGTERM, ProcessLost.exit_code, 0},
    signal.SIGINT: {130, -signal.SIGINT, ProcessLost.exit_code, 0},
}

# Seconds within which the others must have ended; what compiles is not asked meanwhile.
SOON = 240


class PeersJob(Job):
    """A workdir whose command is started as one or several processes.

    Attributes:
      hosts: Where they are started in turn, see `hosts`; None for this machine.
      log: Ends the names of the files to which they print.
      processes: Those of the last start.
      logs: Paths of what they printed.
    """

    hosts, log = None, "log"

    def start(self, count=1, more=()):
        """Starts all processes, of `DEVICES` devices together."""
        host = "127.0.0.1" if self.hosts is None else self.hosts[0].name
        several = [f"--coordinator={host}:{free_port()}", f"--num_processes={count}"]
        several += ["--start_timeout=120"]
        self.workdir.mkdir(parents=True, exist_ok=True)
        self._started = time.time()
        self.processes, self.logs = [], []
        environment = self.environment() | {"XLA_FLAGS": xla_flags(DEVICES // count)}
        for index in range(count):
            joins = [*several, f"--process_id={index}"] if count > 1 else []
            start = subprocess.Popen if self.hosts is None else self.hosts[index].start
            self.logs.append(self.workdir.with_suffix(f".{index}.{self.log}"))
            with open(self.logs[-1], "w") as log:
                self.processes.append(
                    start(
                        self.command([*joins, *more]),
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
          (names of the signals, exit statuses).
        """
        self.start(count)
        victim = self._process = random.choice(self.processes)
        signals = moment(self, random)
        for seconds, number in signals:
            with contextlib.suppress(subprocess.TimeoutExpired):
                victim.wait(seconds)
            victim.send_signal(number)
        statuses = self.ends()
        output = "".join(self.printed())
        names = ", ".join(number.name for _, number in signals)
        usual = set().union(*(_ENDS[number] for _, number in signals))
        for process, status in zip(self.processes, statuses, strict=True):
            # Of Ctrl-C to one the others hear as of SIGTERM.
            others = {143} if 130 in usual else set()
            allowed = usual | ({-signal.SIGKILL} if process is victim else others)
            assert status in allowed, f"{names}: {statuses}\n{output}"
        assert "Traceback" not in output, f"{names}: {statuses}\n{output}"
        return names, statuses

    def ends(self, seconds=SOON):
        """Exit statuses; None of a process that has not ended after so many seconds."""
        end, statuses = time.monotonic() + seconds, []
        for process in self.processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.1, end - time.monotonic()))
            statuses.append(process.poll())
            process.kill()
            process.wait()
        return statuses

    def printed(self):
        """What the processes printed, by process."""
        return [log.read_text(errors="replace") for log in self.logs]

    def run_all(self, count, more=()):
        """Runs so many processes to their good end; returns the seconds."""
        began = time.monotonic()
        self.start(count, more)
        assert self.ends(900) == [0] * count, self.printed()
        return time.monotonic() - began
