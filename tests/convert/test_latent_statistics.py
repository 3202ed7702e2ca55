"""Statistics of latents on their way to other formats and back."""

import dataclasses

import pytest

from ldm_jax.convert.diffusers import config as diffusers_config
from ldm_jax.convert.diffusers import write as diffusers_write
from ldm_jax.convert.model import Model
from ldm_jax.diffusion.latent_statistics import LatentStatistics
from ldm_jax.errors import ConversionError

KL = {"_class_name": "AutoencoderKL", "latent_channels": 2}
CHANNELS = LatentStatistics.of((0.1, -0.2), (1.5, 0.7))


@pytest.mark.parametrize(
    "written, expected",
    [
        ({}, (0.0, 0.18215)),
        (dict(scaling_factor=0.13025), (0.0, 0.13025)),
        (dict(scaling_factor=1.5305, shift_factor=0.0609), (0.0609, 1.5305)),
        (dict(scaling_factor=0.5, shift_factor=None, latents_mean=None), (0.0, 0.5)),
        (
            # (z - latents_mean) * scaling_factor / latents_std
            dict(latents_mean=[0.0, 1.0], latents_std=[2.0, 4.0], scaling_factor=0.5),
            ((0.0, 1.0), (0.25, 0.125)),
        ),
    ],
)
def test_reads_what_diffusers_says(written, expected):
    assert diffusers_config.latent_statistics(KL | written) == expected


def test_a_vq_model_that_says_nothing_is_scaled_as_diffusers_does_it():
    found = diffusers_config.latent_statistics({"_class_name": "VQModel"})
    assert found == LatentStatistics(scale=0.18215)


@pytest.mark.parametrize(
    "written, message",
    [
        (dict(latents_mean=[0.0, 0.0]), "latents_mean goes with"),
        (dict(latents_std=[1.0, 1.0]), "latents_mean goes with"),
        (
            dict(latents_mean=[0.0] * 2, latents_std=[1.0] * 2, shift_factor=0.1),
            "without a shift_factor",
        ),
        (dict(latents_mean=[0.0] * 3, latents_std=[1.0] * 3), "3 channels.* 2"),
        (dict(scaling_factor=0), "scaling_factor must be a number.* got 0"),
        (dict(scaling_factor=None), "scaling_factor must be a number.* got None"),
        (dict(scaling_factor=float("inf")), "scaling_factor must be a number"),
        (dict(shift_factor="x"), "shift_factor must be a number.* got 'x'"),
        (dict(latents_mean=[0.0] * 2, latents_std=[1.0, 0.0]), "channel 1"),
    ],
)
def test_what_diffusers_cannot_mean_is_named(written, message):
    with pytest.raises(ConversionError, match=message):
        diffusers_config.latent_statistics(KL | written)


@pytest.mark.parametrize(
    "statistics, keys",
    [
        (LatentStatistics(scale=0.18215), {"scaling_factor"}),
        (LatentStatistics(0.0609, 1.5305), {"scaling_factor", "shift_factor"}),
        (CHANNELS, {"scaling_factor", "latents_mean", "latents_std"}),
        # A mean per channel, one deviation for all.
        (
            LatentStatistics((0.1, -0.2), 2.0),
            {"scaling_factor", "latents_mean", "latents_std"},
        ),
    ],
)
def test_diffusers_and_back(statistics, keys):
    written = diffusers_config.statistics_config(statistics, "AutoencoderKL")
    assert written.keys() == keys
    found = diffusers_config.latent_statistics(KL | written)
    for back, there in zip(found, statistics, strict=True):
        assert back == pytest.approx(there, rel=1e-15) or set(back) == {there}


def test_a_vq_model_has_no_place_for_more_than_a_factor():
    for statistics in (CHANNELS, LatentStatistics(0.1, 1.0)):
        with pytest.raises(ConversionError, match="VQModel has one scaling_factor"):
            diffusers_config.statistics_config(statistics, "VQModel")


def test_compvis_has_no_place_for_more_than_a_factor():
    model = Model({}, {}, statistics=LatentStatistics(scale=0.18215))
    assert model.scaling_factor == 0.18215
    for statistics in (CHANNELS, LatentStatistics(0.1, 1.0)):
        other = dataclasses.replace(model, statistics=statistics)
        with pytest.raises(ConversionError, match="one scale_factor for all channels"):
            other.scaling_factor  # noqa: B018


@pytest.mark.parametrize(
    "kept",
    [
        dict(scaling_factor=0.5, latents_mean=[0.1, 0.3], latents_std=[0.3, 0.7]),
        dict(scaling_factor=1.1, shift_factor=0.2),
        {},
    ],
)
def test_what_was_read_is_written_as_it_was(kept):
    statistics = diffusers_config.latent_statistics(KL | kept)
    origin = dict(format="diffusers", configs={"vae": KL | kept})
    model = Model({}, {}, statistics=statistics, origin=origin)
    found = diffusers_write.statistics_of(model, "vae", "AutoencoderKL")
    assert found == ({"scaling_factor": 0.18215} | kept)
    # Another model's numbers replace them, and none are left over.
    model.statistics = LatentStatistics(scale=2.0)
    found = diffusers_write.statistics_of(model, "vae", "AutoencoderKL")
    assert diffusers_config.latent_statistics(KL | kept | found) == model.statistics
