"""Conditioners: contracts of every row, and how they share the three slots."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from ldm_jax import ranges
from ldm_jax.conditioners import (
    CONDITIONERS,
    ClipText,
    Conditioning,
    check_entry,
    make_conditioner,
)
from ldm_jax.diffusion.guidance import guide
from ldm_jax.errors import ConfigError

BATCH = 6
TRANSFORMER = {
    "vocab_size": 20,
    "features": 8,
    "num_layers": 1,
    "max_length": 5,
    "num_heads": 2,
    "head_channels": 4,
    "slot": "context",
}
TEXT = TRANSFORMER | {"kind": "text", "null_ids": (1, 2, 0)}
CLIP_TEXT = TRANSFORMER | {"kind": "clip_text", "null_ids": [18, 19]}
IDS = 3 + jnp.arange(BATCH * 5).reshape(BATCH, 5) % 15
CLIP_IMAGE = {
    "kind": "clip_image",
    "image_size": 6,
    "patch_size": 3,
    "width": 8,
    "num_layers": 1,
    "num_heads": 2,
    "head_channels": 4,
    "embed_dim": 7,
}
IMAGES = np.random.default_rng(1).integers(0, 256, (BATCH, 8, 8, 3), np.uint8)


def draw(*shape):
    return np.random.default_rng(0).standard_normal((BATCH, *shape), np.float32)


def draw_masked():
    """Images, and a mask of another size in each."""
    masked = draw(8, 8, 4)
    masked[..., 3] = np.arange(8) > np.arange(BATCH)[:, None, None]
    return masked


def encode_images(images):
    """Stands for a first stage of factor 2 and two channels."""
    return jnp.asarray(images, jnp.float32)[:, ::2, ::2, :2] / 100


# Every row and slot: the entry, inputs for a batch, and the shape the slot must get.
UNDER_TEST = {
    "class_label_context": (
        {"kind": "class_label", "num_classes": 5, "features": 8, "slot": "context"},
        jnp.arange(BATCH) % 5,
        (BATCH, 1, 8),
    ),
    "class_label_vector": (
        {"kind": "class_label", "num_classes": 5, "features": 8, "slot": "vector"},
        jnp.arange(BATCH) % 5,
        (BATCH, 8),
    ),
    "class_label_concat": (
        {"kind": "class_label", "num_classes": 5, "features": 8, "slot": "concat"},
        jnp.arange(BATCH) % 5,
        (BATCH, 1, 1, 8),
    ),
    "text": (TEXT, IDS, (BATCH, 5, 8)),
    "clip_text": (CLIP_TEXT, IDS, (BATCH, 5, 8)),
    "layout": (TRANSFORMER | {"kind": "layout"}, IDS, (BATCH, 5, 8)),
    "clip_image_context": (
        CLIP_IMAGE | {"slot": "context"},
        IMAGES,
        (BATCH, 1, 7),
    ),
    "clip_image_patches": (
        CLIP_IMAGE | {"slot": "context", "pooled": False, "features": 4},
        draw(8, 8, 3),
        (BATCH, 5, 4),
    ),
    "clip_image_vector": (
        CLIP_IMAGE | {"slot": "vector", "features": 16},
        IMAGES,
        (BATCH, 16),
    ),
    "size_and_crop": (
        {"kind": "size_and_crop", "features": 8, "width": 6, "slot": "vector"},
        100 + 300 * np.abs(draw(6)),
        (BATCH, 8),
    ),
    "encoded": ({"kind": "encoded", "slot": "concat"}, IMAGES, (BATCH, 4, 4, 2)),
    "masked_image": (
        {"kind": "masked_image", "slot": "concat"},
        draw_masked(),
        (BATCH, 4, 4, 3),
    ),
    "masked_image_mask_first": (
        {
            "kind": "masked_image",
            "slot": "concat",
            "mask_first": True,
            "signed_mask": False,
        },
        draw_masked(),
        (BATCH, 4, 4, 3),
    ),
    "spatial_maps": (
        {"kind": "spatial", "num_stages": 1, "features": 2, "slot": "concat"},
        draw(8, 6, 3),
        (BATCH, 4, 3, 2),
    ),
    "spatial_labels": (
        {"kind": "spatial", "num_stages": 2, "num_classes": 3, "slot": "concat"},
        np.indices((BATCH, 8, 8)).sum(axis=0).astype(np.uint8) % 3,
        (BATCH, 2, 2, 3),
    ),
    "spatial_mapped_labels": (
        {
            "kind": "spatial",
            "num_stages": 1,
            "num_classes": 3,
            "features": 2,
            "slot": "concat",
        },
        np.indices((BATCH, 4, 4)).sum(axis=0).astype(np.uint8) % 3,
        (BATCH, 2, 2, 2),
    ),
    "raw_context": ({"kind": "raw", "slot": "context"}, draw(4, 8), (BATCH, 4, 8)),
    "raw_concat": ({"kind": "raw", "slot": "concat"}, draw(4, 4, 3), (BATCH, 4, 4, 3)),
    "raw_vector": (
        {"kind": "raw", "slot": "vector", "features": 16},
        draw(8),
        (BATCH, 16),
    ),
}
WITHOUT_PARAMETERS = {
    "encoded",
    "masked_image",
    "masked_image_mask_first",
    "spatial_labels",
    "raw_context",
    "raw_concat",
}


def test_every_kind_is_under_test():
    kinds = {entry["kind"] for entry, _, _ in UNDER_TEST.values()}
    assert kinds == set(CONDITIONERS), "UNDER_TEST needs an example of every kind"


def test_a_kind_may_say_what_its_fields_may_be(monkeypatch):
    class Own(nn.Module):
        depth: int = 1
        slots = ("vector",)
        field_ranges = {"depth": ranges.whole(1, 4)}

    monkeypatch.setitem(CONDITIONERS, "own", Own)
    check_entry("key", dict(kind="own", depth=4, dropout=0.1))
    for field, value in (("depth", 5), ("dropout", -0.1)):
        with pytest.raises(ConfigError, match=f"conditions.key.{field} must be"):
            check_entry("key", {"kind": "own", field: value})


@functools.cache
def setup(name):
    """The conditioner, random parameters and the encoded batch of a row."""
    conditioner = make_conditioner({"key": UNDER_TEST[name][0]})
    batch = conditioner.encode({"key": UNDER_TEST[name][1]}, encode_images)
    shapes = jax.eval_shape(conditioner.init, jax.random.key(0), batch)
    random = np.random.default_rng(2)
    variables = jax.tree.map(
        lambda leaf: random.standard_normal(leaf.shape, leaf.dtype), shapes
    )
    return conditioner, variables, batch


@functools.cache
def outputs(name):
    """What fills the slot: given, null, and null for every second example."""
    conditioner, variables, batch = setup(name)
    apply = jax.jit(
        lambda batch, drop: conditioner.apply(variables, batch, drop={"key": drop})
    )
    none = np.zeros(BATCH, bool)
    null = apply(conditioner.null_inputs(batch), none)
    return apply(batch, none), null, apply(batch, np.arange(BATCH) % 2 == 0)


@pytest.mark.parametrize("name", UNDER_TEST)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_fills_its_slot_in_the_type_of_the_computation(name, dtype):
    entry, _, shape = UNDER_TEST[name]
    conditioner = make_conditioner({"key": entry | {"dtype": dtype}})
    conditioning, variables = jax.eval_shape(
        conditioner.init_with_output, jax.random.key(0), setup(name)[2]
    )
    filled = getattr(conditioning, entry["slot"])
    assert filled.shape == shape and filled.dtype == dtype
    assert sum(values is not None for values in conditioning) == 1
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))


@pytest.mark.parametrize("name", UNDER_TEST)
def test_null_hides_the_input(name):
    conditioner, _, batch = setup(name)
    null_inputs = conditioner.null_inputs(batch)
    assert jax.tree.map(jnp.shape, null_inputs) == jax.tree.map(jnp.shape, batch)
    given, null = (jax.tree.leaves(output)[0] for output in outputs(name)[:2])
    np.testing.assert_allclose(null, jnp.broadcast_to(null[:1], null.shape), atol=1e-5)
    assert np.all(np.abs(null - given).reshape(BATCH, -1).max(axis=1) > 1e-3)


@pytest.mark.parametrize("name", UNDER_TEST)
def test_drop_swaps_single_examples_for_null(name):
    given, null, mixed = (jax.tree.leaves(output)[0] for output in outputs(name))
    np.testing.assert_allclose(mixed[::2], null[::2], atol=1e-5)
    np.testing.assert_allclose(mixed[1::2], given[1::2], atol=1e-5)


def loss(variables, conditioner, batch):
    # Not the square, which a norm keeps as it is.
    conditioning = conditioner.apply(variables, batch)
    return sum(jnp.sum(values**3) for values in jax.tree.leaves(conditioning))


@pytest.mark.parametrize("name", sorted(UNDER_TEST.keys() - WITHOUT_PARAMETERS))
def test_gradient_reaches_every_parameter_in_use(name):
    conditioner, variables, batch = setup(name)
    gradient = jax.jit(jax.grad(loss), static_argnums=1)
    leaves = jax.tree.leaves(gradient(variables, conditioner, batch))
    assert leaves and all(np.abs(leaf).max() > 0 for leaf in leaves)


@pytest.mark.parametrize("name", sorted(WITHOUT_PARAMETERS))
def test_what_is_given_needs_no_parameters(name):
    assert not jax.tree.leaves(setup(name)[1])


@pytest.mark.parametrize("name", UNDER_TEST)
def test_guidance_one_is_conditional(name):
    given, null, _ = outputs(name)

    def network(conditioning):
        def output(latents, point):
            values = jax.tree.leaves(conditioning)[0].reshape(len(latents), -1)
            return latents + values.mean(axis=-1)

        return output

    # One value per example, so that the batch axis is what the test is about.
    latents = jnp.linspace(-1, 1, BATCH)
    guided = guide(network, [null, given], [1.0])(latents, None)
    np.testing.assert_allclose(guided, network(given)(latents, None), atol=1e-5)


@pytest.mark.parametrize("name", UNDER_TEST)
def test_good_inputs_pass_the_check(name):
    setup(name)[0].check({"key": np.asarray(UNDER_TEST[name][1])})


@pytest.mark.parametrize(
    "slot, shape",
    [("context", (2, 2, 4)), ("concat", (2, 1, 1, 8)), ("vector", (2, 4))],
)
def test_conditioners_that_share_a_slot_are_joined_by_name(slot, shape):
    entry = LABEL | {"slot": slot}
    batch = {"b": jnp.array([0, 1]), "a": jnp.array([2, 1])}
    conditioner = make_conditioner({"b": entry, "a": entry})
    joined, variables = conditioner.init_with_output(jax.random.key(0), batch)
    joined = getattr(joined, slot)
    assert joined.shape == shape

    def alone(key):
        params = {"params": {key: variables["params"][key]}}
        return getattr(make_conditioner({key: entry}).apply(params, batch), slot)

    parts = [np.asarray(alone(key)) for key in ("a", "b")]
    axis = {"context": 1, "concat": 3}.get(slot)
    expected = sum(parts) if axis is None else np.concatenate(parts, axis)
    np.testing.assert_array_equal(joined, expected)
    # However the config was stored, it means the same.
    swapped = make_conditioner({"a": entry, "b": entry}).apply(variables, batch)
    np.testing.assert_array_equal(getattr(swapped, slot), expected)


def test_without_entries_there_is_no_conditioning():
    conditioner = make_conditioner()
    conditioning, variables = conditioner.init_with_output(jax.random.key(0), {})
    assert conditioning == Conditioning(None, None, None) and not variables
    assert conditioner.draw_drop(jax.random.key(1), 4) == {}
    assert conditioner.null_inputs({}) == {}


def test_dropout_has_its_rate_and_each_key_its_own_draw():
    entry = {"kind": "class_label", "num_classes": 3, "features": 4}
    conditioner = make_conditioner(
        {
            "a": entry | {"dropout": 0.1},
            "b": entry | {"dropout": 0.1},
            "c": entry,
            "d": entry | {"dropout": 0.6},
        }
    )
    drop = jax.jit(conditioner.draw_drop, static_argnums=1)(jax.random.key(0), 10_000)
    assert set(drop) == {"a", "b", "d"}
    assert abs(drop["a"].mean() - 0.1) < 0.02 and abs(drop["d"].mean() - 0.6) < 0.02
    assert abs((drop["a"] & drop["b"]).mean() - 0.01) < 0.01


def test_null_class_has_the_last_row_of_the_table():
    label = {"kind": "class_label", "num_classes": 10, "features": 4}
    conditioner = make_conditioner({"label": label})
    labels = {"label": jnp.array([3, 7])}
    variables = conditioner.init(jax.random.key(0), labels)
    assert variables["params"]["label"]["embed"]["embedding"].shape == (11, 4)
    np.testing.assert_array_equal(conditioner.null_inputs(labels)["label"], [10, 10])


LABEL = {"kind": "class_label", "num_classes": 3, "features": 4}


@pytest.mark.parametrize(
    "entry, message",
    [
        (LABEL | {"kind": "clas_label"}, "choose one of class_label, text"),
        ({}, "choose one of class_label, text"),
        (LABEL | {"slot": "image"}, "choose one of context, concat, vector"),
        (LABEL | {"weights": "a.safetensors"}, "class_label' has no option 'weights'"),
        (
            LABEL | {"slott": "vector"},
            "no option 'slott'.* num_classes, features, slot",
        ),
        (LABEL | {"features": None}, "needs the option 'features'"),
        (LABEL | {"dropout": 1.0}, "dropout must be in"),
    ],
)
def test_wrong_entry_is_refused_in_one_line_that_names_it(entry, message):
    with pytest.raises(ValueError, match=f"condition 'label': .*{message}") as error:
        make_conditioner({"label": entry})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "labels, message",
    [
        ([0, 4], "label 4 is out of range: .* from 0 to 2"),
        ([-1], "label -1 is out of range"),
        ([0.5], "must be integers"),
        ([[1, 2]], "must be integers"),
    ],
)
def test_wrong_labels_are_refused(labels, message):
    with pytest.raises(ValueError, match=message):
        make_conditioner({"label": LABEL}).check({"label": labels})


def test_labels_beyond_the_classes_are_none():
    entry = {"kind": "spatial", "num_stages": 0, "num_classes": 3}
    maps = np.array([[[0, 2], [255, 255]]])
    mapped = make_conditioner({"map": entry | {"features": 2, "use_bias": True}})
    variables = mapped.init(jax.random.key(0), {"map": maps})
    kernel = variables["params"]["map"]["channel_map"]["kernel"]
    bias = variables["params"]["map"]["channel_map"]["bias"]
    plain = make_conditioner({"map": entry})
    plain.check({"map": maps})
    channels = plain.apply({}, {"map": maps}).concat
    assert np.asarray(channels).sum(axis=-1).tolist() == [[[1, 1], [0, 0]]]
    np.testing.assert_allclose(
        mapped.apply(variables, {"map": maps}).concat,
        channels @ kernel + bias[None, None, None],
    )
    for label in (200, 3):
        message = f"'map': label {label} is out of range.* or 255 where"
        with pytest.raises(ValueError, match=message):
            plain.check({"map": np.array([[[label]]])})


@pytest.mark.parametrize("ignored", [-1, 1, 9])
def test_labels_that_are_ignored_are_none(ignored):
    entry = {"kind": "spatial", "num_stages": 0, "num_classes": 3}
    conditioner = make_conditioner({"map": entry | {"ignore_label": ignored}})
    maps = np.array([[[0, ignored], [2, ignored]]])
    conditioner.check({"map": maps})
    channels = np.asarray(conditioner.apply({}, {"map": maps}).concat)
    assert channels.sum(axis=-1).tolist() == [[[1, 0], [1, 0]]]
    with pytest.raises(ValueError, match=f"label 255 .* or {ignored} where"):
        conditioner.check({"map": np.array([[[255]]])})

    conditioner = make_conditioner({"label": LABEL | {"ignore_label": ignored}})
    labels = {"label": np.array([ignored, 2, 0])}
    conditioner.check(labels)
    variables = conditioner.init(jax.random.key(0), labels)
    table = variables["params"]["label"]["embed"]["embedding"]
    context = conditioner.apply(variables, labels).context[:, 0]
    np.testing.assert_array_equal(context, table[np.array([3, 2, 0])])
    with pytest.raises(ValueError, match="label 3 is out of range.*ignore_label"):
        conditioner.check({"label": np.array([3])})
    with pytest.raises(ValueError, match="set null_class=True"):
        make_conditioner({"a": LABEL | {"ignore_label": 0, "null_class": False}})


@pytest.mark.parametrize("call", ["check", "null_inputs", "init"])
def test_missing_key_is_refused(call):
    conditioner = make_conditioner({"label": LABEL})
    arguments = ({"image": 0},)
    if call == "init":
        arguments = (jax.random.key(0), *arguments)
    with pytest.raises(ValueError, match="no 'label' .* it has 'image'"):
        getattr(conditioner, call)(*arguments)


def test_model_without_null_class_cannot_forget():
    conditioner = make_conditioner({"label": LABEL | {"null_class": False}})
    batch = {"label": jnp.array([0])}
    variables = conditioner.init(jax.random.key(0), batch)
    assert variables["params"]["label"]["embed"]["embedding"].shape == (3, 4)
    with pytest.raises(ValueError, match="set null_class=True"):
        conditioner.null_inputs(batch)
    with pytest.raises(ValueError, match="label 3 is out of range"):
        conditioner.check({"label": np.array([3])})


def test_conditioner_is_a_value():
    entries = {"label": LABEL, "caption": CLIP_TEXT}  # with a list in it
    one, other = (make_conditioner(dict(entries)) for _ in range(2))
    assert one == other and hash(one) == hash(other)


def test_empty_caption_is_filled_up_with_its_last_id():
    text = ClipText(**{k: v for k, v in CLIP_TEXT.items() if k != "kind"})
    np.testing.assert_array_equal(text.null(IDS), [[18, 19, 19, 19, 19]] * BATCH)
    assert text.null(IDS).dtype == IDS.dtype
    np.testing.assert_array_equal(text.null(IDS[:, :1]), [[18]] * BATCH)


def test_layout_without_objects_is_the_last_id():
    conditioner, _, batch = setup("layout")
    np.testing.assert_array_equal(conditioner.null_inputs(batch)["key"], 19 + 0 * IDS)


def test_labels_of_no_class_are_zero_maps():
    given, null, _ = outputs("spatial_labels")
    np.testing.assert_allclose(given.concat.sum(axis=-1), 1, atol=1e-6)
    np.testing.assert_array_equal(null.concat, 0 * given.concat)


def test_a_label_beside_a_map_is_the_same_at_every_pixel():
    entries = {"a": LABEL | {"slot": "concat"}, "b": {"kind": "raw", "slot": "concat"}}
    batch = {"a": jnp.array([0, 2]), "b": draw(3, 5, 2)[:2]}
    joined, _ = make_conditioner(entries).init_with_output(jax.random.key(0), batch)
    label, given = joined.concat[..., :4], joined.concat[..., 4:]
    np.testing.assert_array_equal(given, batch["b"])
    np.testing.assert_array_equal(
        label, label[:, :1, :1] + np.zeros((1, 3, 5, 1), np.float32)
    )
    assert np.abs(label[0] - label[1]).max() > 0


@pytest.mark.parametrize(
    "slot, shapes, message",
    [
        ("context", [(2, 8), (1, 7)], "'context' must .* widths, got a 8, b 7"),
        ("vector", [(8,), (1,)], "'vector' must .* widths, got a 8, b 1"),
        ("concat", [(4, 4, 1), (8, 8, 1)], r"sizes, got a \(4, 4\), b \(8, 8\)"),
    ],
)
def test_what_shares_a_slot_must_fit(slot, shapes, message):
    entry = {"kind": "raw", "slot": slot}
    batch = {key: draw(*shape) for key, shape in zip("ab", shapes, strict=True)}
    with pytest.raises(ValueError, match=message):
        make_conditioner({"a": entry, "b": entry}).init(jax.random.key(0), batch)


@pytest.mark.parametrize("name", ["masked_image", "masked_image_mask_first"])
def test_masked_image_is_latents_and_a_mask_and_null_masks_all(name):
    conditioner, _, batch = setup(name)
    first = conditioner.entries["key"].get("mask_first", False)
    given = outputs(name)[0].concat
    mask, latents = (
        (given[..., 0], given[..., 1:]) if first else (given[..., -1], given[..., :-1])
    )
    raw = UNDER_TEST[name][1]
    np.testing.assert_array_equal(latents, encode_images(raw[..., :3]))
    # PyTorch's "nearest" by 2 takes every second pixel, the first one included.
    expected = raw[:, ::2, ::2, 3]
    np.testing.assert_array_equal(mask, expected if first else 2 * expected - 1)
    null = conditioner.null_inputs(batch)["key"]
    assert np.all(null[..., 0 if first else -1] == 1) and null.sum() == mask.size


def test_only_what_wants_latents_is_encoded():
    entries = {"a": UNDER_TEST["encoded"][0], "b": LABEL}
    batch = {"a": IMAGES, "b": np.zeros(BATCH, int), "image": IMAGES}
    encoded = make_conditioner(entries).encode(batch, encode_images)
    assert encoded.keys() == batch.keys()
    assert encoded["b"] is batch["b"] and encoded["image"] is batch["image"]
    np.testing.assert_array_equal(encoded["a"], encode_images(IMAGES))


def test_text_is_trained_and_clip_is_frozen_unless_asked_for():
    def frozen(entries):
        towers = make_conditioner(entries).towers().values()
        return [tower.path for tower in towers if tower.frozen]

    entries = {"a": TEXT, "b": CLIP_TEXT, "c": LABEL, "d": CLIP_IMAGE}
    assert frozen(entries) == ["b", "d/tower"]
    entries = {"a": TEXT | {"frozen": True}, "b": CLIP_TEXT | {"frozen": False}}
    assert frozen(entries) == ["a"]


def test_parameters_of_a_tower_lie_at_its_path():
    conditioner, variables, _ = setup("clip_image_vector")
    tower = conditioner.towers()["key"]
    images = jax.ShapeDtypeStruct((1, 6, 6, 3), jnp.float32)
    expected = jax.eval_shape(tower.module.init, jax.random.key(0), images)["params"]
    assert tower.path == "key/tower"
    found = jax.tree.map(jnp.shape, variables["params"]["key"]["tower"])
    assert found == jax.tree.map(lambda leaf: leaf.shape, expected)
    assert set(variables["params"]["key"]) == {"tower", "project"}


@pytest.mark.parametrize(
    "entry, message",
    [
        (TEXT | {"null_ids": (1, 20)}, r"null_ids \(1, 20\) must be ids in \[0, 20\)"),
        (TEXT | {"null_ids": ()}, "give those of the empty caption"),
        (TEXT | {"activation": "relu"}, "choose one of gelu, quick_gelu"),
        ({"kind": "spatial", "num_stages": 1, "method": "cubic"}, "one of nearest,"),
        (CLIP_IMAGE | {"slot": "vector", "pooled": False}, "leave pooled=True"),
        ({"kind": "raw"}, "needs the option 'slot'"),
        ({"kind": "raw", "slot": "text"}, "choose one of context, concat, vector"),
    ],
)
def test_wrong_option_is_refused_in_one_line(entry, message):
    with pytest.raises(ValueError, match=f"condition 'a': .*{message}") as error:
        make_conditioner({"a": entry})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "name, inputs, message",
    [
        ("text", ["a star"], "integers .B, L.*tokenize the text first"),
        ("text", [[1, 20]], "token id 20 is out of range: vocab_size is 20"),
        ("text", np.zeros((2, 6), int), "6 tokens are more than max_length=5"),
        ("layout", [[-1]], "token id -1 is out of range"),
        ("spatial_maps", np.zeros((1, 8, 8, 3), np.uint8), "must be floats with 4"),
        ("spatial_maps", np.full((1, 2, 2, 1), np.nan), "must be finite"),
        ("spatial_labels", np.full((1, 8, 8), 4), "label 4 .* from 0 to 2"),
        ("spatial_labels", np.zeros((1, 8, 8)), "must be integers .B, H, W"),
        ("raw_vector", np.zeros((1, 2, 8)), "slot 'vector' must be floats with 2"),
        ("encoded", np.zeros((1, 8, 8, 4)), "images must be .B, H, W, 3., got"),
        ("clip_image_vector", np.zeros((1, 8, 8, 3), int), "must be floats with 4"),
        ("masked_image", np.zeros((1, 8, 8, 1)), "the mask last, got .1, 8, 8, 1"),
        ("masked_image", np.full((1, 8, 8, 4), 0.5), "masks must be 0 or 1.* got 0.5"),
    ],
)
def test_wrong_inputs_are_refused(name, inputs, message):
    with pytest.raises(ValueError, match=message):
        setup(name)[0].check({"key": inputs})


def test_maps_are_stretched_once_they_are_small():
    entry = dict(kind="spatial", num_stages=1, method="nearest", stretch=True)
    conditioner = make_conditioner({"depth": entry})
    maps = np.random.RandomState(0).uniform(3, 9, (2, 4, 4, 1)).astype(np.float32)
    maps[0, 1, 1] = 100  # is not among the pixels that "nearest" reads
    small = maps[:, ::2, ::2]
    low, high = (f(small, axis=(1, 2, 3), keepdims=True) for f in (np.min, np.max))
    expected = 2 * (small - low) / (high - low) - 1
    found = conditioner.apply({}, {"depth": maps}).concat
    np.testing.assert_allclose(found, expected, atol=1e-6)
    nothing = conditioner.apply({}, conditioner.null_inputs({"depth": maps})).concat
    np.testing.assert_array_equal(nothing, np.zeros_like(small))
