"""CLIP's image tower fed through its rows, against what transformers computed.

`clip_image.npz` holds the outputs of a tiny CLIPVisionModelWithProjection and how they
were made ("made" in its meta).
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.conditioners import ClipImage
from ldm_jax.models.image_encoder import ImageEncoder
from ldm_jax.weights.state_dict import to_params, to_state_dict
from ldm_jax.weights.tower_names import clip_image_rows
from tests.common import assert_close, load_case, nhwc

FIELDS = dict(
    image_size=28,
    patch_size=7,
    width=32,
    num_layers=2,
    num_heads=4,
    head_channels=8,
    embed_dim=24,
    mlp_ratio=2,
)
TOWER = ImageEncoder(**FIELDS)


@pytest.fixture(scope="module")
def case():
    return load_case("clip_image")


@pytest.fixture(scope="module")
def params(case):
    images = jax.ShapeDtypeStruct((1, 28, 28, 3), jnp.float32)
    target = jax.eval_shape(TOWER.init, jax.random.key(0), images)["params"]
    return to_params(clip_image_rows(TOWER), case.state_dict, target)


def test_weights_are_written_as_they_were_read(case, params):
    written = to_state_dict(clip_image_rows(TOWER), params)
    assert written.keys() == case.state_dict.keys()
    for key, array in written.items():
        np.testing.assert_array_equal(array, case.state_dict[key], err_msg=key)


def test_defaults_are_of_the_published_size():
    tower = ImageEncoder()
    images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    shapes = jax.eval_shape(tower.init, jax.random.key(0), images)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 303_966_208


def test_images_are_prepared_as_by_compvis(case):
    pixels = TOWER.prepare(jnp.asarray(nhwc(case.arrays["images"])))
    assert_close(pixels, nhwc(case.arrays["pixel_values"]))


def test_bytes_and_floats_are_prepared_alike():
    images = np.random.RandomState(0).randint(0, 256, (1, 9, 28, 3), np.uint8)
    floats = jnp.asarray(images / 127.5 - 1, jnp.float32)
    prepared = [TOWER.prepare(x) for x in (jnp.asarray(images), floats)]
    np.testing.assert_allclose(*prepared, atol=1e-5)


def test_embeddings_match_transformers(case, params):
    pixels = nhwc(case.arrays["pixel_values"])
    embeddings = jax.jit(TOWER.apply)({"params": params}, pixels)
    assert_close(embeddings, case.arrays["token_embeds"])
    assert_close(embeddings[:, 0], case.arrays["image_embeds"])


@pytest.mark.parametrize(
    "slot, pooled, name",
    [
        ("context", True, "image"),
        ("context", False, "token"),
        ("vector", True, "image"),
    ],
)
def test_condition_is_the_embedding_of_the_image(case, params, slot, pooled, name):
    style = ClipImage(**FIELDS, slot=slot, pooled=pooled)
    given = nhwc(case.arrays["images"])
    filled = jax.jit(style.apply)({"params": {"tower": params}}, given)
    expected = case.arrays[f"{name}_embeds"]
    expected = expected[:, None] if (slot, pooled) == ("context", True) else expected
    assert_close(filled, expected)
