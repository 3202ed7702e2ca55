"""Runs of one first stage and one cache, with which jobs of hosts are compared."""

import pytest

from ldm_jax.data.shapes import prepare
from tests.faults import hosts
from tests.faults.jobs import FIRST, SECOND, Job
from tests.faults.peers_job import PeersJob


@pytest.fixture(scope="package")
def needs_hosts():
    """Skips where the machine does not let tests make hosts."""
    if not hosts.possible():
        pytest.skip("needs Linux, root and `ip`")


@pytest.fixture(scope="package")
def make_job(tmp_path_factory):
    """Makes second stages by name, `on` hosts, with changes of the config."""
    folder = tmp_path_factory.mktemp("jobs")
    data, cache = str(folder / "data"), folder / "cache"
    prepare.prepare(data, image_size=32, num_train=64, num_validation=12)
    Job(FIRST, folder / "first", data, cache).run()

    def make(name, on=None, log="log", **changes):
        changes |= {"first_stage.workdir": folder / "first"}
        job = PeersJob(SECOND, folder / name, data, cache, **changes)
        job.hosts, job.log = on, log
        return job

    return make


@pytest.fixture(scope="package")
def whole(make_job):
    """Workdir of a job that was left alone, on this machine."""
    job = make_job("whole")
    job.run_all(1)
    return job.workdir
