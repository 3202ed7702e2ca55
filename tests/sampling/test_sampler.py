"""The importable Sampler: what sample.py draws, by programs that are kept."""

import pathlib
import re

import jax
import numpy as np
import pytest

from ldm_jax import generate
from ldm_jax.console import warn_once
from ldm_jax.errors import ConfigError
from ldm_jax.images import read_image
from ldm_jax.latent_diffusion import decode
from ldm_jax.models.operations.kernels import this_device
from ldm_jax.sampling.options import complete
from ldm_jax.sampling.sampler import Sampler
from tests.sampling.common import make_trained, run, with_small_backbone


@pytest.fixture(scope="module")
def sampler():
    return Sampler(with_small_backbone(make_trained("label")))


def test_draws_what_the_command_draws(sampler, tmp_path):
    options = dict(num_steps=2, guidance_scale=3.0, seed=5)
    run(sampler.trained, tmp_path, {"labels": ["star", "1"]}, num_samples=2, **options)
    images = sampler(labels=["star", 1], **options)
    assert images.shape == (2, 16, 16, 3) and images.dtype == np.uint8
    for k, image in enumerate(images):
        path = tmp_path / "samples" / f"{k:06d}.png"
        np.testing.assert_array_equal(image, read_image(path))


def test_a_path_has_the_samples_of_the_command(sampler):
    path = sampler(labels=["star"], interpolate="0,4", num_steps=1, batch_size=16)
    assert len(path) == 16


@pytest.mark.parametrize(
    "given, message",
    [
        (dict(labels=[]), "labels is empty: give a value, or leave it out"),
        (dict(labels=[[1, 2], [3]]), "labels must be text or a number, .* type list"),
        (dict(labels=np.zeros((2, 2))), "labels must be text .* of type ndarray"),
        (dict(size=32), r"size must be \(height, width\) in pixels, got 32"),
        (dict(size=(32,)), r"size must be \(height, width\) in pixels, got \(32,\)"),
        (dict(interpolate=(0, -1)), r"interpolate must be \(first, last\)"),
        (dict(interpolate="0"), "--interpolate=0: give the numbers of the two"),
        (dict(guidance_interval="0.8,0.2"), "--guidance_interval=0.8,0.2: give"),
        (dict(guidance_scale="a"), "--guidance_scale=a: give a number"),
    ],
)
def test_what_is_nearly_right_is_said_to_be_wrong(sampler, given, message):
    with pytest.raises(ConfigError, match=message):
        sampler(**dict(labels=[1], num_samples=2) | given)


@pytest.mark.parametrize(
    "idle",
    [
        dict(guidance_interval=(0.2, 0.8)),
        dict(guidance_rescale=0.7),
        dict(temperature=0.5),
        dict(temperature=0.5, sampler="dpmpp_2m"),
    ],
)
def test_what_has_no_effect_is_named(sampler, caplog, idle):
    warn_once.cache_clear()
    name = next(iter(idle))
    complete(sampler.trained, dict(guidance_scale=1.0) | idle)
    assert f"--{name}={idle[name]} has no effect: " in caplog.text
    caplog.clear()
    acting = dict(guidance_scale=2.0, sampler="ddim", eta=1.0)
    complete(sampler.trained, idle | acting)
    # Or as it is anyway.
    usual = dict(guidance_rescale=0.0, guidance_interval=[0, 1], temperature=1.0)
    complete(sampler.trained, dict(guidance_scale=1.0) | usual)
    assert not caplog.text


def test_takes_arrays_of_numbers_and_files_of_lines(sampler, tmp_path, caplog):
    path = tmp_path / "labels.txt"
    path.write_text("star\n1\n2\n")
    given = dict(num_steps=1, batch_size=2, size=np.array([16, 16]))
    images = sampler(labels_file=str(path), **given)
    # No file of 3 lines for 16 samples.
    assert len(images) == 3 and not caplog.text
    label = sampler.trained.class_names.index("star")
    again = sampler(labels=np.array([label, 1, 2]), **given)
    np.testing.assert_array_equal(again, images)


def test_a_second_call_of_the_same_shapes_compiles_nothing(sampler, monkeypatch):
    def call(**changes):
        given = dict(labels=["star", "heart"], seed=0, guidance_scale=2.0, num_steps=2)
        return sampler(**given | changes)

    first = call()
    before, compiled = len(sampler._programs), []
    real = jax.stages.Lowered.compile
    monkeypatch.setattr(
        jax.stages.Lowered, "compile", lambda *args: compiled.append(1) or real(*args)
    )
    np.testing.assert_array_equal(call(), first)
    others = [call(seed=1), call(guidance_scale=4.5), call(labels=["1", "2"])]
    assert len(sampler._programs) == before and not compiled
    for other in others:
        assert (other != first).any()
    assert call(size=(16, 32)).shape == (2, 16, 32, 3)
    assert len(sampler._programs) == before + 1 and compiled == [1]


def test_programs_are_traced_with_the_mesh(sampler, monkeypatch):
    """Else no kernel may compute attention that XLA cannot split."""
    seen, real = [], generate.sample_images

    def sample_images(*arguments):
        seen.append((jax.sharding.get_abstract_mesh().size, this_device().scattered))
        return real(*arguments)

    monkeypatch.setattr(generate, "sample_images", sample_images)
    sampler(labels=["star"], num_steps=3)
    assert seen == [(jax.local_device_count(), False)]


def test_gives_latents_that_decode_to_the_images(sampler):
    given = dict(labels=3, num_samples=2, num_steps=2, seed=2)
    latents, images = sampler(latents=True, **given), sampler(**given)
    assert latents.dtype == np.float32 and len(latents) == len(images) == 2
    decoded = decode(sampler.trained.model, sampler.trained.frozen, latents)
    shown = np.clip(np.rint((np.asarray(decoded) + 1) * 127.5), 0, 255)
    assert np.abs(shown - images).max() <= 1


def test_the_snippet_of_the_docs_runs(sampler, monkeypatch):
    text = (pathlib.Path(__file__).parents[2] / "docs" / "sampling.md").read_text()
    (snippet,) = re.findall(r"```python\n([^`]*Sampler.load[^`]*)```", text)
    monkeypatch.setattr(Sampler, "load", lambda workdir: sampler)
    names = {}
    exec(snippet.replace("num_steps=20", "num_steps=2"), names)
    assert names["images"].shape == names["more"].shape == (2, 16, 16, 3)
    assert names["latents"].shape == (2, 16, 16, 3)


def test_says_what_is_wrong(sampler):
    for given, message in (
        ({"lables": ["star"]}, 'lables: did you mean "labels"'),
        ({"labels": ["sttar"]}, "no class 'sttar'"),
        ({"guidance_scale": float("nan")}, "guidance_scale"),
        ({"num_samples": 0}, "num_samples must be from 1"),
        ({"size": (0, 16)}, "--height=0 is not a multiple"),
        ({"prompt": "a star"}, "is not a condition of this model"),
    ):
        with pytest.raises(ConfigError, match=message):
            sampler(**given)
