"""Sampling runs: the same on any devices and batches, resumable, clear on mistakes."""

import json
import re

import jax
import numpy as np
import pytest

from ldm_jax import sampling
from ldm_jax.diffusion.sample_options import NAMES
from ldm_jax.errors import ConfigError
from ldm_jax.images import read_image
from ldm_jax.sampling.options import RunOptions, complete
from ldm_jax.sampling.sampler import Job, Sampler
from ldm_jax.sampling.task import make_task
from tests.runs import command, finish
from tests.sampling.common import (
    make_trained,
    picture,
    run,
    with_small_backbone,
    write_image,
)


@pytest.fixture(autouse=True)
def two_devices(monkeypatch):
    devices = jax.local_devices()[:2]
    monkeypatch.setattr(jax, "local_devices", lambda: devices)


@pytest.fixture(scope="module")
def trained():
    return with_small_backbone(make_trained("label"))


def _images(trained, devices, batch, monkeypatch):
    options = complete(trained, {"guidance_scale": 2.0, "eta": 1.0})
    task = make_task(
        trained, {"labels": ["0", "3", "5"]}, RunOptions(num_samples=8), options
    )
    monkeypatch.setattr(jax, "local_devices", lambda: jax.devices()[:devices])
    drawn = Sampler(trained).draw(Job(task, 7, options), [range(8)], batch)
    return np.concatenate([images for _, _, images in drawn])


def test_sample_k_is_the_same_on_any_devices_and_in_any_batch(trained, monkeypatch):
    expected = _images(trained, 1, 8, monkeypatch).astype(int)
    assert len(np.unique(expected.reshape(8, -1), axis=0)) == 8
    for devices, batch in ((2, 4), (8, 8), (1, 1)):
        found = _images(trained, devices, batch, monkeypatch)
        # Rounding may move a value across the edge between two bytes.
        assert np.abs(found - expected).max() <= 1, (devices, batch)


def test_a_run_writes_images_a_grid_and_the_array(trained, tmp_path, capsys):
    grid = run(
        trained,
        tmp_path,
        num_samples=5,
        batch_size=2,
        sampler="unipc",
        num_steps=3,
        given={"labels": ["star", "1"]},
        npz=True,
    )
    assert "columns: star, square" in capsys.readouterr().out
    # Evaluators of folders take all that they find: samples are alone in theirs.
    names = sorted(path.name for path in (tmp_path / "samples").iterdir())
    assert names == [f"{k:06d}.png" for k in range(5)]
    beside = {path.name for path in tmp_path.iterdir()} - {"samples"}
    assert beside == {"grid.png", "samples.npz", "settings.json", "sheet.png"}
    assert read_image(grid).shape == (3 * 18 - 2, 2 * 18 - 2, 3)
    with np.load(tmp_path / "samples.npz") as arrays:
        assert arrays["arr_0"].shape == (5, 16, 16, 3)
        assert arrays["arr_0"].dtype == np.uint8
        star = trained.class_names.index("star")
        assert arrays["arr_1"].tolist() == [star, 1, star, 1, star]
        np.testing.assert_array_equal(
            arrays["arr_0"][3], read_image(tmp_path / "samples" / "000003.png")
        )


def test_samples_without_guidance_stand_beside_them(trained, tmp_path, capsys):
    options = dict(num_samples=3, num_steps=2, given={"labels": ["star"]})
    run(trained, tmp_path / "one", guidance_scale=1.0, **options)
    narrow = read_image(tmp_path / "one" / "sheet.png").shape[1]
    guided = dict(options, guidance_scale=3.0, show_unguided=True)
    run(trained, tmp_path / "two", **guided)
    assert "3 of them without guidance in" in capsys.readouterr().out
    for k in range(3):
        plain, unguided, sample = (
            read_image(tmp_path / folder / f"{k:06d}.png")
            for folder in ("one/samples", "two/unguided", "two/samples")
        )
        np.testing.assert_array_equal(plain, unguided)
        assert (sample != unguided).any()
    assert read_image(tmp_path / "two" / "sheet.png").shape[1] > narrow
    run(trained, tmp_path / "two", **guided)
    assert "without guidance" not in capsys.readouterr().out
    with pytest.raises(ConfigError, match="not guided; give --guidance_scale"):
        run(trained, tmp_path / "one", show_unguided=True, guidance_scale=1, **options)


def test_a_cut_run_draws_only_what_is_missing(trained, tmp_path, capsys):
    run(trained, tmp_path, num_samples=6, batch_size=8)
    samples = tmp_path / "samples"
    first = {p.name: p.read_bytes() for p in samples.iterdir()}
    times = {p.name: p.stat().st_mtime_ns for p in samples.iterdir()}
    (samples / "000002.png").unlink()
    capsys.readouterr()
    run(trained, tmp_path, num_samples=7, batch_size=8)
    assert "5 of 7 samples are there already" in capsys.readouterr().out
    assert (samples / "000002.png").read_bytes() == first["000002.png"]
    for name in first.keys() - {"000002.png"}:
        assert (samples / name).stat().st_mtime_ns == times[name]
    averaged = trained._replace(weights="ema_params")
    with pytest.raises(ConfigError, match="other settings .*weights: params there"):
        run(averaged, tmp_path, num_samples=7, batch_size=8)
    with pytest.raises(ConfigError, match="other settings .*seed: 0 there, 1 here"):
        run(trained, tmp_path, num_samples=7, seed=1)


