"""`ldm-encode`, killed or run by two processes, ends in the same bytes, masks too."""

import random
import time

import pytest

from tests.evaluation.test_killed import pair
from tests.runs import command, finish

pytestmark = pytest.mark.slow
MODULE = "ldm_jax.encoding"


def words(shapes_dir, first_stage, outdir, batch_size=2):
    return [
        *("--config=shapes_inpainting:tiny", f"--outdir={outdir}"),
        *("--mirrored", "--shard_size=4", f"--batch_size={batch_size}"),
        f"--config.data.data_dir={shapes_dir}",
        f"--config.first_stage.workdir={first_stage}",
    ]


def files_in(folder):
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_kills_change_no_byte(shapes_dir, first_stage, tmp_path):
    for name in "first", "whole":
        begin = time.monotonic()
        job = command(MODULE, *words(shapes_dir, first_stage, tmp_path / name))
        status, output = finish(job)
        assert status == 0, output
    length, dice = time.monotonic() - begin, random.Random(time.time_ns())
    whole, hits, found, rounds = files_in(tmp_path / "whole"), 0, [], 0
    assert whole == files_in(tmp_path / "first")
    while hits < 3 and rounds < 12:
        rounds += 1
        outdir = tmp_path / f"cut_{rounds - hits}"
        job = command(MODULE, *words(shapes_dir, first_stage, outdir))
        time.sleep(dice.uniform(0.5, 1.0) * length)
        if job.poll() is None:
            job.kill()
            hits += 1
            found.append(len(list(outdir.rglob("*.array_record"))))
        finish(job)
    assert hits == 3 and any(found), (hits, found)
    for outdir in tmp_path.glob("cut_*"):
        job = command(MODULE, *words(shapes_dir, first_stage, outdir))
        status, output = finish(job)
        assert status == 0, output
        assert files_in(outdir) == whole


def test_two_processes_write_what_one_does(shapes_dir, first_stage, tmp_path):
    one = words(shapes_dir, first_stage, tmp_path / "one")
    status, output = finish(command(MODULE, *one, devices=2))
    assert status == 0, output
    pair(MODULE, *words(shapes_dir, first_stage, tmp_path / "two"))
    assert files_in(tmp_path / "one") == files_in(tmp_path / "two")
