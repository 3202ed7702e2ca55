"""Towers from files: whose names are known, what is taken, what is refused."""

import json

import numpy as np
import pytest

from ldm_jax.errors import ConversionError
from ldm_jax.models.text_encoder import TextEncoder
from ldm_jax.weights.files import write_weights
from ldm_jax.weights.state_dict import to_state_dict
from ldm_jax.weights.tower_names import (
    bert_rows,
    clip_image_rows,
    clip_rows,
    ldm_bert_rows,
)
from ldm_jax.weights.towers import load_tower
from tests.common import load_case
from tests.convert.test_image_rows import TOWER
from tests.convert.test_text_rows import BERT, CLIP, to_open_clip

TEXT = {
    key.removeprefix("text_model."): value
    for key, value in load_case("clip_text_gelu").state_dict.items()
}
IMAGE = load_case("clip_image").state_dict
PROJECTION = {"text_projection.weight": np.eye(32, dtype=np.float32)}


def prefixed(state_dict):
    return {f"text_model.{key}": value for key, value in state_dict.items()}


def float32(state_dict):
    return {key: np.asarray(value, np.float32) for key, value in state_dict.items()}


# What a file may hold, by the class that wrote it.
CLIP_MODEL = prefixed(TEXT) | IMAGE | PROJECTION | {"logit_scale": np.float32(4)}
TEXT_FILES = {
    "CLIPTextModel": TEXT,
    "CLIPTextModel before version 5": prefixed(TEXT),
    "CLIPTextModelWithProjection": prefixed(TEXT) | PROJECTION,
    "CLIPModel": CLIP_MODEL,
    "OpenCLIP": to_open_clip(TEXT) | {"visual.proj": np.eye(3)},
}
IMAGE_FILES = {"CLIPVisionModelWithProjection": IMAGE, "CLIPModel": CLIP_MODEL}


def write(folder, state_dict, name="model.safetensors", config=None):
    write_weights(folder / name, float32(state_dict))
    if config:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("num_layers", [2, 1])
@pytest.mark.parametrize("name", TEXT_FILES)
def test_text_tower_is_read_whole_or_up_to_the_last_but_one_layer(
    tmp_path, name, num_layers
):
    encoder = CLIP.copy(num_layers=num_layers)
    params = load_tower(write(tmp_path, TEXT_FILES[name]), encoder)
    rows = clip_rows(encoder, 2 - num_layers)
    written = to_state_dict(rows, params)
    assert written.keys() == {row.theirs for row in rows if row.ours}
    for key, array in written.items():
        np.testing.assert_array_equal(array, TEXT[key], err_msg=key)


@pytest.mark.parametrize("name", IMAGE_FILES)
def test_image_tower_is_read(tmp_path, name):
    params = load_tower(write(tmp_path, IMAGE_FILES[name]), TOWER)
    written = to_state_dict(clip_image_rows(TOWER), params)
    assert written.keys() == IMAGE.keys()
    for key, array in written.items():
        np.testing.assert_array_equal(array, IMAGE[key], err_msg=key)


def test_text_encoder_of_compvis_is_read_as_diffusers_saves_it(tmp_path):
    case = load_case("bert_embedder")
    random = np.random.default_rng(0)
    shapes = {
        r.ours: case.state_dict[r.theirs].shape for r in bert_rows(BERT) if r.ours
    }
    theirs = {
        row.theirs: random.standard_normal(shapes[row.ours], np.float32)
        for row in ldm_bert_rows(BERT)
        if row.ours
    }
    params = load_tower(write(tmp_path, theirs), BERT)
    written = to_state_dict(ldm_bert_rows(BERT), params)
    for key, array in theirs.items():
        np.testing.assert_array_equal(written[key], array, err_msg=key)


@pytest.mark.parametrize("name", ["tower.safetensors", "tower.bin"])
def test_a_file_may_have_any_name(tmp_path, name):
    path = write(tmp_path, TEXT, name) / name
    assert load_tower(str(path), CLIP).keys() > {"tokens", "positions", "norm_out"}


def test_what_shapes_do_not_show_is_compared_with_config_json(tmp_path):
    good = {"num_attention_heads": 4, "hidden_act": "gelu", "vocab_size": 60}
    nested = {"text_config": good, "vision_config": {"num_attention_heads": 9}}
    for config in (good, nested):
        assert load_tower(write(tmp_path, TEXT, config=config), CLIP)
    for key, value, field in (
        ("num_attention_heads", 8, "num_heads is 4 here: set it to 8"),
        ("hidden_act", "quick_gelu", "activation is 'gelu' here: set it to 'quick"),
    ):
        write(tmp_path, TEXT, config=good | {key: value})
        with pytest.raises(ConversionError, match=field):
            load_tower(tmp_path, CLIP)


@pytest.mark.parametrize(
    "config, message",
    [
        ([1], "must hold an object of the text tower's options, got a list"),
        ({"text_config": "CLIP"}, "must hold an object .*, got a str"),
        ({"num_attention_heads": "4"}, "num_attention_heads must be of type int, got"),
        ({"hidden_act": {"gelu": 1}}, "hidden_act must be of type str, got dict"),
        ({"layer_norm_eps": 1e-12}, "layer_norm_eps=1e-12, which is not supported"),
        ({"scale_embedding": True}, "scale_embedding=True, which is not supported"),
    ],
)
def test_a_config_json_of_other_types_or_values_is_an_error(tmp_path, config, message):
    with pytest.raises(ConversionError, match=message):
        load_tower(write(tmp_path, TEXT, config=config), CLIP)


@pytest.mark.parametrize(
    "state_dict, tower, message",
    [
        (None, CLIP, "there is no file or folder .*openai/clip-vit-large-patch14"),
        ({}, CLIP, "holds no text tower"),
        (IMAGE, CLIP, "holds no text tower"),
        (TEXT, TOWER, "holds no vision tower"),
        (
            TEXT,
            CLIP.copy(features=64),
            "weights of a wrong shape: embeddings.token_emb",
        ),
        (TEXT, CLIP.copy(num_layers=3), "missing keys: encoder.layers.2"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(tmp_path, state_dict, tower, message):
    path = tmp_path / "nothing"
    if state_dict is not None:
        path = write(tmp_path, state_dict)
    with pytest.raises(ConversionError, match=message) as error:
        load_tower(path, tower)
    assert "\n" not in str(error.value)


def test_a_folder_without_weights_is_refused(tmp_path):
    with pytest.raises(ConversionError, match="holds no weights"):
        load_tower(tmp_path, TextEncoder(9, 8, 1))
