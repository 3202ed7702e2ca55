"""Statistics of the latents that a stage trains on: measured, given, or inherited."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from ldm_jax import checkpoint, peers, sampling
from ldm_jax.conditioners import make_conditioner
from ldm_jax.config import upgrade
from ldm_jax.diffusion.latent_statistics import LatentStatistics
from ldm_jax.diffusion.schedule import make_schedule
from ldm_jax.errors import CheckpointError, ConfigError
from ldm_jax.latent_diffusion import LatentDiffusion
from ldm_jax.models.autoencoder import IdentityAutoencoder
from ldm_jax.models.unet import UNet
from ldm_jax.sharding import make_mesh, put_batch
from ldm_jax.trained import FirstStage
from ldm_jax.training import latents
from ldm_jax.training.latents import (
    find_statistics,
    given_statistics,
    measure_statistics,
)
from ldm_jax.training.start.same_run import check_config
from tests.runs import tiny_config, train

MODEL = LatentDiffusion(
    UNet(3, channels=8, channel_mult=(1,)),
    make_conditioner(),
    make_schedule(),
    IdentityAutoencoder(),
)
MEANS, STDS = np.array([1000.0, -0.3, 0.0]), np.array([0.01, 2.0, 0.5])


def draw(*sizes, std=STDS):
    random = np.random.default_rng(0)
    return [
        (MEANS + std * random.standard_normal((size, 4, 4, 3))).astype(np.float32)
        for size in sizes
    ]


def measure(images, kind, devices=8):
    mesh = make_mesh(devices=jax.local_devices()[:devices])
    batches = [put_batch({"image": part}, mesh) for part in images]
    return measure_statistics(MODEL, {}, batches, mesh, kind)


@pytest.mark.parametrize("devices", [1, 8])
def test_measures_each_channel_over_all_batches(devices):
    """Of any mean, and with the last batch smaller than the others."""
    images = draw(32, 32, 8)
    found = measure(images, "per_channel", devices)
    whole = np.concatenate(images).astype(np.float64)
    assert found.per_channel and len(found.shift) == 3
    np.testing.assert_allclose(found.shift, whole.mean(axis=(0, 1, 2)), atol=1e-4)
    std = whole.std(axis=(0, 1, 2))
    np.testing.assert_allclose(np.multiply(found.scale, std), 1, rtol=1e-3)


def test_measures_one_scale_over_all_batches():
    images = [part[..., 1:] for part in draw(32, 32, 8)]
    images = [np.concatenate([part, part[..., :1]], axis=-1) for part in images]
    found = measure(images, "scalar")
    assert found.shift == 0 and not found.per_channel
    std = np.concatenate(images).astype(np.float64).std()
    np.testing.assert_allclose(found.scale, 1 / std, rtol=1e-5)


@pytest.mark.parametrize(
    "kind, message",
    [
        (
            "per_channel",
            "channel 2 of .* give first_stage.latents_mean and latents_std",
        ),
        ("scalar", "latents have a standard .* give first_stage.scaling_factor"),
    ],
)
def test_what_does_not_vary_is_named(kind, message):
    std = np.array([1.0, 1.0, 0.0]) if kind == "per_channel" else np.zeros(3)
    images = draw(8, std=std)
    if kind == "scalar":
        images = [np.zeros_like(part) for part in images]
    with pytest.raises(ConfigError, match=message):
        measure(images, kind)


def section(**changes):
    overrides = {f"first_stage__{key}": value for key, value in changes.items()}
    return tiny_config("shapes_class", "", **overrides).first_stage


def test_reads_what_is_given():
    assert given_statistics(section(), 2) is None
    found = given_statistics(section(scaling_factor=0.18215), 2)
    assert found == LatentStatistics(0.0, 0.18215)
    found = given_statistics(section(latents_mean=(1, -1), latents_std=(2, 0.5)), 2)
    assert found == LatentStatistics((1.0, -1.0), (0.5, 2.0))


@pytest.mark.parametrize(
    "given, message",
    [
        (dict(latents_mean=(0.0, 0.0)), "go together"),
        (dict(latents_std=(1.0, 1.0)), "go together"),
        (
            dict(scaling_factor=1.0, latents_mean=(0.0,) * 2, latents_std=(1.0,) * 2),
            "either the one or both",
        ),
        (dict(scaling_factor=1.0, latent_statistics="per_channel"), "all channels"),
        (dict(scaling_factor=-1.0), "must be positive"),
        (dict(latents_mean=(0.0,) * 3, latents_std=(1.0,) * 3), "of 3 channels.* 2"),
        (dict(latents_mean=(0.0,), latents_std=(1.0,) * 2), "1 means and 2 standard"),
        (dict(latents_mean=(0.0,) * 2, latents_std=(1.0, 0.0)), "channel 1 .* of 0"),
        (dict(latents_mean=(0.0, float("nan")), latents_std=(1.0,) * 2), "channel 1"),
        (dict(latent_statistics="channel"), 'did you mean "per_channel"'),
    ],
)
def test_contradictions_are_refused(given, message):
    with pytest.raises(ConfigError, match=message):
        given_statistics(section(**given), 2)


def test_records_are_read_as_they_were_written():
    for statistics in (
        LatentStatistics(scale=0.18215),
        LatentStatistics(0.0609, 1.5305),
        LatentStatistics.of((0.1, 0.2, 0.3), (1.1, 2.2, 3.3)),
    ):
        record = json.loads(json.dumps(statistics.record()))
        assert LatentStatistics.from_record(record) == statistics
    # What version 0.1.0 wrote.
    old = LatentStatistics.from_record({"scaling_factor": 0.18215})
    assert old == LatentStatistics(0.0, 0.18215)


def test_differences_are_put_in_words():
    one = LatentStatistics.of((0.0, 4.0), (1.0, 2.0))
    assert one.difference(LatentStatistics.of((0.03, 3.95), (1.01, 1.97))) is None
    assert "factors are (1, 0.5) and 1" in one.difference(LatentStatistics())
    other = LatentStatistics.of((0.0, 3.0), (1.0, 2.0))
    assert "means of their latents are (0, 4) and (0, 3)" in one.difference(other)
    other = LatentStatistics.of((0.0,) * 3, (1.0,) * 3)
    assert "different numbers of channels" in one.difference(other)
    assert (
        LatentStatistics.of((0.0,) * 2, (2.0,) * 2).difference(
            LatentStatistics(scale=0.5)
        )
        is None
    )


THEIRS = LatentStatistics.of((0.0,) * 3, (2.0,) * 3)


@pytest.mark.parametrize(
    "given, theirs, message",
    [
        ({}, THEIRS, None),
        ({}, LatentStatistics(scale=0.7), None),
        (dict(latent_statistics="per_channel"), THEIRS, None),
        (dict(latent_statistics="per_channel"), LatentStatistics(), "one scaling"),
        (dict(scaling_factor=0.49), THEIRS, None),
        (dict(scaling_factor=0.7), THEIRS, "scaling factors are 0.7 and .0.5"),
    ],
)
def test_weights_bring_the_statistics_they_were_trained_on(
    given, theirs, message, monkeypatch
):
    meta = theirs.record() | {"first_stage": {"checksum": 1}}
    monkeypatch.setattr(checkpoint, "common_step", lambda workdir: 1)
    monkeypatch.setattr(checkpoint, "checkpoint_folder", lambda workdir, step: workdir)
    monkeypatch.setattr(checkpoint, "read_meta", lambda folder: meta)
    config = tiny_config("shapes_class", "", train__init_from="there")
    config.first_stage.update(given)

    def find(checksum):
        first = FirstStage(MODEL.first_stage, {}, None, {"checksum": checksum})
        return find_statistics(config, MODEL, first, None, None, {})

    if message is None:
        expected = theirs if "scaling_factor" not in given else (0.0, 0.49)
        assert find(1) == expected
        return
    with pytest.raises(ConfigError, match=message):
        find(1)
    if "scaling_factor" in given:
        # Weights of another first stage's latents say nothing of these.
        assert find(2).scale == given["scaling_factor"]


@pytest.mark.parametrize("theirs, same", [("7", True), ("8", False)])
def test_all_processes_take_the_first_stage_that_process_0_finds(
    theirs, same, monkeypatch
):
    """Here the second process, which sees an older step, or another file."""
    said = []

    def gather(text):
        said.append(text)
        return ["3"] if len(said) == 1 else [text.replace("7", theirs), text]

    def load(workdir, step, image_channels=None):
        del image_channels
        record = {"workdir": workdir, "step": step, "checksum": 7}
        return FirstStage(MODEL.first_stage, {}, None, record)

    monkeypatch.setattr(peers, "gather", gather)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    monkeypatch.setattr(latents, "load_first_stage", load)
    monkeypatch.setattr(latents, "keep_first_stage", lambda workdir, first: None)
    config = tiny_config("shapes_class", "")
    config.first_stage.workdir = "first"
    if same:
        assert latents.open_first_stage(config, {}, "run").record["step"] == 3
    else:
        with pytest.raises(CheckpointError, match="process 0: step 3, checksum 8"):
            latents.open_first_stage(config, {}, "run")
    assert said[0] == ""


def test_a_run_keeps_the_statistics_of_its_channels(shapes_dir, first_stage, tmp_path):
    options = {
        "first_stage__workdir": str(first_stage),
        "first_stage__latent_statistics": "per_channel",
    }
    for steps in (1, 2):
        train("shapes_class", shapes_dir, tmp_path, train__num_steps=steps, **options)
    metas = [checkpoint.load_weights(tmp_path, step)[2] for step in (1, 2)]
    first, second = map(LatentStatistics.from_record, metas)
    assert first == second and first.per_channel and len(set(first.shift)) == 4
    trained = sampling.load_model(tmp_path)
    for found, kept in zip(trained.frozen["statistics"], first, strict=True):
        np.testing.assert_array_equal(found, np.float32(kept))
    with pytest.raises(CheckpointError, match="latent_statistics is per_channel"):
        options.pop("first_stage__latent_statistics")
        train("shapes_class", shapes_dir, tmp_path, train__num_steps=3, **options)


def test_runs_of_before_there_were_statistics_go_on():
    config = tiny_config("shapes_class", "")
    recorded = config.to_dict()
    for key in ("latent_statistics", "latents_mean", "latents_std"):
        del recorded["first_stage"][key]
    recorded = upgrade(recorded)
    assert check_config(config, {"config": recorded}, allow_change=False) == []
    config.first_stage.latent_statistics = "per_channel"
    with pytest.raises(CheckpointError, match="latent_statistics is scalar"):
        check_config(config, {"config": recorded}, allow_change=True)


def test_statistics_are_hashable_and_plain():
    """Numbers alone on the host: they go into JSON and are compared with ==."""
    statistics = LatentStatistics.of((np.float32(0.5),), (np.float64(2.0),))
    assert all(type(value) is float for field in statistics for value in field)
    model = dataclasses.replace(MODEL)
    assert hash(model) is not None and hash(statistics) is not None
