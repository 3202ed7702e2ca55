"""Text states of frozen towers, stored once, beside the token ids that they are of."""

import contextlib
import errno
import itertools
import json
import pathlib
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax import latent_diffusion
from ldm_jax.batches import Data
from ldm_jax.build import make_model
from ldm_jax.conditioners import ClipText, Conditioner
from ldm_jax.config import to_dict
from ldm_jax.convert.formats import convert
from ldm_jax.data.encoded import Header
from ldm_jax.data.encoded.header import FILE
from ldm_jax.diffusion.latent_statistics import LatentStatistics
from ldm_jax.encoding.stream import Options
from ldm_jax.encoding.write_set import make_writer
from ldm_jax.errors import CheckpointError, ConfigError, Unreachable
from ldm_jax.sampling import run as sample
from ldm_jax.sampling.options import RunOptions
from ldm_jax.sharding import make_mesh
from ldm_jax.trained import (
    load_first_stage,
    load_model,
    load_text_towers,
    stored_text_states,
    with_text_towers,
)
from ldm_jax.weights.files import write_weights
from ldm_jax.weights.state_dict import to_state_dict
from ldm_jax.weights.tower_names import clip_rows
from tests.common import random_variables
from tests.runs import BARE, tiny_config, train

SIZE = dict(features=16, num_layers=1, num_heads=2, head_channels=8)


def write_tower(path, entry, seed=0):
    module = ClipText(**{k: v for k, v in entry.items() if k != "kind"})
    ids = jnp.zeros((1, entry["max_length"]), jnp.int32)
    params = random_variables(module, ids, seed=seed)["params"]
    write_weights(path, to_state_dict(clip_rows(module), params))
    return str(path)


def make_config(first_stage, shapes_dir, place):
    config = tiny_config("shapes_text", shapes_dir, **BARE)
    config.first_stage.workdir = str(first_stage)
    vocabulary = dict(vocab_size=64, max_length=config.data.inputs.caption.max_length)
    entry = dict(kind="clip_text", null_ids=(1, 0), **SIZE, **vocabulary)
    weights = write_tower(place / "tower.safetensors", entry)
    with config.unlocked():
        config.conditions.caption = entry | {"weights": weights, "dropout": 0.3}
    config.data.inputs.caption.dropout = 0.2
    return config


@pytest.fixture(scope="module")
def config(first_stage, shapes_dir, tmp_path_factory):
    """A run on latents of float32 with text states, which are encoded here."""
    place = tmp_path_factory.mktemp("states")
    config = make_config(first_stage, shapes_dir, place)
    towers = load_text_towers(config)
    options = Options("float32", False, 8, 16, 0, towers)
    write = make_writer(load_first_stage(first_stage), to_dict(config.data), options)
    write(place / "train", "validation")
    config.data.update(source="latents", name=str(place), split="train")
    return config


def batches_of(config, text_states):
    config.data.text_states = text_states
    data = Data(config.data, 0, 4, make_mesh(devices=jax.devices()[:1]))
    with contextlib.closing(data.train_batches(0)) as batches:
        return data, list(itertools.islice(batches, 2))


def test_the_loss_is_that_of_token_ids(config, first_stage, tmp_path):
    data, ids = batches_of(config, False)
    assert not data.null_states
    data, states = batches_of(config, True)
    assert ids[0]["caption"].ndim == 2 and states[0]["caption"].ndim == 3
    first = load_first_stage(first_stage)
    model = make_model(config, first.module)
    towers = load_text_towers(config)
    frozen = {"first_stage": first.params, "statistics": LatentStatistics().arrays()}
    stored = stored_text_states(config, model.conditioner, data, tmp_path)
    assert stored == {"caption": towers["caption"].checksum}

    def draw(batch):
        return latent_diffusion.init(model, jax.random.key(0), batch)

    params = jax.jit(draw)(states[0])
    # A run on states has no tower, nor computes one.
    assert not params["conditioner"]
    # A new denoiser's output is zero, whatever its conditions.
    params = jax.tree.map(lambda x: x + 0.02, params)
    whole = with_text_towers(params, config, {"text_states": stored}, tmp_path)
    loss = jax.jit(
        lambda *args: latent_diffusion.loss(model, *args, jax.random.key(1))[0]
    )
    with_null = frozen | {"null_states": data.null_states}
    for one, other in zip(ids, states, strict=True):
        model.conditioner.check(jax.device_get(other))
        values = loss(whole, frozen, one), loss(params, with_null, other)
        np.testing.assert_allclose(*values, rtol=1e-5)
    changed = other | {"caption": other["caption"] + 1}
    assert abs(loss(params, with_null, changed) - values[1]) > 1e-4


