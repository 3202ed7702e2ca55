"""Two processes of one job, of which one fails: what the other does, and how soon."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

import ldm_jax
from ldm_jax.errors import DataError, ProcessLost
from ldm_jax.lock import FILE
from tests.processes import free_port

pytestmark = pytest.mark.slow

SCRIPT = """
import contextlib, os, signal, sys, time

fault, victim = sys.argv.pop(1), int(sys.argv.pop(1))

def main(argv):
    import jax
    from jax.experimental import multihost_utils
    from ldm_jax import peers
    from ldm_jax.errors import DataError
    from ldm_jax.lock import hold_outdir

    stack = contextlib.ExitStack()
    if fault == "asked":
        stack.enter_context(hold_outdir(os.path.dirname(__file__)))
    if fault == "late":
        # Longer than Gloo waits where processes meet for the first time.
        time.sleep(40 * (jax.process_index() == victim))
        assert peers.gather(str(jax.process_index())) == ["0", "1"]
    multihost_utils.sync_global_devices("start")
    peers.progress(1)
    if jax.process_index() == victim:
        if fault == "raise":
            raise DataError("cannot read x.png")
        if fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if fault == "asked":
            # Also where it waits in a collective, in which nothing of Python's runs.
            os.kill(os.getpid(), signal.SIGTERM)
        if fault == "hang":
            time.sleep(1000)
    if fault == "asked":
        time.sleep(1000 * (jax.process_index() != victim))
    multihost_utils.sync_global_devices("end")

from ldm_jax import cli
cli.run(main, "doc")
"""


def _start(folder, fault, victim, *arguments, **environment):
    script = folder / "job.py"
    script.write_text(SCRIPT)
    root = str(pathlib.Path(ldm_jax.__file__).parents[1])
    return subprocess.Popen(
        [
            sys.executable,
            str(script),
            fault,
            str(victim),
            *arguments,
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # Nobody answers there: it must not stand between the two.
        env=os.environ
        | {"PYTHONPATH": root, "JAX_PLATFORMS": "cpu"}
        | {"http_proxy": "http://127.0.0.1:9"}
        | environment,
    )


def _joins(index, port):
    """Flags of one of two processes."""
    coordinator = f"--coordinator=127.0.0.1:{port}"
    return coordinator, "--num_processes=2", f"--process_id={index}"


def _run(folder, fault, *arguments, victim=1):
    port = free_port()
    jobs = [
        _start(folder, fault, victim, *_joins(index, port), *arguments)
        for index in range(2)
    ]
    return _ends(jobs)


def _ends(jobs):
    """Exit statuses and last lines."""
    try:
        outputs = [job.communicate(timeout=120)[0] for job in jobs]
    finally:
        for job in jobs:
            job.kill()
    statuses = [job.returncode for job in jobs]
    lines = [_last_line(output) for output in outputs]
    assert not any("Traceback" in output for output in outputs), outputs
    return statuses, lines


def _last_line(output):
    # Gloo's own lines come when its buffer is emptied.
    lines = [line for line in output.splitlines() if not line.startswith("[Gloo]")]
    return (lines or [""])[-1]


def test_all_goes_well(tmp_path):
    statuses, _ = _run(tmp_path, "none")
    assert statuses == [0, 0]


def test_one_that_comes_late_is_waited_for(tmp_path):
    statuses, _ = _run(tmp_path, "late")
    assert statuses == [0, 0]


def test_slurm_says_where_the_others_are(tmp_path):
    # JAX makes a port of the number; of its processes each has a device of its own.
    job = {"SLURM_JOB_ID": str(free_port()), "SLURM_NTASKS": "2"}
    job |= {"SLURM_STEP_NODELIST": "localhost"}
    jobs = [
        _start(
            tmp_path,
            *("none", 1, "--distributed"),
            **job | {"SLURM_PROCID": str(index), "SLURM_LOCALID": str(index)},
        )
        for index in range(2)
    ]
    statuses, _ = _ends(jobs)
    assert statuses == [0, 0]


def test_the_other_ends_with_the_message(tmp_path):
    statuses, lines = _run(tmp_path, "raise")
    assert statuses == [DataError.exit_code] * 2
    assert lines[1] == "error: cannot read x.png"
    assert lines[0].startswith("error: process 1 of 2 on ")
    assert lines[0].endswith(" failed: cannot read x.png")


def test_a_killed_process_is_missed(tmp_path):
    start = time.monotonic()
    statuses, lines = _run(tmp_path, "kill")
    assert statuses == [ProcessLost.exit_code, -signal.SIGKILL]
    assert "process 1 of 2" in lines[0] and "no heartbeat for 20 s" in lines[0]
    # With the time to start on a busy machine.
    assert time.monotonic() - start < 60


def test_process_0_is_killed(tmp_path):
    """JAX aborts the other, as its service has gone: that ends in a line, too."""
    start = time.monotonic()
    statuses, lines = _run(tmp_path, "kill", victim=0)
    assert statuses == [-signal.SIGKILL, ProcessLost.exit_code]
    assert lines[1].startswith("error: JAX has ended this process")
    assert time.monotonic() - start < 40


@pytest.mark.parametrize("victim", [0, 1])
def test_asked_to_stop_a_command_that_saves_nothing_ends(tmp_path, victim):
    """JAX catches SIGTERM in a job, for a run that agrees on a step: no other looks."""
    start = time.monotonic()
    statuses, lines = _run(tmp_path, "asked", victim=victim)
    assert statuses == [128 + signal.SIGTERM] * 2
    asked, told = lines[victim], lines[1 - victim]
    assert asked.startswith("asked to stop: ")
    assert f"process {victim} of 2" in told and told.endswith(asked)
    # A job that is restarted elsewhere has nobody to wait for.
    assert not (tmp_path / FILE).exists()
    assert time.monotonic() - start < 40


def test_a_hang_is_given_up(tmp_path):
    statuses, lines = _run(tmp_path, "hang", "--hang_timeout=5")
    assert statuses == [ProcessLost.exit_code] * 2
    assert all("no process has finished a step for 5 s" in line for line in lines)


@pytest.mark.parametrize(("index", "words"), [(0, "not all"), (1, "nothing answers")])
def test_a_process_that_never_comes(tmp_path, index, words):
    joins = _joins(index, free_port())
    job = _start(tmp_path, "none", 1, *joins, "--start_timeout=5")
    output, _ = job.communicate(timeout=90)
    assert job.returncode == ProcessLost.exit_code
    assert _last_line(output).startswith(f"error: {words}")
