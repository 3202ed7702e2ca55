"""Loading from every source is killed at random moments, and continues."""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import pytest

from tests.data.every_source import BUCKETS, SOURCES, WITH_SIZES, write

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parent.parent.parent
STEPS, KILLS, SECONDS = 400, 2, 200


def start(section, out):
    command = [sys.executable, "-m", "tests.faults.sources", section, out, STEPS]
    return subprocess.Popen(list(map(str, command)), cwd=ROOT)


def count_lines(path):
    return path.read_bytes().count(b"\n") if path.exists() else 0


def killed(section, out, steps):
    """Starts to load and kills at a step; returns whether it was still loading."""
    process, end = start(section, out), time.monotonic() + SECONDS
    while count_lines(out) < steps and process.poll() is None:
        assert time.monotonic() < end, "it does not get on"
        time.sleep(0.0005)
    process.kill()
    return process.wait() == -signal.SIGKILL


@pytest.mark.parametrize("source", SOURCES)
def test_the_same_batches_after_kills(source, tmp_path, shapes_dir):
    section = write(source, tmp_path, os.fspath(shapes_dir))
    if source in WITH_SIZES:
        section["buckets"] = BUCKETS
    path = tmp_path / "section.json"
    path.write_text(json.dumps(section | {"workers": 1}))
    out, hits = tmp_path / "killed", 0
    for step in sorted(random.Random(source).sample(range(STEPS - 50), KILLS)):
        # The first of all may come before an index is made.
        hits += killed(path, out, step)
    assert hits == KILLS and count_lines(out) < STEPS
    assert start(path, out).wait(SECONDS) == 0
    whole = tmp_path / "whole"
    path.write_text(json.dumps(section))
    assert start(path, whole).wait(SECONDS) == 0
    assert count_lines(whole) == STEPS
    assert out.read_text() == whole.read_text()
