"""The log of a run: lines past a checkpoint, lines cut by a kill, full disks."""

import json

import numpy as np
import pytest

from ldm_jax.training.writer import Writer


def steps(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["step"] for line in lines]


def test_a_log_that_cannot_be_written_ends_no_run(tmp_path, caplog):
    # Where its folder should be there is a file.
    (tmp_path / "tensorboard").touch()
    writer = Writer(tmp_path, {})
    writer.scalars(1, {"loss": 1.0})
    whole = (tmp_path / "metrics.jsonl").read_bytes()
    (tmp_path / "metrics.jsonl").unlink()
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    (tmp_path / "previews").touch()
    for step in range(2, 40):
        writer.scalars(step, {"loss": 1.0})
    writer.images(39, {"samples": np.zeros((1, 8, 8, 3), np.float32)})
    assert caplog.text.count("metrics.jsonl: No space left on device; training") == 1
    assert caplog.text.count("no previews of step 39, training continues") == 1
    (tmp_path / "metrics.jsonl").unlink()
    (tmp_path / "metrics.jsonl").write_bytes(whole)
    writer.scalars(40, {"loss": 1.0})
    assert "metrics.jsonl is written again" in caplog.text
    assert steps(tmp_path) == list(range(1, 41))
    writer.close()
    assert f"the end of {tmp_path}/tensorboard/events" in caplog.text


@pytest.mark.parametrize(
    "cut", ["", '{"step": 3, "lo', '{"step": 4, "loss": 1}', "x\n"]
)
def test_lines_past_the_checkpoint_and_cut_ones_go(tmp_path, cut):
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        '{"step": 1, "a": 2}\n{"step": 2, "eval/a": 2}\n{"step": 3}\n' + cut
    )
    node = path.stat().st_ino
    writer = Writer(tmp_path, {}, start_step=2)
    held_out = "eval/a".__eq__
    assert writer.has_scalars(2, held_out) and not writer.has_scalars(1, held_out)
    writer.scalars(3, {"loss": 1.0})
    writer.close()
    assert steps(tmp_path) == [1, 2, 3]
    # In place: a full disk has no room for a second file.
    assert path.stat().st_ino == node


def test_a_line_cut_in_the_middle_of_a_log_goes(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"st{"step": 2}\n{"step": 2}\n')
    Writer(tmp_path, {}, start_step=2).close()
    assert steps(tmp_path) == [1, 2]
