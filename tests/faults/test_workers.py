"""A run whose data worker is killed, as by the system where memory runs out."""

import os
import pathlib
import signal
import time

import pytest

from ldm_jax.checkpoint import checkpoint_folder
from ldm_jax.errors import ProcessLost
from tests.faults.jobs import FIRST, Job
from tests.runs import assert_same_bits, weights_of

pytestmark = pytest.mark.slow

# Beyond what workers read ahead.
STAGE = (
    FIRST[0],
    {
        "train.num_steps": 150,
        "train.checkpoint_every": 10,
        "train.log_every": 50,
        "train.preview_images": 0,
        "data.eval_split": "",
        "data.workers": 2,
    },
)


@pytest.fixture(scope="module")
def job(shapes_dir, tmp_path_factory):
    """Makes jobs of the same run; the cache of what is compiled is theirs."""
    folder = tmp_path_factory.mktemp("workers")

    def make(name, **changes):
        return Job(STAGE, folder / name, shapes_dir, folder / "cache", **changes)

    return make


@pytest.fixture(scope="module")
def whole(job):
    """The weights of a run that was left alone."""
    alone = job("whole")
    alone.run()
    return weights_of(alone.workdir)


def _kill_a_worker(job):
    """Kills a worker once there is a checkpoint; returns (status, output)."""
    job.start()
    while job.running() and "10" not in job.steps():
        time.sleep(0.05)
    os.kill(_worker(job.pid), signal.SIGKILL)
    return job.end()


def _worker(process):
    for path in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            parent = path.joinpath("stat").read_text().rpartition(")")[2].split()[1]
            if (
                int(parent) == process
                and b"spawn_main" in (path / "cmdline").read_bytes()
            ):
                return int(path.name)
        except OSError:
            continue
    raise AssertionError("the run has no worker")


def test_the_step_is_saved_and_the_same_command_goes_on(job, whole):
    cut = job("cut")
    status, output = _kill_a_worker(cut)
    assert status == ProcessLost.exit_code, output
    step = int(checkpoint_folder(cut.workdir).name)
    last = output.splitlines()[-1]
    assert last.startswith("error: a data worker was killed by SIGKILL")
    assert "data.restart_workers" in last and f"step {step} is saved" in last
    assert "Traceback" not in output
    cut.run()
    assert_same_bits(whole, weights_of(cut.workdir))


def test_workers_are_started_anew(job, whole):
    cut = job("again", **{"data.restart_workers": 1})
    status, output = _kill_a_worker(cut)
    assert status == 0, output
    assert "the workers are restarted" in output
    assert_same_bits(whole, weights_of(cut.workdir))
