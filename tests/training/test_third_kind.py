"""A kind of first stage that the package does not have: one row is all it takes."""

import json
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from ldm_jax import sampling, sharding
from ldm_jax.convert import workdir as workdirs
from ldm_jax.convert.formats import convert
from ldm_jax.errors import ConfigError, ConversionError
from ldm_jax.evaluation import first_stage as evaluation
from ldm_jax.images import read_image, to_float
from ldm_jax.models.first_stages import (
    FIRST_STAGES,
    FirstStageKind,
    Measures,
    Regulariser,
)
from ldm_jax.models.posteriors import PointPosterior
from ldm_jax.trained import load_first_stage
from tests.runs import assert_same_bits, train, weights_of
from tests.sampling.common import run


class PlainAutoencoder(nn.Module):
    """Patches to latents and back; nothing regularises the latents."""

    latent_channels: int = 4
    image_channels: int = 3
    dtype: Any = jnp.float32

    downsampling_factor = 2

    def setup(self):
        self.squeeze = nn.Conv(self.latent_channels, (2, 2), 2)
        self.spread = nn.ConvTranspose(8, (2, 2), (2, 2))
        self.paint = nn.Conv(self.image_channels, (3, 3))

    def encode(self, images, train=False):
        return PointPosterior(self.squeeze(images))

    def decode(self, latents, train=False):
        return self.paint(nn.relu(self.spread(latents)))

    def reconstruct(self, images, rng=None, train=False, temperature=1.0):
        posterior = self.encode(images)
        features = nn.relu(self.spread(posterior.mode()))
        return self.paint(features), posterior, features

    def __call__(self, images):
        return self.decode(self.encode(images).mode())


def last_layer(module, params, features):
    layer, features = jax.lax.stop_gradient((params["paint"], features))
    paint = nn.Conv(module.image_channels, (3, 3))
    return (
        lambda kernel: paint.apply({"params": layer | {"kernel": kernel}}, features),
        layer["kernel"],
    )


def brightness(module, params, posterior):
    return {"mean_latent": posterior.mode().mean(axis=(1, 2, 3))}


PLAIN = FirstStageKind(
    PlainAutoencoder,
    latent_parts=("squeeze",),
    decoder_parts=("spread", "paint"),
    regulariser=Regulariser(lambda posterior, options: (0.0, {}), "mean"),
    last_layer=last_layer,
    measures=Measures(rows=brightness, units={"mean_latent": "on average"}),
)


@pytest.fixture(scope="module", autouse=True)
def row():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(FIRST_STAGES, "plain", PLAIN)
        yield


def _train(data_dir, workdir, **overrides):
    section = ConfigDict({"kind": "plain"})
    train("shapes_autoencoder", data_dir, workdir, first_stage=section, **overrides)


@pytest.fixture(scope="module")
def workdir(row, shapes_dir, tmp_path_factory):
    """Workdir of the third kind, trained in two parts."""
    folder = tmp_path_factory.mktemp("plain")
    _train(shapes_dir, folder, whole=True, train__num_steps=2)
    _train(shapes_dir, folder, whole=True)
    return folder


@pytest.fixture(scope="module")
def second(workdir, shapes_dir, tmp_path_factory):
    """Workdir of a second stage on its latents."""
    folder = tmp_path_factory.mktemp("diffusion")
    options = {"first_stage__workdir": str(workdir)}
    train("shapes_class", shapes_dir, folder, **options)
    return folder


def test_it_trains_and_resumes_bit_for_bit(workdir, shapes_dir, tmp_path):
    _train(shapes_dir, tmp_path)
    assert_same_bits(weights_of(workdir), weights_of(tmp_path))
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    trained, evaluated = rows[-2:]
    assert trained["step"] == 4 and np.isfinite(trained["loss"])
    assert trained["disc_weight"] > 0
    assert np.isfinite(evaluated["eval/psnr"])
    assert np.isfinite(evaluated["eval/mean_latent"]) and "eval/kl" not in evaluated


def test_it_is_evaluated(workdir):
    first = load_first_stage(workdir)
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    batch = {"image": images, "mask": np.array([True, True, True, False])}
    batches = [sharding.put_batch(batch, mesh)]
    results, _ = evaluation.evaluate(first, batches, mesh)
    assert list(results) == ["psnr", "ssim", "l1", "mean_latent"]
    assert results["psnr"].count == 3
    latents = first.module.apply(
        {"params": first.params}, to_float(images[:3]), method="encode"
    )
    expected = float(latents.mode().mean())
    assert results["mean_latent"].value == pytest.approx(expected, rel=1e-4)


def test_a_second_stage_trains_on_it_and_samples_through_it(second, tmp_path):
    trained = sampling.load_model(second)
    grid = run(trained, tmp_path, num_samples=2, num_steps=2)
    assert read_image(tmp_path / "samples" / "000001.png").shape == (32, 32, 3)
    assert grid.exists()


def test_a_workdir_of_it_is_read_and_written(second, tmp_path):
    model = workdirs.read(second)
    workdirs.write(model, tmp_path / "copy")
    again = workdirs.read(tmp_path / "copy")
    for one, other in ((model, again), (model.first_stage, again.first_stage)):
        assert one.config == other.config
        for name in ("params", "ema_params"):
            assert_same_bits(getattr(one, name), getattr(other, name))
    assert again.first_stage.config["first_stage"]["kind"] == "plain"
    frozen = [sampling.load_model(w).frozen for w in (second, tmp_path / "copy")]
    assert_same_bits(*frozen)


def test_formats_without_it_say_so(workdir, second, tmp_path):
    for folder in (workdir, second):
        for target, name in (("model.safetensors", "CompVis"), ("folder", "diffusers")):
            with pytest.raises(ConversionError, match=f'"plain" .* for {name}'):
                convert(folder, tmp_path / target)


def test_its_decoder_is_trained_alone(workdir, second, shapes_dir, tmp_path):
    tuned, whole = tmp_path / "tuned", tmp_path / "whole"
    start = {"train__init_from": str(workdir)}
    _train(shapes_dir, tuned, train__freeze=("latents",), **start)
    before, after = (load_first_stage(folder).params for folder in (workdir, tuned))
    assert_same_bits(before["squeeze"], after["squeeze"])
    assert (before["spread"]["kernel"] != after["spread"]["kernel"]).any()
    trained = sampling.load_model(second, decoder=tuned)
    assert_same_bits(trained.frozen["first_stage"], after)
    _train(shapes_dir, whole, **start)
    with pytest.raises(ConfigError, match="of other latents .* squeeze/.* differs"):
        sampling.load_model(second, decoder=whole)
