"""A second stage in buckets, of a mixture: cut and gone on with, bit for bit."""

import json

import numpy as np
import pytest

from ldm_jax.errors import ConfigError
from tests.data.common import write_images
from tests.runs import train


def _write(folder):
    """Images of three proportions in two folders."""
    for name, count in (("art", 14), ("photos", 22)):
        for kind, size in enumerate([(64, 64), (96, 48), (48, 96)]):
            write_images(
                folder / name, [f"{kind}/{k}.png" for k in range(count // 3)], size
            )
    return str(folder)


def _run(folder, workdir, steps=6, **changes):
    options = dict(
        data__source="mixture",
        data__data_dir=_write(folder),
        data__eval_split="",
        data__split="all",
        data__parts=dict(
            art=dict(source="folder", name="art", weight=1.0),
            photos=dict(source="folder", name="photos", weight=2.0),
        ),
        data__buckets=dict(step=16),
        train__num_steps=steps,
        train__log_every=1,
        train__preview_every=None,
    )
    return train("shapes_autoencoder", str(folder), workdir, **options | changes)


def _lines(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_steps_that_do_not_fit_are_refused_before_anything_is_read(tmp_path):
    with pytest.raises(ConfigError, match="data.buckets.step=9 is no multiple of"):
        _run(tmp_path / "data", tmp_path / "run", data__buckets=dict(step=9))


@pytest.mark.slow
def test_a_run_in_buckets_goes_on_bit_for_bit(tmp_path, caplog):
    _run(tmp_path / "data", tmp_path / "whole")
    whole = _lines(tmp_path / "whole")
    _run(tmp_path / "data", tmp_path / "cut", steps=3)
    _run(tmp_path / "data", tmp_path / "cut")
    same = ("loss", "grad_norm", "data/skipped", "data/images/art")
    for one, other in zip(whole, _lines(tmp_path / "cut"), strict=True):
        for key in one.keys() & {*same, "data/images/photos"}:
            np.testing.assert_array_equal(one[key], other[key])
    assert whole[-1]["data/images/art"] + whole[-1]["data/images/photos"] > 0
    assert whole[-1]["data/skipped"] == 0
