"""Two commands with one folder of output: the second ends in a line, all of its job."""

import json

import pytest

from ldm_jax.errors import WorkdirInUse
from ldm_jax.lock import FILE, hold
from tests.processes import free_port
from tests.runs import command, finish

pytestmark = pytest.mark.slow

DRAWN = ("--num_samples=8", "--batch_size=8")

# Module of a command -> what it is told beside its folders.
COMMANDS = {
    "ldm_jax.sampling": (*DRAWN, "--num_steps=2"),
    "ldm_jax.evaluation": (*DRAWN, "--distances=frechet"),
    "ldm_jax.evaluation.sweep": (*DRAWN, "--distances=frechet", "--num_steps=2"),
    "ldm_jax.evaluation.make_reference": ("--distances=frechet", "--num_images=8"),
}


def _job(module, *arguments):
    """Runs a command in two processes; returns what each of them ends with."""
    address = (f"--coordinator=127.0.0.1:{free_port()}", "--num_processes=2")
    jobs = [
        command(module, *arguments, *address, f"--process_id={index}")
        for index in range(2)
    ]
    return [finish(job) for job in jobs]


@pytest.mark.parametrize("module", COMMANDS)
def test_a_folder_that_is_held(module, second_stage, tmp_path):
    words = f"--workdir={second_stage}", f"--outdir={tmp_path}", *COMMANDS[module]
    with hold(tmp_path):
        ended = _job(module, *words)
        for status, output in ended:
            assert status == WorkdirInUse.exit_code, output
            assert "Traceback" not in output
        assert f"{tmp_path} is in use by process" in ended[0][1]
        assert [path.name for path in tmp_path.iterdir()] == [FILE]
    _goes_on_after_a_minute(tmp_path, module, *words)


def test_a_workdir_that_a_killed_run_has_left(first_stage, shapes_dir, tmp_path):
    words = (
        *("--config=shapes_class:tiny", f"--workdir={tmp_path}"),
        f"--config.data.data_dir={shapes_dir}",
        f"--config.first_stage.workdir={first_stage}",
        "--config.train.num_steps=2",
    )
    _goes_on_after_a_minute(tmp_path, "ldm_jax.training", *words)


def _goes_on_after_a_minute(folder, module, *arguments):
    """Runs a command where one was killed on another host."""
    with hold(folder):
        record = json.loads((folder / FILE).read_text())
    (folder / FILE).write_text(json.dumps(record | {"machine": "another"}))
    ended = _job(module, *arguments)
    assert [status for status, _ in ended] == [0, 0], ended
    assert "is taken for dead" in ended[0][1]
    assert not (folder / FILE).exists()
