"""What the templates for Kubernetes and SkyPilot run, on two hosts."""

import subprocess

import pytest

from tests.faults import hosts
from tests.faults.jobs import ROOT, differences
from tests.faults.templates import environment, gpu_jobset_command, skypilot_line

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("needs_hosts")]


def _run_all(job, names, command_of, **variables):
    """Runs a command on each host to its good end; returns what they printed."""
    with hosts.network(*names) as pair:
        started = [
            host.start(
                command_of(index),
                env=environment(job, SKYPILOT_NODE_RANK=str(index), **variables),
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for index, host in enumerate(pair)
        ]
        printed = [process.communicate(timeout=400)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0], printed


def test_the_pods_of_a_jobset(make_job, whole):
    job = make_job("jobset")
    # As JobSet names its pods.
    names = ("ldm-hosts-0-0.ldm", "ldm-hosts-0-1.ldm")
    _run_all(job, names, lambda index: gpu_jobset_command(job, len(names), index))
    assert not differences(whole, job.workdir)


def test_the_hosts_of_skypilot(make_job, whole):
    job = make_job("skypilot")
    variables = {"SKYPILOT_NODE_IPS": "north\nsouth", "SKYPILOT_NUM_NODES": "2"}
    command = ["bash", "-c", skypilot_line(job)]
    _run_all(job, ("north", "south"), lambda index: command, **variables)
    assert not differences(whole, job.workdir)
