"""Every source, also in buckets: resumed anywhere, and shared by any processes."""

import contextlib
import hashlib
import random

import numpy as np
import pytest

from ldm_jax.data.loader import make_loader
from ldm_jax.data.open_source import open_source
from tests.data.every_source import BUCKETS, SOURCES, WITH_SIZES, write

BATCH, STEPS = 4, 13


@pytest.fixture(scope="module")
def section_of(tmp_path_factory, array_record_dir):
    folder, made = tmp_path_factory.mktemp("sources"), {}

    def section(source, buckets):
        if source not in made:
            made[source] = write(source, folder, array_record_dir)
        return made[source] | ({"buckets": BUCKETS} if buckets else {})

    return section


def load(source, section, start, steps, rows=None):
    options = dict(batch_size=BATCH, seed=5, start_step=start, rows=rows)
    with contextlib.closing(make_loader(source, section, **options)) as batches:
        return [next(batches) for _ in range(steps)]


def rows_of(batch):
    """A hash of each row of a batch, of all that it holds."""
    found = []
    for row in range(len(batch[next(iter(batch))])):
        values = [(key, batch[key][row]) for key in sorted(batch)]
        text = b"".join(
            f"{key} {value.shape}".encode() + np.ascontiguousarray(value).tobytes()
            for key, value in values
        )
        found.append(hashlib.blake2b(text, digest_size=8).hexdigest())
    return found


@pytest.mark.parametrize(
    "source, buckets",
    [(source, False) for source in SOURCES] + [(source, True) for source in WITH_SIZES],
)
def test_resumed_anywhere_and_shared_by_any_processes(source, buckets, section_of):
    section = section_of(source, buckets)
    opened = open_source(section, section["split"])
    batches = load(opened, section, 0, STEPS)
    whole = [rows_of(batch) for batch in batches]
    # The images of `shapes` are squares.
    if buckets and source != "tfds":
        assert len({batch["image"].shape for batch in batches}) > 1
    # Each epoch of a plain source, and of buckets, has every example once.
    count = len(opened)
    stream = sum(whole, [])
    if source != "mixture":
        for epoch in range(len(stream) // count):
            assert len(set(stream[epoch * count : (epoch + 1) * count])) == count
    # A source that is opened again, at any step.
    for start in random.Random(source).sample(range(1, STEPS), 2):
        again = open_source(section, section["split"])
        found = [rows_of(batch) for batch in load(again, section, start, 1)]
        assert found == whole[start : start + 1], start
    epoch = min(STEPS, -(-count // BATCH))
    for processes in (2, 4):
        shares = [
            [
                rows_of(batch)
                for batch in load(opened, section, 0, epoch, np.arange(BATCH)[part])
            ]
            for part in (
                slice(k * BATCH // processes, (k + 1) * BATCH // processes)
                for k in range(processes)
            )
        ]
        joined = [sum(parts, []) for parts in zip(*shares, strict=True)]
        assert joined == whole[:epoch]
