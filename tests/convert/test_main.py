"""The command line, and training that starts from what it wrote."""

import functools
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from ldm_jax import checkpoint
from ldm_jax.convert.formats import convert
from ldm_jax.errors import CheckpointError
from ldm_jax.weights.files import read_weights
from tests.common import load_case
from tests.convert.published_files import assert_same, write_compvis
from tests.runs import ROOT, train


def command(*arguments):
    """Runs python -m ldm_jax.convert; returns (exit status, what it printed)."""
    done = subprocess.run(
        [sys.executable, "-m", "ldm_jax.convert", *map(str, arguments)],
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=240,
    )
    return done.returncode, done.stdout


def test_command_converts_there_and_back(tmp_path):
    case = load_case("checkpoint_class_vq")
    file, yaml = write_compvis(tmp_path, case)
    status, output = command(file, tmp_path / "ours", f"--config={yaml}")
    assert status == 0, output
    assert "backbone: 976,675 parameters, with moving average" in output
    assert "autoencoder: 654,942 parameters" in output
    status, output = command(tmp_path / "ours", tmp_path / "back.safetensors")
    assert status == 0, output
    back = read_weights(tmp_path / "back.safetensors").tensors
    assert_same(back, case.state_dict)


def test_command_fails_in_one_line(tmp_path):
    (tmp_path / "hostile.ckpt").write_bytes(b"cos\nsystem\n(S'touch HACKED'\ntR.")
    status, output = command(tmp_path / "hostile.ckpt", tmp_path / "ours")
    error = output.strip().splitlines()[-1]
    assert status == 2 and error.startswith("error: ") and "os.system" in error
    assert "Traceback" not in output
    status, output = command(tmp_path / "hostile.ckpt")
    assert status == 2 and "give a source and a target" in output


# Conversions and `init_from` are tested apart; this takes both end to end.
@pytest.mark.slow
def test_training_starts_from_converted_weights(
    shapes_dir, first_stage, second_stage, tmp_path
):
    """A run goes through diffusers' format and is trained on, by steps of nothing."""
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    convert(second_stage, theirs, log=print)
    convert(theirs, ours, log=print)
    _, before, _ = checkpoint.load_weights(second_stage)
    options = dict(train__num_steps=1, train__learning_rate=1e-12)
    where = dict(first_stage__workdir=str(ours / "first_stage"))
    start = dict(train__init_from=str(ours))
    train("shapes_class", shapes_dir, tmp_path / "run", **options, **where, **start)
    _, after, _ = checkpoint.load_weights(tmp_path / "run", average=False)
    same = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-9)
    jax.tree.map(same, after, before)
    with pytest.raises(CheckpointError, match="holds a converted model"):
        train("shapes_class", shapes_dir, ours, **options, **where)
