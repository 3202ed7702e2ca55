"""Metrics of samples during training: they change nothing, and the best is kept."""

import contextlib
import json
import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax import checkpoint, sharding
from ldm_jax.batches import Data
from ldm_jax.checkpoint import Best, Checkpoints, TrainState
from ldm_jax.checkpoint.best import KeepBest, read_best, write_best
from ldm_jax.console import Console
from ldm_jax.diffusion.sample_options import SampleOptions
from ldm_jax.errors import CheckpointError, ConfigError
from ldm_jax.metrics.measurement import Measurement
from ldm_jax.training import autoencoder, classifier, diffusion
from ldm_jax.training.held_out import made_images
from ldm_jax.training.held_out.eval_options import EvalOptions, eval_options
from ldm_jax.training.held_out.made_images import Made, _require_examples
from ldm_jax.training.held_out.own_reference import own_reference
from ldm_jax.training.held_out.run_metrics import RunMetrics
from tests.runs import (
    assert_same_bits,
    bare_run,
    state_of,
    tiny_config,
    train,
    weights_of,
)
from tests.sampling.common import SIZE, make_trained

MEASURED = {
    "eval__every": 2,
    "eval__num_samples": 10,
    "eval__batch_size": 8,
    "eval__distances": ("frechet",),
    "eval__best": "frechet",
    "eval__levels": 2,
    "train__preview_images": 0,
}
NAME = "eval/distances/random-features_distance/frechet"


def _rows(workdir):
    text = (workdir / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def _measured(workdir):
    return {row["step"]: row[NAME] for row in _rows(workdir) if NAME in row}


def _train(workdir, shapes_dir, first_stage, **more):
    more = MEASURED | {"first_stage__workdir": str(first_stage)} | more
    train("shapes_class", shapes_dir, workdir, whole=True, **more)


def test_a_run_that_is_measured_ends_in_the_same_state(
    second_stage, first_stage, shapes_dir, tmp_path, capsys
):
    _train(tmp_path, shapes_dir, first_stage)
    # Weights, their average, and the optimiser's state.
    assert_same_bits(state_of(second_stage), state_of(tmp_path))
    found = _measured(tmp_path)
    assert found.keys() == {2, 4}
    best = min(found, key=found.get)
    record = json.loads((tmp_path / "best.json").read_text())
    assert (record["step"], record["value"]) == (best, found[best])
    assert checkpoint.checkpoint_folder(tmp_path, "best").name == str(best)
    said = capsys.readouterr().out
    assert "reference statistics of 64 images of" in said
    (line,) = (line for line in said.splitlines() if "loss by noise level" in line)
    assert re.search(r"first:  0: [\d.]+  1: [\d.]+  \(moving average\)$", line)


@pytest.mark.slow
def test_so_does_a_long_run_that_is_measured_every_500_steps(
    first_stage, shapes_dir, tmp_path
):
    more = {"train__num_steps": 1000, "train__batch_size": 2, "train__keep_last": 2}
    more |= {"train__checkpoint_every": 500, "train__log_every": 250}
    for name, every in (("without", 0), ("with", 500)):
        how = {"eval__every": every, "eval__best": "frechet" if every else None}
        how["train__eval_every"] = every
        _train(tmp_path / name, shapes_dir, first_stage, **more | how)
    assert _measured(tmp_path / "with").keys() == {500, 1000}
    assert not _measured(tmp_path / "without")
    for step in (500, 1000):
        ends = [state_of(tmp_path / name, step) for name in ("without", "with")]
        assert_same_bits(*ends)


@pytest.mark.slow
def test_what_a_killed_run_has_not_measured_is_measured_first(
    first_stage, shapes_dir, tmp_path, capsys
):
    more = {"train__keep_last": 1}
    _train(tmp_path, shapes_dir, first_stage, **more)
    (last,) = (row for row in _rows(tmp_path) if "eval/loss" in row)
    assert last["eval/num_images"] == 8 and last["eval/level_draws"] == 4
    assert last["eval/loss_level_0"] > 0 and last["eval/loss_level_1"] > 0
    found, path = _measured(tmp_path), tmp_path / "metrics.jsonl"
    record = (tmp_path / "best.json").read_text()
    lines = path.read_text().splitlines(keepends=True)
    kept = [line for line in lines if not (NAME in line and '"step": 4' in line)]
    path.write_text("".join(kept))
    assert "reference statistics of 64 images:" in capsys.readouterr().out
    _train(tmp_path, shapes_dir, first_stage, **more)
    said = capsys.readouterr().out
    assert "what was due and has no record is made" in said
    assert "reference statistics" not in said
    # To the same digits.
    assert _measured(tmp_path) == found
    assert (tmp_path / "best.json").read_text() == record


def _checkpoints(*steps):
    return [SimpleNamespace(step=step) for step in steps]


def test_the_best_stays_by_either_direction(tmp_path):
    kept = KeepBest(None)
    assert kept.takes(Best(2, "fid", 5.0, "lower"))
    assert not kept.takes(Best(3, "fid", 6.0, "lower"))
    assert not kept.takes(Best(3, "fid", float("nan"), "lower"))
    assert not kept.takes(Best(3, "fid", 5.0, "lower"))
    assert kept.should_preserve(_checkpoints(1, 2, 3), context=None) == [0, 1, 0]
    # Another result, or another way to measure it, cannot be compared with it.
    assert kept.takes(Best(3, "fid", 9.0, "lower", "another way"))
    assert not kept.takes(Best(3, "fid", float("-inf"), "lower", "another way"))
    assert kept.takes(Best(4, "precision", 0.1, "higher"))
    assert kept.takes(Best(5, "precision", 0.2, "higher"))
    assert not kept.takes(Best(6, "precision", 0.1, "higher"))
    write_best(tmp_path, kept.best)
    assert read_best(tmp_path) == Best(5, "precision", 0.2, "higher")
    for text in ("{", '{"step": 5, "name": "fid", "value": null, "better": "lower"}'):
        (tmp_path / "best.json").write_text(text)
        assert read_best(tmp_path) is None
    # As runs before had it.
    old = {"step": 5, "name": "fid", "value": 5.0, "better": "lower"}
    (tmp_path / "best.json").write_text(json.dumps(old))
    assert read_best(tmp_path) == Best(**old)


def test_a_best_that_is_not_there_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint of .* is known to be"):
        checkpoint.checkpoint_folder(tmp_path, "best")
    write_best(tmp_path, Best(7, "fid", 5.0, "lower"))
    (tmp_path / "checkpoints" / "9").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="no checkpoint of step 7 .* holds 9"):
        checkpoint.checkpoint_folder(tmp_path, "best")


