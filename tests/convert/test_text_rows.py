"""Text encoders read by name, against what CompVis and transformers computed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.conditioners import Spatial
from ldm_jax.models.resize import METHODS
from ldm_jax.models.text_encoder import TextEncoder
from ldm_jax.weights import tower_names
from ldm_jax.weights.state_dict import select, to_params, to_state_dict
from tests.common import assert_close, load_case, load_manifest, nhwc

BERT = TextEncoder(vocab_size=50, features=32, num_layers=2, max_length=12)
CLIP = TextEncoder(
    vocab_size=60,
    features=32,
    num_layers=2,
    max_length=12,
    num_heads=4,
    head_channels=8,
    use_bias=True,
    causal=True,
    mlp_ratio=2,
)


def shapes(encoder):
    ids = jax.ShapeDtypeStruct((1, encoder.max_length), jnp.int32)
    return jax.eval_shape(encoder.init, jax.random.key(0), ids)["params"]


def read(rows, encoder, state_dict):
    """Reads the weights, and checks that all but the unused are written as read."""
    params = to_params(rows, state_dict, shapes(encoder))
    unused = {row.theirs for row in rows if not row.ours}
    written = to_state_dict(rows, params)
    assert written.keys() == state_dict.keys() - unused
    for key, array in written.items():
        np.testing.assert_array_equal(array, state_dict[key], err_msg=key)
    return params


def encode(encoder, params, ids):
    return jax.jit(encoder.apply)({"params": params}, ids)


def test_bert_matches_compvis():
    case = load_case("bert_embedder")
    params = read(tower_names.bert_rows(BERT), BERT, case.state_dict)
    assert_close(encode(BERT, params, case.arrays["tokens"]), case.arrays["output"])


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
def test_clip_matches_transformers(activation):
    case = load_case(f"clip_text_{activation}")
    clip = CLIP.copy(activation=activation)
    params = read(tower_names.clip_rows(clip), clip, case.state_dict)
    ids = case.arrays["input_ids"]
    assert_close(encode(clip, params, ids), case.arrays["last_hidden_state"])


def normed(x, params):
    """The final norm, in float64."""
    x = x.astype(np.float64)
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return x * params["norm_out"]["scale"] + params["norm_out"]["bias"]


def to_open_clip(state_dict):
    """Renames by hand what transformers saves as OpenCLIP saves it."""
    renamed = {"logit_scale": np.float32(4.6), "text_projection": np.eye(32)}
    names = {
        "embeddings.token_embedding.weight": "token_embedding.weight",
        "embeddings.position_embedding.weight": "positional_embedding",
        "final_layer_norm": "ln_final",
        "encoder.layers": "transformer.resblocks",
        "layer_norm1": "ln_1",
        "layer_norm2": "ln_2",
        "self_attn": "attn",
        "fc1": "c_fc",
        "fc2": "c_proj",
    }
    for key, array in state_dict.items():
        for old, new in names.items():
            key = key.replace(old, new)
        renamed[key] = array
    for key in [key for key in renamed if "q_proj" in key]:
        parts = [renamed.pop(key.replace("q_proj", f"{x}_proj")) for x in "qkv"]
        fused = key.replace("q_proj.", "in_proj_")
        renamed[fused] = np.concatenate(parts)
    return renamed


@pytest.mark.parametrize("layout", ["transformers", "open_clip"])
def test_last_but_one_layer_is_a_tower_of_one_layer_less(layout):
    """As in Stable Diffusion 2, through the final norm; the case holds it before."""
    case = load_case("clip_text_gelu")
    clip, state_dict = CLIP.copy(num_layers=1), case.state_dict
    rows = tower_names.clip_rows(clip, unused_layers=1)
    if layout == "open_clip":
        rows, state_dict = tower_names.open_clip_rows(clip), to_open_clip(state_dict)
        assert "transformer.resblocks.1.attn.in_proj_bias" in state_dict
    params = read(rows, clip, state_dict)
    output = encode(clip, params, case.arrays["input_ids"])
    assert_close(output, normed(case.arrays["penultimate"], params))


PUBLISHED = {
    "ldm_text_1p4b_kl_f8": (
        tower_names.bert_rows,
        TextEncoder(30522, 1280, 32),
        "cond_stage_model.transformer.",
    ),
    "ldm_text_256_vq_f4": (
        tower_names.bert_rows,
        TextEncoder(30522, 640, 32),
        "cond_stage_model.transformer.",
    ),
    "ldm_layout_openimages_vq_f4": (
        tower_names.bert_rows,
        TextEncoder(8192, 512, 16, max_length=92),
        "cond_stage_model.transformer.",
    ),
    "diffusers/ldm_bert": (tower_names.ldm_bert_rows, TextEncoder(30522, 1280, 32), ""),
    "diffusers/clip_vit_l14_text": (
        tower_names.clip_rows,
        TextEncoder(49408, 768, 12, num_heads=12, use_bias=True, causal=True),
        "",
    ),
    "diffusers/openclip_vit_h_text_sd2": (
        tower_names.clip_rows,
        TextEncoder(49408, 1024, 23, num_heads=16, use_bias=True, causal=True),
        "",
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_tensor_is_read(name):
    """No key of theirs stays unread and no parameter of ours unset."""
    rows, encoder, prefix = PUBLISHED[name]
    manifest = select(load_manifest(name), prefix)
    assert len(manifest) > 10 * encoder.num_layers
    # One byte a number, as the largest has 582 million.
    state_dict = {k: np.zeros(shape, np.int8) for k, shape in manifest.items()}
    target = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, np.int8), shapes(encoder)
    )
    to_params(rows(encoder), state_dict, target)


@pytest.mark.parametrize("position_ids", [False, True])
def test_position_numbers_may_be_there(position_ids):
    case = load_case("clip_text_gelu")
    extra = {"embeddings.position_ids": np.arange(12)[None]} if position_ids else {}
    read(tower_names.clip_rows(CLIP), CLIP, case.state_dict | extra)


@pytest.mark.parametrize("method", METHODS)
def test_spatial_rescaler_matches_compvis(method):
    case = load_case(f"spatial_rescaler_{method}")
    config = case.meta["config"]
    spatial = Spatial(
        num_stages=config["n_stages"],
        method=config["method"],
        multiplier=config["multiplier"],
        features=config["out_channels"],
    )
    maps = nhwc(case.arrays["x"])
    target = jax.eval_shape(spatial.init, jax.random.key(0), jnp.asarray(maps))
    params = to_params(tower_names.spatial_rows(), case.state_dict, target["params"])
    output = jax.jit(spatial.apply)({"params": params}, maps)
    assert_close(output, nhwc(case.arrays["output"]))
    written = to_state_dict(tower_names.spatial_rows(), params)
    (key,) = case.state_dict
    np.testing.assert_array_equal(written[key], case.state_dict[key])


def test_published_semantic_map_is_read():
    manifest = load_manifest("ldm_semantic_synthesis_vq_f4")
    shapes_of_theirs = select(manifest, "cond_stage_model.")
    spatial = Spatial(num_stages=2, features=3, num_classes=182)
    labels = jax.ShapeDtypeStruct((1, 8, 8), jnp.int32)
    target = jax.eval_shape(spatial.init, jax.random.key(0), labels)["params"]
    state_dict = {key: np.zeros(shape) for key, shape in shapes_of_theirs.items()}
    assert to_params(tower_names.spatial_rows(), state_dict, target)