def test_says_what_does_not_go_with_stored_states(config, shapes_dir, tmp_path):
    data, _ = batches_of(config, True)
    place = pathlib.Path(config.data.name) / "train"
    text = (place / FILE).read_text()
    entry = to_dict(config.conditions.caption)
    changed = config.copy_and_resolve_references()
    made = Conditioner({"caption": entry})
    options = {k: v for k, v in entry.items() if k not in ("weights", "dropout")}
    other = write_tower(tmp_path / "other.safetensors", options, seed=1)
    changed.conditions.caption.weights = other
    with pytest.raises(ConfigError, match="other.safetensors is another text tower"):
        stored_text_states(changed, made, data, tmp_path)
    checksum = Header.read(place).text_states["caption"]["checksum"]
    with pytest.raises(CheckpointError, match="is not the text tower whose states"):
        meta = {"text_states": {"caption": checksum}}
        with_text_towers({"conditioner": {}}, changed, meta, tmp_path)
    changed.conditions.caption.frozen = False
    with pytest.raises(ConfigError, match="has no frozen tower of given weights"):
        stored_text_states(changed, made, data, tmp_path)
    changed.train.init_from = "elsewhere"
    with pytest.raises(ConfigError, match="does not go with train.init_from"):
        stored_text_states(changed, made, data, tmp_path)
    try:
        (place / FILE).write_text(json.dumps(json.loads(text) | {"text_states": {}}))
        with pytest.raises(ConfigError, match="holds none: encode with --text_states"):
            batches_of(config, True)
    finally:
        (place / FILE).write_text(text)
    images = tiny_config("shapes_text", shapes_dir, data__text_states=True)
    with pytest.raises(ConfigError, match="data.source=tfds has images"):
        Data(images.data, 0, 4, make_mesh())


def test_a_workdir_keeps_its_tower(config, tmp_path):
    """It needs nothing beside it, and takes no other tower."""
    data, _ = batches_of(config, True)
    made = Conditioner({"caption": to_dict(config.conditions.caption)})
    options = config, made, data, tmp_path / "run"
    stored = stored_text_states(*options)
    moved = config.copy_and_resolve_references()
    moved.conditions.caption.weights = str(tmp_path / "gone.safetensors")
    meta = {"text_states": stored}
    params = {"conditioner": {}}
    found = with_text_towers(params, moved, meta, tmp_path / "run")
    expected = load_text_towers(config)["caption"].params
    jax.tree.map(
        np.testing.assert_array_equal, found["conditioner"]["caption"], expected
    )
    # A run that continues takes it, too; a new one takes what its config names.
    assert stored_text_states(moved, *options[1:], stored) == stored
    with pytest.raises(ConfigError, match="there is no file or folder .*gone"):
        stored_text_states(moved, *options[1:])
    # What is there is written once.
    (copy,) = (tmp_path / "run").rglob("*.safetensors")
    before = copy.stat().st_mtime_ns
    stored_text_states(*options)
    assert copy.stat().st_mtime_ns == before
    data = bytearray(copy.read_bytes())
    data[-1] ^= 1
    # What was read is still mapped.
    copy.unlink()
    copy.write_bytes(data)
    with pytest.raises(CheckpointError, match=f"{copy} is damaged.*: rm {copy}"):
        with_text_towers(params, config, meta, tmp_path / "run")
    # What does not answer, or may not be read, is not to be removed.
    for error, kind, message in (
        (OSError(errno.ESTALE, "Stale file handle"), Unreachable, "does not answer"),
        (PermissionError(errno.EACCES, "no"), CheckpointError, "may not be read"),
    ):
        with mock.patch("ldm_jax.weights.files.read_part", side_effect=error):
            with pytest.raises(kind, match=message):
                with_text_towers(params, config, meta, tmp_path / "run")
    copy.unlink()
    whole = with_text_towers(params, config, meta, tmp_path / "run")
    jax.tree.map(np.testing.assert_array_equal, whole, found)
    with pytest.raises(CheckpointError, match=r"there is no .*copy.*bring either back"):
        with_text_towers(params, moved, meta, tmp_path / "run")


@pytest.mark.slow
def test_a_run_on_states_is_sampled_by_prompts(config, shapes_dir, tmp_path):
    changes = {"conditions": config.conditions, "data": config.data}
    config.data.text_states = True
    place = {"first_stage__workdir": config.first_stage.workdir}
    train("shapes_text", shapes_dir, tmp_path / "run", **place, **changes)
    # All that it needs is in it.
    for place in (config.conditions.caption.weights, config.first_stage.workdir):
        pathlib.Path(place).rename(f"{place}.gone")
    try:
        check_workdir(tmp_path / "run", tmp_path)
    finally:
        for place in (config.conditions.caption.weights, config.first_stage.workdir):
            pathlib.Path(f"{place}.gone").rename(place)


def check_workdir(workdir, tmp_path):
    """A run on text states samples by prompts, and is converted with its tower."""
    trained = load_model(workdir)
    assert "tokens" in trained.params["conditioner"]["caption"]
    assert not trained.config.data.text_states
    options = RunOptions(num_samples=1, seed=3)
    sample(trained, tmp_path / "samples", {"prompt": ["a red star"]}, options)
    convert(workdir, tmp_path / "model", to="diffusers")
    convert(tmp_path / "model", tmp_path / "back")
    again = load_model(tmp_path / "back")
    jax.tree.map(np.testing.assert_array_equal, again.params, trained.params)