def test_the_reference_of_a_run_is_made_once(shapes_dir, tmp_path):
    mesh, lines = sharding.make_mesh(devices=jax.devices()[:1]), []
    config = tiny_config("shapes_class", shapes_dir)
    run = bare_run(
        config=config,
        data=Data(config.data, 0, 8, mesh),
        console=SimpleNamespace(line=lines.append),
        checkpoints=SimpleNamespace(workdir=tmp_path),
    )
    measurement = Measurement(("frechet",), mesh)

    def count(**options):
        options = EvalOptions(distances=("frechet",), batch_size=8, **options)
        record = own_reference(run, measurement, options).record
        return record["name"], record["count"]

    assert count() == count() == ("shapes/32, train", 64)
    assert len(lines) == 2 and "ldm-reference" in lines[0]
    assert count(reference_images=10) == ("shapes/32, train", 10)
    assert len(lines) == 4
    # What a first stage reconstructs.
    config.stage = "autoencoder"
    assert count(num_samples=9) == ("shapes/32, validation", 9)


def test_an_example_that_cannot_be_read_is_a_sample_less(monkeypatch):
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    monkeypatch.setattr(
        made_images,
        "make_draw",
        lambda *_: lambda params, frozen, inputs, index: (index, index >= 0),
    )

    def held_out_batches(batch_size):
        maps = np.zeros((3, SIZE, SIZE), np.int32)
        mask = np.array([True, False, True])
        yield sharding.put_batch({"segmentation": maps, "mask": mask}, mesh)

    data = SimpleNamespace(num_held_out=3, held_out_batches=held_out_batches)
    state = SimpleNamespace(ema_params={}, params={})
    make = made_images.sampled(
        make_trained("segmentation", scale=0).model, SampleOptions(), 0
    )
    images = make(EvalOptions(num_samples=3), mesh, data)
    (made,) = images(state, {})
    assert np.asarray(made.mask).tolist() == [True, False, True]
    with pytest.raises(ConfigError, match="there are 3 of those"):
        make(EvalOptions(num_samples=4), mesh, data)


