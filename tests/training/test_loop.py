"""The loop on real runs: resuming, diverging, wrong configs, files."""

import contextlib
import json
import shutil

import numpy as np
import pytest

from ldm_jax import checkpoint, peers
from ldm_jax.data.loader import DataError
from ldm_jax.errors import (
    CheckpointError,
    ConfigError,
    ProcessLost,
    TrainingDiverged,
)
from ldm_jax.training import loop
from tests.runs import (
    STAGES,
    VQ,
    assert_same_bits,
    command,
    finish,
    stage_overrides,
    train,
    weights_of,
)


@pytest.mark.parametrize(
    "name, changes",
    [
        # A codebook has all the state that KL has, and its own.
        (STAGES[0], VQ),
        (STAGES[1], {}),
    ],
    ids=["vq", STAGES[1]],
)
def test_four_steps_equal_two_and_two_more(
    name, changes, shapes_dir, first_stage, tmp_path
):
    extra = stage_overrides(name, first_stage) | changes
    train(name, shapes_dir, tmp_path / "whole", **extra)
    train(name, shapes_dir, tmp_path / "cut", train__num_steps=2, **extra)
    assert checkpoint.checkpoint_folder(tmp_path / "cut").name == "2"
    train(name, shapes_dir, tmp_path / "cut", **extra)
    for average in (False, True):
        ends = [weights_of(tmp_path / run, average) for run in ("whole", "cut")]
        assert_same_bits(*ends)
    lines = [_lines(tmp_path / run) for run in ("whole", "cut")]
    assert [row["step"] for row in lines[0]] == [2, 4]
    losses = [[r["loss"] for r in rows if "loss" in r] for rows in lines]
    assert losses[0] == losses[1]


def _lines(workdir):
    text = (workdir / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_a_run_leaves_numbers_and_pictures(second_stage):
    trained, evaluated = _lines(second_stage)[1:]
    for key in (
        "loss",
        "loss_simple",
        "grad_norm",
        "learning_rate",
        "images_per_s",
        "images_per_s_per_chip",
        "tflops_per_s_per_chip",
        "data_wait_ms",
        "host_memory_gb",
    ):
        assert np.isfinite(trained[key]), key
    assert evaluated["eval/loss_simple"] > 0
    names = {path.name for path in (second_stage / "previews").iterdir()}
    assert names == {
        f"{name}_00000004.png" for name in ("inputs", "reconstructions", "samples")
    }
    assert list((second_stage / "tensorboard").glob("events*"))
    config, _, meta = checkpoint.load_weights(second_stage)
    assert config.stage == "diffusion"
    assert meta["scaling_factor"] > 0


def test_a_finished_run_says_so_and_does_nothing(
    second_stage, first_stage, shapes_dir, capsys
):
    before = _lines(second_stage)
    extra = {"first_stage__workdir": str(first_stage)}
    train("shapes_class", shapes_dir, second_stage, **extra)
    assert "already trained, nothing to do" in capsys.readouterr().out
    assert _lines(second_stage) == before


def test_a_run_that_has_gone_further_than_is_asked_for_says_so():
    assert loop._finished(4, 4, False) == "step 4 of 4: already trained, nothing to do"
    found = loop._finished(4, 2, made=True)
    assert found.startswith("step 4: this workdir has gone further than ")
    assert found.endswith("num_steps=2; to continue, raise train.num_steps above 4")
    assert "num_steps=2, nothing to do; to continue" in loop._finished(4, 2, False)


def test_another_config_is_an_error_unless_allowed(shapes_dir, first_stage, tmp_path):
    """And a run whose loss is not finite stops: the change is that of its rate."""
    run = shutil.copytree(first_stage, tmp_path / "run")
    changed = {"train__num_steps": 8, "train__learning_rate": 1e30}
    with pytest.raises(CheckpointError, match="learning_rate: .* there, 1e[+]30 here"):
        train("shapes_autoencoder", shapes_dir, run, **changed)
    changed |= {"allow_config_change": True}
    # After four steps of no harm, a rate that no weight survives.
    with pytest.raises(TrainingDiverged, match="step 4 is intact and kept"):
        train("shapes_autoencoder", shapes_dir, run, **changed)
    assert checkpoint.checkpoint_folder(run).name == "4"
    # With the rate of before it continues from there.
    changed = {"train__num_steps": 5, "allow_config_change": True}
    train("shapes_autoencoder", shapes_dir, run, **changed)
    assert checkpoint.checkpoint_folder(run).name == "5"


@pytest.mark.parametrize(
    "name, overrides, message",
    [
        ("shapes_class", {}, "first_stage.workdir is not set: train a first stage"),
        ("shapes_autoencoder", {"stage": "both"}, 'stage="both" is unknown'),
        ("shapes_autoencoder", {"train__batch_size": 9}, "use train.batch_size=8"),
        ("shapes_autoencoder", {"train__mesh__fsdp": 3}, "does not cover 8 devices"),
        ("shapes_autoencoder", {"data__name": "shapes/31"}, "shapes/31"),
        ("shapes_autoencoder", {"train__decay": "cosin"}, 'did you mean "cosine"'),
    ],
)
def test_wrong_configs_name_the_fix(name, overrides, message, shapes_dir, tmp_path):
    with pytest.raises((ConfigError, DataError)) as error:
        train(name, shapes_dir, tmp_path, devices=8, **overrides)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_latent_size_that_the_backbone_cannot_take(shapes_dir, first_stage, tmp_path):
    with pytest.raises(
        ConfigError, match="multiples of 32 alone; use data.image_size=64"
    ):
        train(
            "shapes_class",
            shapes_dir,
            tmp_path,
            first_stage__workdir=str(first_stage),
            backbone__channel_mult=(1, 1, 1, 1, 1, 1),
        )


@pytest.mark.parametrize(
    "argument, message",
    [
        ("--config.train.batchsize=8", "batch_size"),
        ("--config.train.batch_size=many", "batch_size"),
        ("--config.backbone.channel_mults=1,2", "channel_mult"),
        ("--config.unet.channels=8", "no section unet; it is called backbone now"),
        ("--config.first_stage.workdir=/nowhere", "no checkpoint in /nowhere"),
    ],
)
def test_the_command_line_answers_in_one_line(argument, message, shapes_dir, tmp_path):
    arguments = [
        "--config=configs/shapes_class.py:tiny",
        f"--config.data.data_dir={shapes_dir}",
        f"--workdir={tmp_path}",
        argument,
    ]
    status, output = finish(command("train.py", *arguments))
    assert status != 0
    last = output.strip().splitlines()[-1]
    assert last.startswith("error: ") and message in last
    assert "Traceback" not in output


def test_a_fault_of_the_data_waits_until_the_step_is_saved():
    def batches(fault):
        yield "batch"
        raise fault

    fault = ProcessLost("a data worker was killed")
    found = batches(fault)
    assert loop._next(found) == ("batch", None)
    assert loop._next(found) == (None, fault)


def test_the_last_save_is_waited_for_until_it_is_closed(tmp_path, monkeypatch):
    """Where another process fails meanwhile: the watch knows of it to the end."""
    left = []

    @contextlib.contextmanager
    def saving(wait):
        try:
            yield
        finally:
            left.append("saving")

    monkeypatch.setattr(peers, "saving", saving)
    monkeypatch.setattr(
        checkpoint.Checkpoints, "close", lambda self: left.append("closed")
    )
    with pytest.raises((ConfigError, DataError)):
        train("shapes_autoencoder", "nowhere", tmp_path)
    assert left == ["closed", "saving"]
