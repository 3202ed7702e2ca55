"""Stages trained on latents that were encoded once, beside those on images."""

import json
import shutil
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.shapes_class import get_config
from ldm_jax.config import to_dict
from ldm_jax.data.encoded import MEAN, STD, Header, LatentSource
from ldm_jax.diffusion.latent_statistics import LatentStatistics
from ldm_jax.encoding.stream import Options
from ldm_jax.encoding.write_set import make_writer
from ldm_jax.errors import ConfigError
from ldm_jax.latent_diffusion import decode, latents_of
from ldm_jax.trained import load_first_stage
from ldm_jax.training.latents import find_statistics, frozen_tree
from tests.runs import tiny_config, train

SAME = {
    "first_stage__scaling_factor": 0.5,
    "train__log_every": 1,
    "train__preview_images": 0,
    "data__flip": True,
}


@pytest.fixture(scope="module")
def folder(first_stage, shapes_dir, tmp_path_factory):
    """The tiny data as latents of float32, with mirrored copies."""
    outdir = tmp_path_factory.mktemp("latents")
    section = to_dict(tiny_config("shapes_class", shapes_dir).data)
    options = Options("float32", True, 8, 48, 0)
    write = make_writer(load_first_stage(first_stage), section, options)
    for split in "train", "validation":
        write(outdir / split, split)
    return outdir


def cached(folder):
    return {"data__source": "latents", "data__name": str(folder)}


def metrics_in(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return {
        (row["step"], name): value
        for row in rows
        for name, value in row.items()
        if "loss" in name
    }


def test_losses_are_those_of_images(first_stage, shapes_dir, folder, tmp_path):
    place = {"first_stage__workdir": str(first_stage)}
    train("shapes_class", shapes_dir, tmp_path / "inline", **place, **SAME)
    place |= cached(folder) | {"train__preview_images": 2}
    train("shapes_class", shapes_dir, tmp_path / "cached", **SAME | place)
    inline, found = (metrics_in(tmp_path / name) for name in ("inline", "cached"))
    assert inline.keys() == found.keys() and len(inline) >= 8
    for name, value in inline.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, err_msg=str(name))
    shown = {path.name for path in (tmp_path / "cached").rglob("*.png")}
    assert any("reconstructions" in name for name in shown), shown
    assert not any("inputs" in name for name in shown), shown


def test_bfloat16_is_its_rounding_away(first_stage, shapes_dir, folder):
    """Latents of a run are those of images but for the 8 bits of what is stored."""
    first = load_first_stage(first_stage)
    model = types.SimpleNamespace(first_stage=first.module)
    frozen = {"first_stage": first.params, "statistics": LatentStatistics().arrays()}
    source = LatentSource(folder, "train")
    stored = {
        name: np.stack([source[k][name] for k in range(8)]) for name in (MEAN, STD)
    }
    short = {k: jnp.asarray(v, jnp.bfloat16).astype("f4") for k, v in stored.items()}
    rng = jax.random.key(3)
    found, exact = (latents_of(model, frozen, each, rng) for each in (short, stored))
    scale = np.abs(exact).max()
    assert 0 < np.abs(found - exact).max() < 2**-7 * scale


def test_the_encoder_stays_behind(first_stage, folder):
    first, header = load_first_stage(first_stage), Header.read(folder / "train")
    data = types.SimpleNamespace(header=header)
    frozen = frozen_tree(first, LatentStatistics(), data, False)
    assert frozen["first_stage"].keys() == first.params.keys() - {
        *("encoder", "to_moments")
    }
    latents = jnp.zeros((1, *header.latent_shape))
    model = types.SimpleNamespace(first_stage=first.module)
    image = jax.eval_shape(lambda: decode(model, frozen, latents))
    assert image.shape == (1, 32, 32, 3)
    frozen = frozen_tree(first, LatentStatistics(), data, True)
    assert frozen["first_stage"].keys() == first.params.keys()


def test_statistics_are_those_of_the_header(folder):
    header = Header.read(folder / "train")
    data, config = types.SimpleNamespace(header=header), get_config("tiny")
    first_stage = types.SimpleNamespace(latent_channels=4)
    model = types.SimpleNamespace(first_stage=first_stage)
    found = find_statistics(config, model, None, None, data, {})
    assert found == (0.0, 1 / header.statistics["overall_std"])
    config.first_stage.latent_statistics = "per_channel"
    found = find_statistics(config, model, None, None, data, {})
    assert found.shift == tuple(header.statistics["mean"])
    np.testing.assert_allclose(1 / np.array(found.scale), header.statistics["std"])


def test_says_what_does_not_go_with_latents(first_stage, shapes_dir, folder, tmp_path):
    other = shutil.copytree(folder, tmp_path / "other")
    place = {"first_stage__workdir": str(first_stage)}
    for split in "validation", "train":
        path = other / split / "latents.json"
        header = json.loads(path.read_text())
        header["first_stage"] |= {"checksum": 1, "workdir": "/runs/another"}
        path.write_text(json.dumps(header))
    with pytest.raises(ConfigError, match="than those of data.name, .*/runs/another"):
        train("shapes_class", shapes_dir, tmp_path / "1", **place, **cached(other))
    with pytest.raises(ConfigError, match="a first stage is trained on"):
        train("shapes_autoencoder", shapes_dir, tmp_path / "2", **cached(folder))
    measured = {"eval__every": 4, "eval__distances": ("frechet",)}
    with pytest.raises(ConfigError, match="no images: set eval.reference to a file"):
        place |= cached(folder)
        train("shapes_class", shapes_dir, tmp_path / "3", **place, **measured)
