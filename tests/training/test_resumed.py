"""A resumed run makes what was due, once; one that diverged names the way back."""

import json
import shlex
import subprocess
from types import SimpleNamespace

import numpy as np
import pytest
from ml_collections import ConfigDict

from ldm_jax import sharding
from ldm_jax.checkpoint import TrainState
from ldm_jax.errors import DataError, ProcessLost, TrainingDiverged
from ldm_jax.training.held_out import HeldOut
from ldm_jax.training.step_log import check_finite
from ldm_jax.training.writer import Writer
from tests.runs import bare_run

STATE = TrainState(step=0, params={}, ema_params={}, opt_state={}, stats={})


class Console:
    def line(self, text):
        pass


@pytest.fixture
def resume(tmp_path):
    """Opens the held-out work of a run that continues, on stubs that count."""
    writers = []

    def resume(
        start, stopping=lambda: False, batches=None, shows=True, makes=False, **train
    ):
        section = {"num_steps": 8, "eval_every": 4, "preview_every": 2}
        section |= {"preview_images": 1, "eval_batches": None} | train
        config = {"train": section, "seed": 0, "data": {"on_error": "skip"}}
        config |= {"stage": "diffusion", "eval": {"every": 4}}
        counts = {"evaluations": 0, "previews": 0}
        batch = {"mask": np.ones(1), "image": np.zeros((1, 4, 4, 3))}
        batches = batches or (lambda: iter([batch]))

        def evaluate(state, frozen, batch, rng):
            counts["evaluations"] += 1
            return {"loss": batch["mask"].sum()}

        def preview(state, frozen, batch, rng):
            counts["previews"] += 1
            return {name: batch["image"] for name in ("inputs", "samples")}

        stage = SimpleNamespace(
            eval_step=evaluate,
            preview=preview if shows else None,
            make_images=makes or None,
            summarize=lambda means: means,
        )
        data = SimpleNamespace(
            has_held_out=True,
            held_out_batches=lambda count: batches(),
            preview_batch=lambda count: batch,
            class_names=None,
        )
        writer = Writer(tmp_path, {}, start)
        writers.append(writer)
        run = bare_run(
            config=ConfigDict(config),
            mesh=sharding.make_mesh(),
            data=data,
            stage=stage,
            console=Console(),
            writer=writer,
            frozen={},
        )
        held_out = HeldOut(run, stopping)
        # Without a compiler.
        held_out._eval_step, held_out._draw = evaluate, preview
        return held_out, counts, writer

    yield resume
    for writer in writers:
        writer.close()


def test_what_was_due_where_a_run_was_cut_is_made_once(resume):
    held_out, counts, _ = resume(4)
    assert held_out.missing(4) == ["evaluation", "preview"]
    assert held_out.begin(4, STATE)
    assert counts == {"evaluations": 1, "previews": 1}
    # The same command once more.
    held_out, counts, _ = resume(4)
    assert not held_out.begin(4, STATE)
    assert counts == {"evaluations": 0, "previews": 0}


@pytest.mark.parametrize(
    "step, train, missing",
    [
        (0, {}, []),
        (2, {}, ["preview"]),
        (3, {}, []),
        # At the end all is due, if it is not turned off.
        (7, {"num_steps": 7}, ["evaluation", "preview"]),
        (7, {"num_steps": 7, "eval_every": None}, ["preview"]),
        (4, {"preview_images": 0}, ["evaluation"]),
        # A run that was given fewer steps is past its end.
        (9, {}, []),
    ],
)
def test_what_is_missing_follows_from_the_step(resume, step, train, missing):
    held_out, _, _ = resume(step, **train)
    assert held_out.missing(step) == missing


def _unreadable():
    raise DataError("all 3 images are damaged")


def _masked():
    return iter([{"mask": np.zeros(1), "image": np.zeros((1, 4, 4, 3))}])


@pytest.mark.parametrize("batches", [_unreadable, _masked])
def test_an_evaluation_of_no_image_is_made_once(resume, batches, tmp_path):
    assert resume(4, batches=batches, preview_every=None)[0].begin(4, STATE)
    assert not resume(4, batches=batches, preview_every=None)[0].begin(4, STATE)
    rows = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row) for row in rows] == [{"step": 4, "eval/num_images": 0}]


def test_a_stage_that_shows_nothing_misses_no_previews(resume):
    held_out, counts, _ = resume(2, shows=False)
    assert held_out.missing(2) == [] and not held_out.begin(2, STATE)
    assert not counts["previews"] and held_out.missing(4) == ["evaluation"]


@pytest.mark.parametrize("kind", [DataError, ProcessLost])
def test_one_process_of_several_leaves_no_evaluation_by_itself(
    resume, monkeypatch, kind
):
    def fail():
        raise kind("no batch")

    held_out, _, _ = resume(4, batches=fail)
    held_out.make(["evaluation"], 4, STATE)
    held_out, _, _ = resume(8, batches=fail)
    monkeypatch.setattr("jax.process_count", lambda: 2)
    # The others wait in it: only an error ends them, too.
    with pytest.raises(kind, match="no batch"):
        held_out.make(["evaluation"], 8, STATE)


