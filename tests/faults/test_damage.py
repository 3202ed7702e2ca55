"""A run whose newest checkpoint was damaged: the command that is printed leads back."""

import re
import shlex
import subprocess

import pytest

from ldm_jax.checkpoint import checkpoint_folder
from tests.processes import free_port
from tests.runs import assert_same_bits, command, finish, weights_of

pytestmark = pytest.mark.slow


def _start(workdir, shapes_dir, num_steps, *more):
    return command(
        "train.py",
        "--config=configs/shapes_autoencoder.py:tiny",
        f"--workdir={workdir}",
        f"--config.data.data_dir={shapes_dir}",
        f"--config.train.num_steps={num_steps}",
        "--config.train.checkpoint_every=2",
        "--config.train.keep_last=4",
        "--config.train.preview_images=0",
        "--config.data.eval_split=",
        *more,
    )


def _flip(workdir):
    """Flips a bit of the weights in the newest checkpoint; returns its step."""
    folder = checkpoint_folder(workdir)
    path = max(folder.glob("params/*/d/*"), key=lambda path: path.stat().st_size)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 16
    path.write_bytes(data)
    return int(folder.name)


def _error(output):
    return re.search(r"error: (.*)", output)[1]


def test_the_printed_command_leads_to_the_same_end(shapes_dir, tmp_path):
    whole, workdir = tmp_path / "whole", tmp_path / "a run"
    for place, steps in ((whole, 8), (workdir, 6)):
        status, output = finish(_start(place, shapes_dir, steps))
        assert status == 0, output
    assert _flip(workdir) == 6
    evaluate = ["ldm_jax.evaluation", f"--workdir={workdir}", f"--outdir={tmp_path}"]
    for start in (
        lambda: _start(workdir, shapes_dir, 8),
        lambda: command(*evaluate, "--noema"),
        lambda: command("ldm_jax.convert", workdir, tmp_path / "out.safetensors"),
    ):
        status, output = finish(start())
        assert status == 4 and "Traceback" not in output, output
        assert "is not what was saved; step 4 is intact" in _error(output)
    advice = re.search(r"same command again: (mkdir .*)", _error(output))[1]
    assert shlex.quote(str(workdir / "checkpoints" / "6")) in advice
    subprocess.run(advice, shell=True, check=True)
    status, output = finish(_start(workdir, shapes_dir, 8))
    assert status == 0 and "resuming at step 4 of 8" in output, output
    assert_same_bits(weights_of(workdir), weights_of(whole))


def test_two_processes_say_it_both_and_go_back_together(shapes_dir, tmp_path):
    def run(num_steps):
        port = free_port()
        job = (f"--coordinator=127.0.0.1:{port}", "--num_processes=2")
        options = ("--config.train.mesh.fsdp=2", *job)
        jobs = [
            _start(tmp_path, shapes_dir, num_steps, *options, f"--process_id={index}")
            for index in range(2)
        ]
        return [finish(job) for job in jobs]

    for status, output in run(4):
        assert status == 0, output
    assert _flip(tmp_path) == 4
    ends = run(6)
    for status, output in ends:
        assert status == 4, output
        assert "is not what was saved; step 2 is intact" in _error(output), output
    advice = re.search(r"same command again: (mkdir .*)", _error(ends[0][1]))[1]
    subprocess.run(advice, shell=True, check=True)
    for status, output in run(6):
        assert status == 0, output
    assert int(checkpoint_folder(tmp_path).name) == 6
