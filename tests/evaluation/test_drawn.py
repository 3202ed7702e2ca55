"""Samples whose conditions are of examples that cannot all be read."""

import json

import jax
import numpy as np
import pytest

from ldm_jax import sharding
from ldm_jax.data.open_source import open_source
from ldm_jax.errors import DataError
from ldm_jax.evaluation import drawn
from ldm_jax.evaluation.compare import Comparison, compare
from ldm_jax.evaluation.drawn import Drawing, Plan, draw_set
from ldm_jax.sampling import complete
from tests.sampling.common import make_trained, picture


class Damaged:
    """A source of examples of which some cannot be read."""

    def __init__(self, source, numbers):
        self._source, self._numbers = source, numbers

    def __getattr__(self, name):
        return getattr(self._source, name)

    def __len__(self):
        return len(self._source)

    def __getitem__(self, index):
        if index in self._numbers:
            raise ValueError("damaged")
        return self._source[index]


@pytest.fixture
def drawing(shapes_dir, monkeypatch):
    """Twelve conditions of which 2, 5 and 11 cannot be read; sample k is grey of k."""
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    trained = make_trained("depth", scale=0, data_dir=shapes_dir)
    trained.config.data.image_size = 16
    source = Damaged(open_source(trained.config.data, "validation"), [2, 5, 11])
    source.skipped = [("1.tar", "cut short")]
    monkeypatch.setattr(drawn, "open_source", lambda *_: source)
    made = Drawing(trained, mesh)

    def draw(each):
        index = np.asarray(each.index).astype(np.uint8)[:, None, None, None]
        images = np.tile(10 * index, (1, 16, 16, 3))
        return sharding.put_batch({"image": images}, mesh)["image"], each.mask

    monkeypatch.setattr(made, "program", lambda *_: draw)
    return made


def _measure(drawing, outdir, count, cut_after=None):
    """Draws and measures samples; a cut run breaks off before so many batches."""
    plan = Plan(count, 4, skip_unreadable=True)
    images, _ = draw_set(drawing, complete(drawing.trained), plan)
    whole = images.batches

    def batches(start):
        for k, batch in enumerate(whole(start)):
            if k == cut_after:
                raise KeyboardInterrupt
            yield batch

    images.batches = batches
    np.savez(outdir / "photos.npz", arr_0=np.stack([picture(k) for k in range(4)]))
    reference = str(outdir / "photos.npz")
    how = Comparison(["frechet"], outdir, {}, None, reference, save_every=3, npz=True)
    ((_, result),) = compare(images, how, drawing.mesh).items()
    return result.count, json.loads((outdir / "metrics.json").read_text())


@pytest.mark.parametrize("count", [None, 11, 8])
def test_what_cannot_be_read_is_left_out_and_named(drawing, tmp_path, count):
    with pytest.raises(KeyboardInterrupt):
        _measure(drawing, tmp_path, count, cut_after=1)
    found, record = _measure(drawing, tmp_path, count)
    # Eight are there without the last three, of which one cannot be read.
    numbers = [0, 1, 3, 4, 6, 7, 8, 9, 10][:count]
    assert found == len(numbers)
    kept = np.load(tmp_path / "samples.npz")["arr_0"]
    assert kept[:, 0, 0, 0].tolist() == [10 * number for number in numbers]
    left_out = [2, 5] if count == 8 else [2, 5, 11]
    names = ["1.tar: cut short"]
    names += [f"validation example {number}" for number in left_out]
    assert len(record["unreadable"]) == len(names)
    for name, said in zip(names, record["unreadable"], strict=True):
        assert name in said


def test_without_the_flag_the_first_one_ends_it(drawing):
    images, _ = draw_set(drawing, complete(drawing.trained), Plan(None, 4))
    with pytest.raises(DataError, match="validation example 2: .*damaged"):
        list(images.batches(0))
