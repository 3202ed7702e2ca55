"""The templates of docs/launch: their form, and that they start commands that parse."""

import json
import re
import shlex
import signal
import subprocess
import sys

import pytest
import yaml

from ldm_jax import errors
from tests.docs_commands import ROOT
from tests.test_docs_commands import CHECK

FOLDER = ROOT / "docs" / "launch"
FILES = sorted(FOLDER.iterdir())
JOBSETS = sorted(FOLDER.glob("*_jobset.yaml"))


def jobs_of(path):
    return yaml.safe_load(path.read_text())["spec"]["replicatedJobs"]


def command_of(path):
    """Words of the training command that a template starts, with values filled in."""
    if path in JOBSETS:
        (job,) = jobs_of(path)
        (container,) = job["template"]["spec"]["template"]["spec"]["containers"]
        words = container["command"]
    else:
        text = path.read_text().replace("\\\n", " ")
        (line,) = re.findall(r"^.*(python train.py .*)$", text, flags=re.M)
        line = re.sub(r'"\$\(echo .*?\):', '"host:', line)
        words = shlex.split(line)
    assert words[:2] == ["python", "train.py"]
    return [re.sub(r"\$\(?\w+\)?", "4", word) for word in words[2:]]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_the_command_parses(path):
    words = command_of(path)
    # An index is below the count, whatever the variables say.
    words = [re.sub(r"^--process_id=.*", "--process_id=0", word) for word in words]
    if "--distributed" not in words:
        given = {word.partition("=")[0] for word in words}
        assert given >= {"--coordinator", "--num_processes", "--process_id"}
    result = subprocess.run(
        [sys.executable, "-c", CHECK],
        input=json.dumps(["ldm_jax.training.__main__", [words]]),
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0 and not result.stdout, result.stdout + result.stderr


@pytest.mark.parametrize("path", JOBSETS, ids=lambda path: path.name)
def test_a_jobset_starts_again_what_may_go_on(path):
    """And nothing else: faults that the same command would meet again end it."""
    (job,) = jobs_of(path)
    spec = job["template"]["spec"]
    (rule,) = spec["podFailurePolicy"]["rules"]
    final = {
        kind.exit_code
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.UserError)
        if kind not in (errors.UserError, errors.Stopped)
        # The same command continues.
        if kind not in (errors.ProcessLost, errors.Unreachable)
    }
    # Memory may have been short for other reasons, and no conversion is started here.
    final -= {errors.OutOfMemory.exit_code, errors.LeftOut.exit_code, 1}
    assert rule == {
        "action": "FailJob",
        "onExitCodes": {"operator": "In", "values": sorted(final)},
    }
    assert spec["template"]["spec"]["restartPolicy"] == "Never"
    assert spec["completions"] == spec["parallelism"]
    assert spec["backoffLimit"] == 0


def test_all_start_again_after_the_same_statuses():
    """Those of `docs/pods.md`: killed by the machine or by JAX, asked to stop, lost."""
    again = {errors.ProcessLost.exit_code, errors.Unreachable.exit_code}
    again |= {128 + signal.SIGABRT, 128 + signal.SIGKILL, 128 + signal.SIGTERM}
    pods = (ROOT / "docs" / "pods.md").read_text()
    (xpk,) = re.findall(r"--restart-on-exit-codes=([\d,]+)", pods)
    assert set(map(int, xpk.split(","))) == again
    (said,) = re.findall(r"^So (.*) mean \"start the same command", pods, re.MULTILINE)
    assert set(map(int, re.findall(r"\d+", said))) == again
    (case,) = re.findall(r"^ *([\d| ]+)\)", (FOLDER / "slurm.sh").read_text(), re.M)
    assert set(map(int, case.split("|"))) == again
    sky = yaml.safe_load((FOLDER / "skypilot.yaml").read_text())
    recovery = sky["resources"]["job_recovery"]
    assert recovery == {"recover_on_exit_codes": sorted(again)}


def test_the_script_of_slurm_is_sound():
    subprocess.run(["bash", "-n", str(FOLDER / "slurm.sh")], check=True)
