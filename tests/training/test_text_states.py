"""Text states of frozen towers, stored once, beside the token ids that they are of."""

import contextlib
import itertools
import json
import pathlib
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax import latent_diffusion
from ldm_jax.batches import Data
from ldm_jax.build import make_model
from ldm_jax.conditioners import ClipText
from ldm_jax.config import to_dict
from ldm_jax.data.encoded import Header
from ldm_jax.data.encoded.header import FILE
from ldm_jax.diffusion.latent_statistics import LatentStatistics
from ldm_jax.encoding.stream import Options
from ldm_jax.encoding.write_set import make_writer
from ldm_jax.errors import CheckpointError, ConfigError
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
from tests.runs import BARE, tiny_config, train

SIZE = dict(features=16, num_layers=1, num_heads=2, head_channels=8)


def write_tower(path, entry, seed=0):
    module = ClipText(**{k: v for k, v in entry.items() if k != "kind"})
    ids = jnp.zeros((1, entry["max_length"]), jnp.int32)
    params = jax.jit(module.init)(jax.random.key(seed), ids)["params"]
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


def test_the_loss_is_that_of_token_ids(config, first_stage):
    data, ids = batches_of(config, False)
    assert not data.null_states
    data, states = batches_of(config, True)
    assert ids[0]["caption"].ndim == 2 and states[0]["caption"].ndim == 3
    first = load_first_stage(first_stage)
    model = make_model(config, first.module)
    towers = load_text_towers(config)
    frozen = {"first_stage": first.params, "statistics": LatentStatistics().arrays()}
    stored = stored_text_states(config, model.conditioner, data)
    assert stored == {"caption": towers["caption"].checksum}

    def draw(batch):
        return latent_diffusion.init(model, jax.random.key(0), batch)

    params = jax.jit(draw)(states[0])
    # A run on states has no tower, nor computes one.
    assert not params["conditioner"]
    # A new denoiser's output is zero, whatever its conditions.
    params = jax.tree.map(lambda x: x + 0.02, params)
    whole = with_text_towers(params, config, {"text_states": stored})
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
    made = types.SimpleNamespace(entries={"caption": entry})
    options = {k: v for k, v in entry.items() if k not in ("weights", "dropout")}
    other = write_tower(tmp_path / "other.safetensors", options, seed=1)
    changed.conditions.caption.weights = other
    with pytest.raises(ConfigError, match="other.safetensors is another text tower"):
        stored_text_states(changed, made, data)
    checksum = Header.read(place).text_states["caption"]["checksum"]
    with pytest.raises(CheckpointError, match="is not the text tower whose states"):
        meta = {"text_states": {"caption": checksum}}
        with_text_towers({"conditioner": {}}, changed, meta)
    changed.conditions.caption.frozen = False
    with pytest.raises(ConfigError, match="has no frozen tower of given weights"):
        stored_text_states(changed, made, data)
    changed.train.init_from = "elsewhere"
    with pytest.raises(ConfigError, match="does not go with train.init_from"):
        stored_text_states(changed, made, data)
    try:
        (place / FILE).write_text(json.dumps(json.loads(text) | {"text_states": {}}))
        with pytest.raises(ConfigError, match="holds none: encode with --text_states"):
            batches_of(config, True)
    finally:
        (place / FILE).write_text(text)
    images = tiny_config("shapes_text", shapes_dir, data__text_states=True)
    with pytest.raises(ConfigError, match="data.source=tfds has images"):
        Data(images.data, 0, 4, make_mesh())


@pytest.mark.slow
def test_a_run_on_states_is_sampled_by_prompts(config, shapes_dir, tmp_path):
    changes = {"conditions": config.conditions, "data": config.data}
    config.data.text_states = True
    place = {"first_stage__workdir": config.first_stage.workdir, **BARE}
    train("shapes_text", shapes_dir, tmp_path / "run", **place, **changes)
    trained = load_model(tmp_path / "run")
    assert "tokens" in trained.params["conditioner"]["caption"]
    assert not trained.config.data.text_states
