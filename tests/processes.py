"""Local processes that stand for the hosts of a job."""

import os
import socket
import subprocess
import sys

from tests.flags import xla_flags


def free_port():
    """A port of this machine that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run_pair(code, devices=8):
    """Runs a program as two processes; returns the last line that each prints.

    Args:
      code: Python, which finds the coordinator's address and its own index in argv.
      devices: Simulated devices of each.
    """
    address = f"127.0.0.1:{free_port()}"
    jobs = [
        subprocess.Popen(
            [sys.executable, "-c", code, address, str(index)],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"XLA_FLAGS": xla_flags(devices)},
        )
        for index in range(2)
    ]
    # What connects them speaks, too, and first.
    return [job.communicate(timeout=120)[0].splitlines()[-1] for job in jobs]
