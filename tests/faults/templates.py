"""The templates of docs/launch with a tiny run in place of theirs."""

import os
import pathlib
import re
import shlex
import sys

import yaml

from tests.faults.jobs import ROOT

_FOLDER = ROOT / "docs" / "launch"

# The run of a template, over several lines.
_RUN = re.compile(r"--config=\S+\s+(\\\n\s+)?--workdir=\S+\s+(\\\n\s+)?--config\.\S+")


def environment(job, **more):
    """Environment in which `python train.py` is that of the tests."""
    path = f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"
    return job.environment() | {"PATH": path} | more


def slurm_script(job, nodes):
    """Text of the script, for so many nodes of one process each."""
    changes = {
        "--nodes=4": f"--nodes={nodes}",
        "--ntasks-per-node=8": "--ntasks-per-node=1",
        "--gpus-per-node=8": "--gpus-per-node=1",
        "--cpus-per-task=12": "--cpus-per-task=1",
    }
    text = _with_run((_FOLDER / "slurm.sh").read_text(), job)
    for old, new in changes.items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


def skypilot_line(job):
    """The shell's line that SkyPilot runs on each host."""
    return _with_run(_read("skypilot.yaml")["run"], job)


def gpu_jobset_command(job, count, index):
    """Words that the pod of an index runs, of so many."""
    (jobs,) = _read("gpu_jobset.yaml")["spec"]["replicatedJobs"]
    (container,) = jobs["template"]["spec"]["template"]["spec"]["containers"]
    line = _with_run(shlex.join(container["command"]), job)
    assert line.count("--num_processes=4") == 1
    line = line.replace("--num_processes=4", f"--num_processes={count}")
    # As Kubernetes fills them in.
    return [w.replace("$(JOB_COMPLETION_INDEX)", str(index)) for w in shlex.split(line)]


def _read(name):
    return yaml.safe_load((_FOLDER / name).read_text())


def _with_run(text, job):
    arguments = shlex.join(job.command()[2:])
    text, count = _RUN.subn(lambda match: arguments, text)
    assert count == 1
    return text
