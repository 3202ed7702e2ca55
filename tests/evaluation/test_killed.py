"""Evaluations that are killed, or run by two processes, end in the same number."""

import json
import random
import time

import numpy as np
import pytest

from ldm_jax.images import read_image
from tests.processes import free_port
from tests.runs import command, finish, finish_all

pytestmark = pytest.mark.slow
NAME = "random-features distance (frechet)"

# One process of four devices and two of two draw the same samples on the same mesh, but
# for a pixel in 100,000 that is rounded to the other of two bytes: by that distances of
# sets differ by 4e-6 of themselves, those of single images by 1e-7.
CLOSE = {"rel": 2e-5}


def words(workdir, outdir, *more):
    """Arguments of an evaluation."""
    arguments = [f"--workdir={workdir}", f"--outdir={outdir}", "--distances=frechet"]
    return [*arguments, "--num_samples=240", "--batch_size=8", "--save_every=16", *more]


def start(workdir, outdir, *more, devices=2):
    return command(
        "ldm_jax.evaluation", *words(workdir, outdir, *more), devices=devices
    )


def value_in(outdir):
    return json.loads((outdir / "metrics.json").read_text())["metrics"][NAME]


def test_an_evaluation_that_is_killed_three_times(second_stage, tmp_path):
    # The first run fills the compiler's cache, the second says how long it takes.
    for name in "first", "whole":
        begin = time.monotonic()
        status, output = finish(start(second_stage, tmp_path / name, "--npz"))
        assert status == 0, output
    length, state = time.monotonic() - begin, "evaluation.partial.npz"
    dice, hits, found, rounds = random.Random(time.time_ns()), 0, [], 0
    while hits < 3 and rounds < 12:
        rounds += 1
        job = start(second_stage, tmp_path / "cut", "--npz")
        time.sleep(dice.uniform(0.5, 1.0) * length)
        if job.poll() is None:
            job.kill()
            hits += 1
            found.append((tmp_path / "cut" / state).exists())
        finish(job)
        if (tmp_path / "cut" / "metrics.json").exists():
            # It was through: another one is begun.
            assert value_in(tmp_path / "cut") == value_in(tmp_path / "whole")
            for path in (tmp_path / "cut").iterdir():
                path.unlink()
    assert hits == 3 and any(found), (hits, found)
    status, output = finish(start(second_stage, tmp_path / "cut", "--npz"))
    assert status == 0, output
    assert value_in(tmp_path / "cut") == value_in(tmp_path / "whole")
    same = [(tmp_path / n / "samples.npz").read_bytes() for n in ("cut", "whole")]
    # Beyond the dates that a zip records.
    assert len(same[0]) == len(same[1])


def pair(module, *arguments):
    """Runs a command in two processes of two devices."""
    job = (f"--coordinator=127.0.0.1:{free_port()}", "--num_processes=2")
    jobs = [
        command(module, *arguments, *job, f"--process_id={index}", devices=2)
        for index in range(2)
    ]
    finish_all(jobs)


def test_two_processes_sweep_and_search_as_one(second_stage, tmp_path):
    sweep = (f"--workdir={second_stage}", "--distances=frechet", "--batch_size=8")
    sweep += ("--num_samples=20", "--num_steps=2", "--guidance_scale=1,3")
    alone = [*sweep, f"--outdir={tmp_path / 'one'}"]
    status, output = finish(command("ldm_jax.evaluation.sweep", *alone, devices=4))
    assert status == 0, output
    pair("ldm_jax.evaluation.sweep", *sweep, f"--outdir={tmp_path / 'two'}")
    found = [
        json.loads((tmp_path / name / "sweep.json").read_text())["rows"]
        for name in ("one", "two")
    ]
    for row, other in zip(*found, strict=True):
        assert other["metrics"][NAME] == pytest.approx(row["metrics"][NAME], **CLOSE)
    search = (f"--workdir={second_stage}", "--network=random", "--batch_size=8")
    search += ("--num_samples=6", "--num_steps=2", "--num_neighbours=2")
    alone = [*search, f"--outdir={tmp_path / 'one'}"]
    status, output = finish(command("ldm_jax.evaluation.nearest", *alone, devices=4))
    assert status == 0, output
    pair("ldm_jax.evaluation.nearest", *search, f"--outdir={tmp_path / 'two'}")
    records = [
        json.loads((tmp_path / name / "neighbours.json").read_text())
        for name in ("one", "two")
    ]
    assert records[1]["threshold"] == pytest.approx(records[0]["threshold"], **CLOSE)
    for sample, other in zip(*(each["samples"] for each in records), strict=True):
        nearest, others = sample["neighbours"][0], other["neighbours"][0]
        assert others["distance"] == pytest.approx(nearest["distance"], **CLOSE)
    assert read_image(tmp_path / "two" / "neighbours.png").std() > 10


def test_two_processes_measure_as_one(second_stage, tmp_path):
    more = ("--num_samples=40", "--npz")
    status, output = finish(start(second_stage, tmp_path / "one", *more, devices=4))
    assert status == 0, output
    pair("ldm_jax.evaluation", *words(second_stage, tmp_path / "two", *more))
    expected = pytest.approx(value_in(tmp_path / "one"), **CLOSE)
    assert value_in(tmp_path / "two") == expected
    drawn = []
    for name in ("one", "two"):
        with np.load(tmp_path / name / "samples.npz") as kept:
            drawn.append(kept["arr_0"].astype(int))
    different = drawn[0] != drawn[1]
    assert abs(drawn[0] - drawn[1]).max() <= 1 and different.mean() < 1e-4
