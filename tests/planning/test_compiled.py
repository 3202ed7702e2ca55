"""What XLA's compiler for an H100 makes of steps, and the planner's bytes beside it."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent.parent
# Name of a case, and devices along `data` and `fsdp`.
CASES = [
    *((name, 1, 1) for name in ("unconditional", "ldm4", "ldm8", "sd1", "kl_f8")),
    ("unconditional", 2, 1),
    ("ldm4", 1, 2),
    ("kl_f8", 2, 2),
    ("ldm8", 2, 4),
]


def _has_compiler():
    try:
        return importlib.util.find_spec("jax_plugins.xla_cuda12") is not None
    except ModuleNotFoundError:
        return False


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not _has_compiler(), reason="needs jax-cuda12-pjrt, but no GPU"),
]


@pytest.mark.parametrize(("name", "data", "fsdp"), CASES)
def test_bytes_are_those_of_the_compiled_step(name, data, fsdp):
    row = _run("planner", name, f"--data={data}", f"--fsdp={fsdp}")
    assert row["ratio"] == pytest.approx(1, abs=0.1), row
    # What a run holds and the step does not read are frozen weights.
    assert -1024 < row["arguments_unread"] < 250e6, row


def test_stable_diffusion_is_split_over_eight():
    """As it is published: smaller ones compiled where this one was refused."""
    row = _run("moved_bytes", "sd1", "--full", "--fsdp=8")
    # Kernels are gathered and their gradients summed in parts; of activations nothing
    # is sent, but sums of them.
    assert set(row["sent"]) == {"all-gather", "reduce-scatter", "all-reduce"}, row
    kernels = 860e6 * 2 / 1e9
    assert row["sent"]["all-gather"][0] == pytest.approx(kernels, rel=0.05), row
    assert row["sent"]["reduce-scatter"][0] == pytest.approx(kernels, rel=0.05), row
    assert row["sent"]["all-reduce"][0] < 0.05, row


def _run(benchmark, *arguments):
    """The last row that a benchmark prints."""
    # In a process of its own: the flags of the compiler are read once.
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    found = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{benchmark}", *arguments],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert found.returncode == 0, found.stderr[-2000:]
    return json.loads(found.stdout.splitlines()[-1])
