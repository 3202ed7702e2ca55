"""Jobs over two hosts of which one is cut off, stands still or loses its power."""

import re
import signal
import time

import pytest

from ldm_jax.errors import ProcessLost, WorkdirInUse
from tests.faults import hosts
from tests.faults.jobs import differences

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("needs_hosts")]


@pytest.fixture
def pair():
    with hosts.network("north", "south") as found:
        yield found


def _await_more_steps(job, seconds=240):
    """Waits until another checkpoint is there and more is being done."""
    before, end = job.steps(), time.monotonic() + seconds
    while job.running() and job.steps() <= before:
        assert time.monotonic() < end, job.printed()
        time.sleep(0.01)
    assert job.running(), job.printed()


@pytest.mark.parametrize("lost", [0, 1])
@pytest.mark.parametrize("fault", ["lose_power", "unplug", "freeze"])
def test_a_host_is_lost_and_the_other_goes_on(make_job, whole, pair, fault, lost):
    job = make_job(f"{fault}_{lost}", pair)
    job.start(2)
    _await_more_steps(job)
    getattr(pair[lost], fault)()
    began = time.monotonic()
    left = job.processes[1 - lost].wait(60)
    assert time.monotonic() - began < 40
    assert left == ProcessLost.exit_code
    printed = job.printed()[1 - lost]
    # Where connections are closed, JAX aborts those whose service is gone.
    aborted = (fault, lost) == ("lose_power", 0) and "JAX has ended" in printed
    said = "it has not answered" if lost == 0 else "it has sent no heartbeat"
    assert aborted or (f"process {lost} of 2" in printed and said in printed)

    # The same command continues where there still is a host.
    back = make_job(f"{fault}_{lost}", [pair[1 - lost]], log="back")
    back.start(1)
    _await_more_steps(back)
    if fault == "freeze":
        pair[lost].thaw()
    assert back.ends() == [0], back.printed()
    assert job.ends(60)[lost] not in (0, None)
    assert not differences(whole, job.workdir)


def test_a_run_that_stood_still_writes_nothing_more(make_job, whole, pair):
    """Taken for dead, it wakes up while another continues in its workdir."""
    north, south = pair
    job = make_job("still", [north])
    job.start(1)
    _await_more_steps(job)
    north.freeze()
    other = make_job("still", [south], log="other")
    other.start(1)
    _await_more_steps(other)
    north.thaw()
    assert other.ends() == [0], other.printed()
    assert job.ends(60) == [WorkdirInUse.exit_code], job.printed()
    assert "was taken by process" in job.printed()[0]
    assert not differences(whole, job.workdir)


def test_a_workdir_is_one_hosts_own(make_job, pair):
    long = {"train.num_steps": 10_000}
    job, other = (make_job("own", [host], log=host.name, **long) for host in pair)
    job.start(1)
    _await_more_steps(job)
    other.start(1)
    assert other.ends(60) == [WorkdirInUse.exit_code]
    (line,) = re.findall("^error: .*", other.printed()[0], re.MULTILINE)
    assert " on north since " in line and "still sends heartbeats" in line
    assert job.running()
    job.send(signal.SIGTERM)
    assert job.ends() == [143]
    # Given back, it is free at once.
    began = time.monotonic()
    other.start(1)
    _await_more_steps(other)
    assert time.monotonic() - began < 60
    other.send(signal.SIGTERM)
    assert other.ends() == [143]
