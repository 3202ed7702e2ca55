"""Sweeps: rows that are kept, one program for all scales, table and plot."""

import json
import pathlib
import sys

import jax
import numpy as np
import pytest

from ldm_jax import sharding
from ldm_jax.errors import ConfigError, DataError
from ldm_jax.evaluation import drawn
from ldm_jax.evaluation.compare import Comparison, compare
from ldm_jax.evaluation.drawn import Drawing, Plan, draw_set
from ldm_jax.evaluation.sweep import plot, tables
from ldm_jax.evaluation.sweep.grid import combinations, name_of, title_of
from ldm_jax.evaluation.sweep.rows import Row, measure_rows
from ldm_jax.metrics.set_metrics import Result
from ldm_jax.sampling import complete
from tests.sampling.common import make_trained, picture, write_image

NAME = "random-features distance (frechet)"


@pytest.fixture(scope="module")
def trained():
    return make_trained("label")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    for k in range(12):
        write_image(root / f"{k:02}.png", picture(k))
    return root


def how(outdir, reference):
    return Comparison(
        metrics=["frechet"],
        outdir=pathlib.Path(outdir),
        weights={},
        reference=str(reference),
        batch_size=4,
        save_every=4,
    )


def test_rows_share_programs_and_are_kept(trained, folder, tmp_path, monkeypatch):
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    made, make_draw = [], drawn.make_draw
    broken = []

    def count_programs(model, options, *others):
        made.append(options.num_steps)
        draw = make_draw(model, options, *others)

        def breaking(*arguments):
            if broken and broken.pop(0):
                raise KeyboardInterrupt
            return draw(*arguments)

        return breaking

    monkeypatch.setattr(drawn, "make_draw", count_programs)
    given = combinations([], ["2"], ["3", "2"])
    settings = [complete(trained, each) for each in given]
    plan, place = Plan(12, 4, seed=1), how(tmp_path, folder)
    drawing = Drawing(trained, mesh)
    whole = measure_rows(drawing, settings, plan, place)
    # One program for both scales.
    assert made == [2]
    values = [row.results[NAME].value for row in whole]
    assert values[0] != values[1]
    # What `compare` finds alone, without the sweep.
    images, _ = draw_set(drawing, settings[1], plan)
    alone = compare(images, how(tmp_path / "alone", folder), mesh)
    assert alone[NAME].value == values[1]
    # And what a program of this scale alone draws.
    ((_, batch),) = draw_set(drawing, settings[0], plan._replace(count=4))[0].batches(0)
    draw = make_draw(trained.model, settings[0], mesh, 1)
    inputs = {"label": drawn.plan_labels("random", 8, 4, seed=1)}
    index = np.arange(4, dtype=np.int32)
    expected, _ = draw(trained.params, trained.frozen, inputs, index)
    difference = np.asarray(batch["image"]).astype(int) - np.asarray(expected)
    assert np.abs(difference).max() <= 1
    # A row is cut between its batches: what is through is read, and it continues.
    rows = tmp_path / "rows"
    paths = sorted(rows.iterdir())
    assert [path.name for path in paths] == ["ddim_2_2.json", "ddim_2_3.json"]
    paths[0].unlink()
    broken += [False, False, True]
    with pytest.raises(KeyboardInterrupt):
        measure_rows(drawing, settings, plan, place)
    assert (rows / "ddim_2_2.partial.npz").exists()
    again = measure_rows(drawing, settings, plan, place)
    assert again == whole
    assert not (rows / "ddim_2_2.partial.npz").exists()
    # No row of other settings is taken for one of these, and none that is damaged.
    with pytest.raises(ConfigError, match=r"other settings \(images.* --outdir"):
        measure_rows(drawing, settings, plan._replace(seed=2), place)
    paths[0].write_text("{}")
    with pytest.raises(DataError, match="cannot be read as a row"):
        measure_rows(drawing, settings, plan, place)


def test_combinations():
    rows = combinations(["ddim", "unipc"], ["5", "10"], ["1", "1.5"])
    assert len(rows) == 8
    assert rows[1] == dict(sampler="ddim", num_steps=5, guidance_scale=1.5, eta=None)
    assert combinations([], [], []) == [
        dict(sampler=None, num_steps=None, guidance_scale=None, eta=None)
    ]
    values = dict(sampler="ddim", num_steps=1, guidance_scale=1.0)
    assert title_of(values) == "ddim, 1 step, guidance 1"
    close = [name_of(values | {"guidance_scale": 1 + k * 1e-9}) for k in range(2)]
    assert close[0] != close[1]


def rows_of(points, name=NAME):
    return [
        Row(
            dict(sampler=sampler, num_steps=steps, guidance_scale=scale),
            {name: Result(value, None, 64, name, "few images")},
        )
        for sampler, steps, scale, value in points
    ]


POINTS = [
    ("ddim", 10, 1.0, 4.0),
    ("ddim", 10, 2.0, 3.0),
    ("unipc", 10, 1.0, 3.5),
    ("unipc", 10, 2.0, float("nan")),
]


def test_the_table_names_the_best_row():
    rows = rows_of(POINTS)
    text = tables.markdown_of("64 samples", rows)
    assert "| ddim | 10 | 2 | **3.0000** | 64 |" in text
    assert "| unipc | 10 | 2 | nan | 64 |" in text
    assert f"Best by {NAME}: ddim, 10 steps, guidance 2 (3.0000; lower is" in text
    assert text.endswith("Note: few images.\n")
    record = tables.record_of_rows(rows)
    assert record["best"][NAME] == rows[1].values
    assert record["rows"][2]["metrics"] == {NAME: 3.5}
    higher = tables.best_of(rows_of(POINTS, "recall"), "recall")
    assert higher.values["guidance_scale"] == 1.0
    nothing = rows_of([("ddim", 1, 1.0, float("nan"))])
    assert tables.best_line(nothing) == f"No row has a finite {NAME}."


def test_the_plot(tmp_path, monkeypatch):
    rows = rows_of(POINTS)
    axis, curves = plot.curves_of(rows, NAME)
    assert axis == "guidance_scale"
    assert curves["ddim, 10 steps"] == [(1.0, 4.0), (2.0, 3.0)]
    steps = rows_of([("ddim", n, 2.0, 1.0 / n) for n in (20, 10)])
    axis, curves = plot.curves_of(steps, NAME)
    assert axis == "num_steps"
    assert curves == {"ddim, guidance 2": [(10, 0.1), (20, 0.05)]}
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert not plot.write_plot(tmp_path / "sweep.png", "title", rows)
    monkeypatch.undo()
    pytest.importorskip("matplotlib")
    assert plot.write_plot(tmp_path / "sweep.png", "title", rows)
    assert (tmp_path / "sweep.png").stat().st_size > 10_000


def test_a_record_can_be_written():
    json.dumps(tables.record_of_rows(rows_of(POINTS)))
