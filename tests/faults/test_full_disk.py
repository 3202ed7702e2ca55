"""A run whose disk fills up: what is kept, and how it continues."""

import resource
import signal
import time

import pytest

from ldm_jax.checkpoint import checkpoint_folder
from ldm_jax.errors import CheckpointError, DiskError
from tests.faults.lost_processes import PeersJob
from tests.runs import assert_same_bits, command, finish, weights_of

pytestmark = pytest.mark.slow

STEPS = 24


def _start(workdir, shapes_dir, *more):
    return command(
        "train.py",
        "--config=configs/shapes_autoencoder.py:tiny",
        f"--workdir={workdir}",
        f"--config.data.data_dir={shapes_dir}",
        f"--config.train.num_steps={STEPS}",
        "--config.train.checkpoint_every=3",
        "--config.train.log_every=1",
        "--config.train.preview_images=0",
        "--config.data.eval_split=",
        *more,
    )


@pytest.fixture(scope="module")
def whole(shapes_dir, tmp_path_factory):
    """The weights of a run that was left alone."""
    workdir = tmp_path_factory.mktemp("whole")
    status, output = finish(_start(workdir, shapes_dir))
    assert status == 0, output
    return weights_of(workdir)


def _wait_for_step(workdir, step, running=lambda: True):
    end = time.monotonic() + 200
    while running() and time.monotonic() < end:
        try:
            if int(checkpoint_folder(workdir).name) >= step:
                return
        except CheckpointError:
            pass
        time.sleep(0.02)
    raise AssertionError(f"no checkpoint of step {step}")


def _goes_on(workdir, shapes_dir, whole, *more):
    status, output = finish(_start(workdir, shapes_dir, *more))
    assert status == 0, output
    assert_same_bits(whole, weights_of(workdir))


def test_a_full_disk(whole, shapes_dir, tmp_path):
    process = _start(tmp_path / "run", shapes_dir)
    _wait_for_step(tmp_path / "run", 3)
    # From here on a file has room for a thousand bytes.
    limits = 1000, resource.RLIM_INFINITY
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, limits)
    status, output = finish(process)
    assert status == DiskError.exit_code, output
    assert "Traceback" not in output, output
    last = output.splitlines()[-1]
    kept = int(checkpoint_folder(tmp_path / "run").name)
    assert last.startswith("error: cannot write a checkpoint in ")
    assert f"File too large; the checkpoint of step {kept} is intact" in last
    _goes_on(tmp_path / "run", shapes_dir, whole)


@pytest.mark.parametrize("full", [0, 1])
def test_a_full_disk_of_one_process_of_two(full, shapes_dir, tmp_path):
    stage = (
        "shapes_autoencoder:tiny",
        {
            "train.num_steps": 400,
            "train.checkpoint_every": 20,
            "train.preview_images": 0,
            "data.eval_split": "",
        },
    )
    job = PeersJob(stage, tmp_path / "run", shapes_dir, tmp_path / "cache")
    job.start(count=2)
    _wait_for_step(job.workdir, 20, job.running)
    limits = 1000, resource.RLIM_INFINITY
    resource.prlimit(job.processes[full].pid, resource.RLIMIT_FSIZE, limits)
    start = time.monotonic()
    statuses = [process.wait(120) for process in job.processes]
    # The next checkpoint begins within a few seconds.
    assert time.monotonic() - start < 60
    assert statuses == [DiskError.exit_code] * 2
    # Its own log is of a file that cannot grow either.
    log = job.logs[1 - full].read_text(errors="replace")
    assert "Traceback" not in log, log
    (line,) = (line for line in log.splitlines() if line.startswith("error: "))
    kept = int(checkpoint_folder(job.workdir).name)
    assert line.startswith(f"error: process {full} of 2 on ")
    assert " failed: cannot write a checkpoint in " in line
    assert f"File too large; the checkpoint of step {kept} is intact" in line
    # The same command continues.
    job.start()
    _wait_for_step(job.workdir, kept + 20, job.running)
    job.send(signal.SIGTERM)
    status, output = job.end()
    assert status == 143, output