def test_the_best_stays_beside_the_newest(tmp_path):
    def save(checkpoints, step):
        empty = TrainState(jnp.int32(step), {"a": jnp.zeros(1)}, {}, {}, {})
        checkpoints.save(step, empty, {"config": {}})
        checkpoints.wait()

    # Of a folder that has gone: a run that continues looks for another one.
    write_best(tmp_path, Best(7, "fid", 0.0, "lower"))
    with contextlib.closing(Checkpoints(tmp_path, keep_last=1)) as checkpoints:
        save(checkpoints, 1)
        assert checkpoints.keep_if_best(Best(1, "fid", 5.0, "lower"))
        save(checkpoints, 2)
        assert not checkpoints.keep_if_best(Best(2, "fid", 6.0, "lower"))
    with contextlib.closing(Checkpoints(tmp_path, keep_last=1)) as checkpoints:
        save(checkpoints, 3)
        assert [path.name for path in checkpoints.folders] == ["1", "3"]
        assert checkpoints.keep_if_best(Best(3, "fid", 4.0, "lower"))
        save(checkpoints, 4)
        assert [path.name for path in checkpoints.folders] == ["3", "4"]
    assert checkpoint.checkpoint_folder(tmp_path, "best").name == "3"


@pytest.mark.parametrize(
    "stage, name, change, message",
    [
        (diffusion, "class", {"eval__distances": ("fidd",)}, 'fidd" is unknown'),
        (diffusion, "class", {"eval__best": "psnr"}, 'eval.best="psnr" is no result'),
        (
            diffusion,
            "class",
            {"eval__best": "fid"},
            "eval.every steps, and",
        ),
        (diffusion, "class", {"eval__distances": ("rfid",)}, "samples by fid"),
        (diffusion, "class", {"eval__label_mode": "equal"}, 'equal" is unknown'),
        (autoencoder, "autoencoder", {"eval__num_samples": 1}, "eval.num_samples must"),
        (classifier, "classifier", {"eval": {"every": 2}}, "makes no images"),
    ],
)
def test_sections_that_cannot_work_are_refused_at_once(stage, name, change, message):
    with pytest.raises(ConfigError, match=message):
        stage.check(tiny_config(f"shapes_{name}", "", **change))


def test_a_first_stage_is_measured_by_rfid_unless_something_is_asked_for():
    config = tiny_config("shapes_autoencoder", "")
    del config.eval
    assert eval_options(config).distances == ("rfid",)
    config.eval = {"distances": ("kid",)}
    assert eval_options(config).distances == ("kid",)
    config = tiny_config("shapes_class", "")
    del config.eval
    assert eval_options(config).distances == ("fid",)


def test_more_samples_than_held_out_conditions_are_refused():
    options = SimpleNamespace(num_samples=5)
    for found, message in ((3, "use eval.num_samples=3, or hold"), (1, "those: hold")):
        with pytest.raises(ConfigError, match=message):
            _require_examples(options, SimpleNamespace(num_held_out=found))


def test_images_that_are_not_finite_are_counted_and_not_measured(capsys):
    def measure(*rows):
        """Measures two batches of 4, of which the last row only fills up."""
        mask = sharding.put_batch({"mask": np.arange(4) < 3}, mesh)["mask"]
        finite = [jnp.array([k not in bad for k in range(4)]) for bad in rows]
        taken = SimpleNamespace(count=0, results=dict)
        taken.add = lambda images, mask: setattr(taken, "count", taken.count + 3)
        sets = object.__new__(RunMetrics)
        sets._measurement = SimpleNamespace(twin=lambda: taken)
        sets._images = lambda *_: (Made(None, mask, each) for each in finite)
        sets._run = SimpleNamespace(console=Console(9, 0, True), frozen=None)
        return sets.measure(TrainState(7, {}, {}, {}, {}), lambda: True)

    mesh = sharding.make_mesh(devices=jax.devices()[:2])
    assert measure({3}, {3}) == {"num_images": 6}
    assert "finite" not in capsys.readouterr().out
    assert measure({3}, {0, 2, 3}) == {"num_images": 0}
    assert "step 7: 2 of 4 images of a batch" in capsys.readouterr().out


@pytest.mark.slow
def test_a_first_stage_is_measured_by_its_reconstructions(
    first_stage, shapes_dir, tmp_path
):
    more = {"eval__every": 4, "eval__distances": ("frechet",)}
    train("shapes_autoencoder", shapes_dir, tmp_path, whole=True, **more)
    assert_same_bits(weights_of(first_stage), weights_of(tmp_path))
    (row,) = (row for row in _rows(tmp_path) if NAME in row)
    assert row["step"] == 4 and row[NAME] > 0
    assert row["eval/distances/num_images"] == 12
