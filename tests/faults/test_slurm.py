"""The template for Slurm, started on a cluster of two hosts that is hit."""

import re
import time

import pytest

from ldm_jax.errors import ConfigError
from tests.faults import hosts, slurm
from tests.faults.jobs import differences
from tests.faults.templates import environment, slurm_script

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("needs_hosts"),
    pytest.mark.skipif(not slurm.possible(), reason="needs Slurm and munge"),
]


@pytest.fixture
def cluster(tmp_path):
    with (
        hosts.network("head", "north", "south") as (head, *nodes),
        slurm.Cluster(tmp_path / "slurm", head, nodes) as found,
    ):
        yield found


class Queued:
    """A job that was handed to a cluster by the template, for two hosts."""

    def __init__(self, cluster, job, folder):
        self._cluster, self._job = cluster, job
        script = folder / "slurm.sh"
        script.write_text(slurm_script(job, nodes=2))
        self.log = folder / "log"
        words = ["sbatch", "--parsable", f"--output={self.log}", str(script)]
        self.number = cluster.run(*words, **environment(job))

    def await_state(self, *states, seconds=300):
        """Waits for a state; returns how often it was queued again."""
        show = "scontrol", "show", "job", self.number
        end = time.monotonic() + seconds
        while True:
            shown = self._cluster.run(*show)
            if re.search(r"JobState=(\w+)", shown)[1] in states:
                return int(re.search(r"Restarts=(\d+)", shown)[1])
            assert time.monotonic() < end, f"{shown}\n{self.printed()}"
            time.sleep(0.5)

    def await_step(self, seconds=240):
        """Waits until a checkpoint has been written and more is being done."""
        end = time.monotonic() + seconds
        while not self._job.steps():
            assert time.monotonic() < end, self.printed()
            time.sleep(0.05)

    def printed(self):
        """What its processes printed."""
        return self.log.read_text() if self.log.exists() else ""


def test_it_trains_over_two_hosts(cluster, make_job, whole, tmp_path):
    job = make_job("alone")
    queued = Queued(cluster, job, tmp_path)
    assert queued.await_state("COMPLETED", "FAILED") == 0, queued.printed()
    assert not differences(whole, job.workdir), queued.printed()


def _ask(cluster, queued):
    cluster.run("scancel", "--signal=TERM", queued.number)


def _kill(cluster, queued):
    cluster.nodes[1].run("pkill -KILL -f [t]rain.py")


@pytest.mark.parametrize("hit", [_ask, _kill])
def test_it_is_queued_again(cluster, make_job, whole, tmp_path, hit):
    job = make_job(hit.__name__)
    queued = Queued(cluster, job, tmp_path)
    queued.await_step()
    hit(cluster, queued)
    assert queued.await_state("COMPLETED", "FAILED") == 1, queued.printed()
    assert not differences(whole, job.workdir), queued.printed()
    assert "resuming at step" in queued.printed()


@pytest.mark.parametrize("lost", [0, 1])
def test_it_goes_on_after_a_node_was_lost(cluster, make_job, whole, tmp_path, lost):
    """The node that is lost may be the one on which the script runs."""
    job = make_job(f"lost_{lost}")
    queued = Queued(cluster, job, tmp_path)
    queued.await_step()
    node = cluster.nodes[lost]
    node.lose_power()
    queued.await_state("PENDING")
    node.restart()
    cluster.start_node(node)
    assert queued.await_state("COMPLETED", "FAILED") >= 1, queued.printed()
    assert not differences(whole, job.workdir), queued.printed()
    assert "resuming at step" in queued.printed()


def test_what_the_same_command_would_meet_again_ends(cluster, make_job, tmp_path):
    job = make_job("wrong", **{"train.batch_size": 7})
    queued = Queued(cluster, job, tmp_path)
    assert queued.await_state("COMPLETED", "FAILED") == 0
    assert "error: " in queued.printed()
    shown = cluster.run("scontrol", "show", "job", queued.number)
    assert f"ExitCode={ConfigError.exit_code}:0" in shown
