"""The planner's bytes against XLA's compiler for an H100, on small networks."""

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


@pytest.mark.slow
@pytest.mark.skipif(not _has_compiler(), reason="needs jax-cuda12-pjrt, but no GPU")
@pytest.mark.parametrize(("name", "data", "fsdp"), CASES)
def test_bytes_are_those_of_the_compiled_step(name, data, fsdp):
    # In a process of its own: the flags of the compiler are read once.
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    found = subprocess.run(
        [
            *(sys.executable, "-m", "benchmarks.planner", name),
            *(f"--data={data}", f"--fsdp={fsdp}"),
        ],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert found.returncode == 0, found.stderr[-2000:]
    row = json.loads(found.stdout.splitlines()[-1])
    assert row["ratio"] == pytest.approx(1, abs=0.1), row
    # What a run holds and the step does not read are frozen weights.
    assert -1024 < row["arguments_unread"] < 250e6, row