@pytest.mark.parametrize(
    "given, message",
    [
        ({"given": {"labels": ["sttar"]}}, "no class 'sttar'; did you mean \"star\""),
        ({"given": {"labels": ["8"]}}, "there is no class '8'"),
        ({"sampler": "ddimm"}, "ddimm"),
        ({"num_steps": 0}, "num_steps must be from 1"),
        ({"sampler": "plms", "eta": 1.0}, "no option 'eta'"),
        ({"eta": 2.0}, "eta must be in [0, 1], got 2.0"),
    ],
)
def test_wrong_options_are_named(given, message, trained, tmp_path):
    with pytest.raises(ConfigError) as error:
        run(trained, tmp_path / "out", num_samples=1, **given)
    assert message in str(error.value)
    assert not (tmp_path / "out").exists()


def test_what_is_not_finite_is_not_written(trained, tmp_path):
    params = jax.tree.map(np.copy, trained.params)
    params["backbone"]["Conv_0"]["bias"][:] = np.nan
    with pytest.raises(ConfigError, match="sample 0 is not finite"):
        run(trained._replace(params=params), tmp_path, num_samples=2)
    assert not list(tmp_path.rglob("0*.png"))


def test_a_run_goes_on_with_its_scales_in_their_order(tmp_path):
    trained = with_small_backbone(make_trained("label", "caption"))
    given = {"labels": ["1"], "prompt": ["a star"]}
    options = dict(given=given, num_samples=1, num_steps=2)
    scales = {"label": 2.0, "caption": 3.0}
    path, written = tmp_path / "settings.json", []
    for _ in range(2):
        run(trained, tmp_path, guidance_scale=scales, **options)
        written.append(json.loads(path.read_text()))
        # Older versions did not say what the pixels are.
        older = {k: v for k, v in written[0].items() if k != "pixels"}
        path.write_text(json.dumps(older))
    assert written[0] == written[1] and written[0]["pixels"] == {"channels": "rgb"}
    with pytest.raises(ConfigError, match="other settings .*options"):
        scales = dict(reversed(scales.items()))
        run(trained, tmp_path, guidance_scale=scales, **options)


def test_noise_that_was_found_is_not_covered_by_other(trained, tmp_path):
    image = write_image(tmp_path / "image.png", picture(0, 16, 16))
    given = {"image": [image], "labels": ["1"]}
    config = trained.config.copy_and_resolve_references()
    config.sample.eta = 1.0
    noisy = trained._replace(config=config)
    options = dict(given=given, num_samples=1, num_steps=2, invert=True)
    run(noisy, tmp_path / "out", **options)
    settings = json.loads((tmp_path / "out" / "settings.json").read_text())
    assert settings["options"]["eta"] is None
    for wrong in ({"eta": 1.0}, {"sampler": "ddpm"}):
        with pytest.raises(ConfigError, match="--invert: dd.m would cover"):
            run(noisy, tmp_path / "no", **options, **wrong)


def test_a_first_stage_is_not_a_model_to_sample_from(first_stage):
    with pytest.raises(ConfigError, match="holds a run of the stage 'autoencoder'"):
        sampling.load_model(first_stage)


def test_every_option_is_a_flag():
    status, output = finish(command("sample.py", "--help"))
    assert status == 0, output
    found = set(re.findall(r"--(?:\[no\])?(\w+)", output))
    assert {*NAMES, *RunOptions.__dataclass_fields__} <= found


def test_the_script_draws(second_stage, tmp_path):
    image = picture(0, 32, 32)
    mask = np.zeros((32, 32), np.uint8)
    mask[8:20, 5:30] = 255
    arguments = {
        "workdir": second_stage,
        "outdir": tmp_path / "out",
        "image": write_image(tmp_path / "image.png", image),
        "mask": write_image(tmp_path / "mask.png", mask),
        "labels": "star,heart",
        "strength": 0.8,
        "sampler": "plms",
        "guidance_interval": "0.1,0.9",
        "num_samples": 3,
    }
    flags = [f"--{flag}={value}" for flag, value in arguments.items()]
    status, output = finish(command("sample.py", *flags))
    assert status == 0, output
    folder = tmp_path / "out" / "samples"
    samples = [read_image(folder / f"{k:06d}.png") for k in range(3)]
    for sample in samples:
        np.testing.assert_array_equal(sample[mask == 0], image[mask == 0])
    assert (samples[0] != samples[2]).any()
    assert (tmp_path / "out" / "sheet.png").exists()
