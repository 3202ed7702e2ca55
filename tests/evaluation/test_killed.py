"""Evaluations that are killed, or run by two processes, end in the same number."""

import json
import random
import socket
import time

import pytest

from tests.runs import command, finish

pytestmark = pytest.mark.slow
NAME = "random-features distance (frechet)"


def start(workdir, outdir, *more, devices=2):
    arguments = [f"--workdir={workdir}", f"--outdir={outdir}", "--distances=frechet"]
    arguments += ["--num_samples=240", "--batch_size=8", "--save_every=16", *more]
    return command("ldm_jax.evaluation", *arguments, devices=devices)


def value_in(outdir):
    return json.loads((outdir / "metrics.json").read_text())["metrics"][NAME]


def test_an_evaluation_that_is_killed_three_times(second_stage, tmp_path):
    # The first run fills the compiler's cache, the second says how long it takes.
    for _ in range(2):
        begin = time.monotonic()
        status, output = finish(start(second_stage, tmp_path / "whole", "--npz"))
        assert status == 0, output
        (tmp_path / "whole" / "reference.npz").unlink()
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


def test_two_processes_measure_as_one(second_stage, tmp_path):
    more = ("--num_samples=40", "--npz")
    status, output = finish(start(second_stage, tmp_path / "one", *more, devices=4))
    assert status == 0, output
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    job = (f"--coordinator=127.0.0.1:{port}", "--num_processes=2")
    jobs = [
        start(second_stage, tmp_path / "two", *more, *job, f"--process_id={index}")
        for index in range(2)
    ]
    for process in jobs:
        status, output = finish(process)
        assert status == 0, output
    expected = pytest.approx(value_in(tmp_path / "one"), rel=1e-3)
    assert value_in(tmp_path / "two") == expected