def test_lines_of_training_are_no_evaluation(resume):
    held_out, _, writer = resume(4)
    writer.scalars(4, {"loss": 1.0})
    writer.scalars(3, {"eval/loss": 1.0})
    assert held_out.missing(4) == ["evaluation", "preview"]
    writer.scalars(4, {"eval/loss": 1.0})
    assert held_out.missing(4) == ["preview"]


def test_previews_count_once_all_of_a_step_are_written(resume, tmp_path, monkeypatch):
    held_out, _, writer = resume(2)
    written = []

    def killed(source, target):
        written.append(target)
        if len(written) == 4:
            raise KeyboardInterrupt
        replace(source, target)

    from ldm_jax.training import writer as module

    replace = module.os.replace
    monkeypatch.setattr(module.os, "replace", killed)
    # Two temporary files get their contents, one of them its name.
    with pytest.raises(KeyboardInterrupt):
        held_out.begin(2, STATE)
    monkeypatch.undo()
    assert list((tmp_path / "previews").glob("*.png"))
    held_out, counts, _ = resume(2)
    assert held_out.missing(2) == ["preview"] and held_out.begin(2, STATE)
    assert counts["previews"] == 1
    names = {path.name for path in (tmp_path / "previews").iterdir()}
    assert names == {"inputs_00000002.png", "samples_00000002.png"}
    assert not resume(2)[0].missing(2)


def test_a_run_that_is_asked_to_stop_leaves_what_is_due_for_later(resume):
    held_out, counts, _ = resume(4, stopping=lambda: True)
    held_out.make(["evaluation", "preview"], 4, STATE)
    assert held_out.cut and counts == {"evaluations": 0, "previews": 0}
    assert resume(4)[0].missing(4) == ["evaluation", "preview"]


def test_a_measurement_that_was_cut_is_made_first(resume):
    """Its record is one of its own, and stands behind that of the best checkpoint."""
    best = []

    def opened(cut=False):
        held_out, counts, writer = resume(4, makes=True, preview_every=None)
        held_out._sets = SimpleNamespace(
            prepare=lambda: best.append("prepared"),
            measure=lambda state, goes_on: None if cut else {"fid": 7.0},
            keep_best=lambda step, numbers: best.append((step, numbers["fid"])),
            options=held_out._sets.options,
        )
        return held_out

    held_out = opened(cut=True)
    assert held_out.missing(4) == ["evaluation", "measurement"]
    held_out.begin(4, STATE)
    assert best == ["prepared"] and held_out.missing(4) == ["measurement"]
    held_out = opened()
    held_out.begin(4, STATE)
    assert best[1:] == ["prepared", (4, 7.0)]
    assert opened().missing(4) == []


def test_metrics_that_were_cut_are_passed_over(resume, tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 4, "eval/loss": 1.0}\n{"step": 5}\n7\n{"step": 4, "ev')
    assert resume(4)[0].missing(4) == ["preview"]
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [4]


def _diverge(workdir, steps, at):
    """The message of a run that is not finite at a step; checkpoints of `steps`."""
    folders = [workdir / "checkpoints" / str(step) for step in steps]
    for folder in folders:
        folder.mkdir(parents=True)
    metrics = {"loss": 1.0, "learning_rate": 1e-3}
    check_finite(at - 2, [metrics] * 2, list)
    window = [metrics, metrics | {"loss": float("nan")}]
    with pytest.raises(TrainingDiverged) as error:
        check_finite(at - 1, window, lambda: folders)
    return str(error.value)


def test_a_diverged_run_names_the_step_to_go_back_to_and_the_way(tmp_path):
    workdir = tmp_path / "a run"
    text = _diverge(workdir, [2, 4, 6, 7], 8)
    assert text.startswith("step 8: loss is not finite")
    # The weights after step 7 may be what made the loss of step 8.
    assert "step 6 is intact and kept" in text
    assert "--allow_config_change" in text and "it was 0.001" in text
    command = text.split("continue from it: ")[1].split(", and run")[0]
    subprocess.run(command, shell=True, check=True)
    assert {path.name for path in (workdir / "checkpoints").iterdir()} == set("246")
    assert (workdir / "diverged_at_8" / "7").is_dir()


def test_the_newest_checkpoint_is_gone_on_from_where_it_is_sound(tmp_path):
    text = _diverge(tmp_path, [2, 4], 8)
    assert "step 4 is intact and kept" in text and "mv" not in shlex.split(text)
    text = _diverge(tmp_path, [], 3)
    assert "No checkpoint had been saved yet: run the same command with a lower" in text


def test_a_checkpoint_that_may_hold_the_harm_is_not_called_whole(tmp_path):
    text = _diverge(tmp_path, [7], 8)
    assert "step 7 may hold the harm already" in text and "is intact" not in text
    assert "start over in another --workdir" in text
    assert "the same command with --allow_config_change and a lower --config" in text
