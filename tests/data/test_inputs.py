"""Inputs of conditions: every row of INPUTS, and what they make in the loader."""

import pickle

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from configs import common
from ldm_jax.data.inputs import (
    INPUTS,
    apply_inputs,
    make_inputs,
    needed_keys,
    truncated_inputs,
)
from ldm_jax.data.layout import decode_layout
from ldm_jax.data.loader import make_loader
from ldm_jax.data.open_source import open_source
from ldm_jax.errors import ConfigError
from tests.data.common import SIZE, TRAIN, encode, make_image

# Row -> (options, shape and type of the result on an example of 16 x 24 pixels).
CASES = {
    "caption": (dict(tokenizer="shapes", max_length=20), (20,), np.int32),
    "layout": (dict(vocab_size=100, max_objects=5), (17,), np.int32),
    "map": (dict(modality="depth"), (16, 24, 1), np.float32),
    "segmentation": ({}, (16, 24), np.int32),
    "depth": ({}, (16, 24, 1), np.float32),
    "low_res": (dict(factor=4, degradation="bsrgan"), (4, 6, 3), np.float32),
    "masked_image": ({}, (16, 24, 4), np.float32),
    "image": ({}, (16, 24, 3), np.uint8),
    "size_and_crop": ({}, (6,), np.float32),
    "feature": (dict(feature="embedding"), (7,), np.float32),
}

# What a config on `shapes` may list.
SECTION = {
    "caption": dict(kind="caption", tokenizer="shapes", max_length=40),
    "layout": dict(kind="layout", vocab_size=257),
    "segmentation": dict(kind="segmentation"),
    "depth": dict(kind="depth"),
    "low_res": dict(kind="low_res", degradation="bsrgan_light"),
    "masked_image": dict(kind="masked_image"),
    "style": dict(kind="image"),
}


def example():
    rng = np.random.default_rng(0)
    return {
        "image": make_image(24, 16),
        "label": np.int32(3),
        "caption": "a large red star",
        "boxes": np.array([[0, 0, 0.5, 0.5], [0.2, 0.2, 1, 1], [0, 0, 0, 0]]),
        "box_labels": np.array([4, 2, -1], np.int32),
        "segmentation": rng.integers(0, 9, (16, 24)).astype(np.int32),
        "depth": rng.random((16, 24, 1), np.float32),
        "embedding": rng.random(7),
    }


def make(kind, **options):
    return make_inputs({"it": dict(kind=kind, **options)})["it"]


def call(kind, seed=0, changes=(), **options):
    """Makes one input of the example, with some keys of that replaced."""
    changed = example() | dict(changes)
    return make(kind, **options)(changed, np.random.default_rng(seed))


def load(data_dir, inputs, steps=2, **changes):
    """Batches of the tiny `shapes`."""
    data = ConfigDict(
        common.data(
            name=f"shapes/{SIZE}",
            data_dir=data_dir,
            image_size=16,
            crop="random",
            flip=True,
            inputs=inputs,
        )
        | changes
    )
    loader = make_loader(open_source(data, "train"), data, batch_size=4, seed=0)
    try:
        return [next(loader) for _ in range(steps)]
    finally:
        loader.close()


def test_every_row_has_a_case():
    assert CASES.keys() == INPUTS.keys(), "CASES needs an example of every row"


@pytest.mark.parametrize("kind", CASES)
def test_shape_type_and_repeatability(kind):
    options, shape, dtype = CASES[kind]
    result = call(kind, **options)
    assert result.shape == shape and result.dtype == dtype
    assert np.isfinite(result).all()
    unpickled = pickle.loads(pickle.dumps(make(kind, **options)))
    again = unpickled(example(), np.random.default_rng(0))
    np.testing.assert_array_equal(result, again)


@pytest.mark.parametrize("kind", CASES)
def test_what_is_needed_is_all_that_is_taken(kind):
    inputs = {"it": make(kind, **CASES[kind][0])}
    whole, keys = example(), needed_keys(inputs)
    part = {key: whole[key] for key in ("image", *keys)}
    result = apply_inputs(inputs, part, np.random.default_rng(0))
    assert result.keys() == {"image", "it"}
    for key in keys:
        lacking = {k: v for k, v in whole.items() if k != key}
        with pytest.raises(ValueError, match=f'has no "{key}" for input "it"'):
            apply_inputs(inputs, lacking, np.random.default_rng(0))


def test_only_image_label_and_inputs_are_passed_on():
    inputs = make_inputs({"depth": {"kind": "depth"}, "caption": {"kind": "none"}})
    result = apply_inputs(inputs, example(), np.random.default_rng(0))
    assert list(result) == ["image", "label", "depth"]
    # Nothing of a text model's example is an image.
    del result["image"]
    inputs = make_inputs({"caption": dict(kind="caption", tokenizer="shapes")})
    assert needed_keys(inputs) == ["caption"]
    text = {"caption": "a star"}
    assert list(apply_inputs(inputs, text, None)) == ["caption"]


def test_layouts_of_too_many_boxes_are_said_to_be_cut():
    made = make_inputs({"it": dict(kind="layout", vocab_size=100, max_objects=2)})
    boxes = np.tile(np.float32([0, 0, 1, 1]), (4, 1))
    for labels, cut in (([1, 2, -1, -1], []), ([1, 2, 3, -1], ["it"])):
        layout = {"boxes": boxes, "box_labels": np.array(labels)}
        result = apply_inputs(made, layout, np.random.default_rng(0))
        assert truncated_inputs(made, layout, result) == cut


def test_no_inputs():
    assert make_inputs(None) == make_inputs(ConfigDict()) == {}
    assert needed_keys({}) == []


@pytest.mark.parametrize(
    ("key", "entry", "message"),
    [
        ("it", dict(kind="captoin"), 'it.kind="captoin" is unknown; .*"caption"'),
        ("it", {}, 'data.inputs.it.kind="None" is unknown'),
        ("it", dict(kind="caption"), "it.tokenizer is missing"),
        ("it", dict(kind="low_res", factr=4), 'it.factr .* did you mean "factor"'),
        ("it", dict(kind="low_res", factor=9), "factor must be 2 to 8, got 9"),
        ("it", dict(kind="low_res", degradation="bsr"), 'degradation="bsr" is unknown'),
        ("it", dict(kind="masked_image", style="dots"), 'style="dots" is unknown'),
        ("it", dict(kind="masked_image", max_fraction=0.1), "the fractions must be"),
        ("it", dict(kind="layout", vocab_size=8, num_classes=8), "vocab_size=8 is too"),
        ("mask", dict(kind="depth"), "data.inputs.mask: batches have another mask"),
    ],
)
def test_mistakes_in_the_section(key, entry, message):
    with pytest.raises(ConfigError, match=message):
        make_inputs({key: entry})


def test_caption_is_that_of_the_tokenizer():
    inputs = make("caption", **CASES["caption"][0])
    expected = inputs.tokenizer(["a large red star"])[0]
    np.testing.assert_array_equal(call("caption", **CASES["caption"][0]), expected)


def test_one_of_several_captions_is_drawn():
    captions = np.array([b"a red star", b"a blue ring"], object)
    options = CASES["caption"][0]
    drawn = {
        call("caption", s, {"caption": captions}, **options).tobytes() for s in range(9)
    }
    alone = {call("caption", 0, {"caption": c}, **options).tobytes() for c in captions}
    assert drawn == alone and len(alone) == 2


def test_layout_holds_the_boxes_in_any_order():
    orders = set()
    for seed in range(8):
        ids = call("layout", seed, vocab_size=4096)
        boxes, labels, _ = decode_layout(ids, 4096)
        np.testing.assert_allclose(
            boxes[np.argsort(-labels)], [[0, 0, 0.5, 0.5], [0.2, 0.2, 1, 1]], atol=0.01
        )
        orders.add(tuple(labels))
    assert orders == {(4, 2), (2, 4)}
    for order, labels in {"given": (4, 2), "area": (2, 4)}.items():
        fixed = [decode_layout(call("layout", s, order=order))[1] for s in range(4)]
        assert np.all(np.array(fixed) == labels)


def test_layout_refuses_unknown_classes():
    with pytest.raises(ValueError, match="label 4 .* num_classes=4"):
        call("layout", num_classes=4)


def test_depth_fills_its_range():
    depth = example()["depth"]
    result = call("depth")
    assert result.min() == pytest.approx(-1) and result.max() == pytest.approx(1)
    assert np.argmax(result) == np.argmax(depth)
    np.testing.assert_allclose(
        result, call("depth", changes={"depth": 5 * depth + 3}), atol=1e-5
    )
    flat = call("depth", changes={"depth": np.full((16, 24, 1), 7)})
    assert (flat == 0).all()


def test_low_res_is_the_image_degraded():
    expected = Image.fromarray(make_image(24, 16)).resize((12, 8), Image.BICUBIC)
    result = call("low_res", factor=2)
    np.testing.assert_allclose(result, np.asarray(expected) / 127.5 - 1, atol=1e-5)


def test_low_res_of_the_user():
    own = make_image(6, 4, seed=1)
    result = call("low_res", changes={"low_res": own}, degradation="bsrgan")
    np.testing.assert_allclose(result, own / 127.5 - 1, atol=1e-5)
    other_size = call("low_res", changes={"low_res": make_image(90, 50)})
    assert other_size.shape == (4, 6, 3)
    alone = make("low_res")({"low_res": own}, None)
    np.testing.assert_array_equal(alone, result)


def test_low_res_needs_a_size_that_divides(array_record_dir):
    inputs = {"low_res": dict(kind="low_res", factor=3)}
    with pytest.raises(ConfigError, match="image_size=16 does not divide .* 3"):
        load(array_record_dir, inputs)


@pytest.mark.parametrize("fill", [-1.0, 0.0])
def test_masked_image_hides_the_mask_alone(fill):
    result = call("masked_image", fill=fill)
    mask = result[..., 3] == 1
    assert 0.05 <= mask.mean() <= 0.6 and set(np.unique(result[..., 3])) == {0, 1}
    assert (result[mask][:, :3] == fill).all()
    np.testing.assert_allclose(
        result[~mask][:, :3], make_image(24, 16)[~mask] / 127.5 - 1, atol=1e-6
    )
    assert not np.array_equal(mask, call("masked_image", 1)[..., 3] == 1)


@pytest.mark.parametrize("dtype", [bool, np.float32, np.uint8])
@pytest.mark.parametrize("shape", [(16, 24), (16, 24, 1)])
def test_masked_image_with_the_users_mask(dtype, shape):
    mask = np.zeros(shape, dtype)
    mask[3:9, 5:11] = 1
    result = call("masked_image", changes={"mask": mask})
    np.testing.assert_array_equal(result[..., 3], mask.reshape(16, 24).astype("f4"))
    with pytest.raises(ValueError, match="the mask is .* give both one size"):
        call("masked_image", changes={"mask": mask[:8]})


@pytest.mark.parametrize("kind", ["low_res", "masked_image", "image"])
def test_something_to_make_it_of_is_missing(kind):
    with pytest.raises(ValueError, match='no.* "image"'):
        apply_inputs({"it": make(kind)}, {"caption": "a star"}, None)


def test_image_is_the_users_or_the_image_itself():
    np.testing.assert_array_equal(call("image"), make_image(24, 16))
    red = np.zeros((50, 50, 3), np.uint8) + np.uint8([200, 10, 10])
    for style in (red, encode(red)):
        result = call("image", changes={"it": style})
        assert result.shape == (16, 24, 3)
        np.testing.assert_allclose(result[8, 12], (200, 10, 10), atol=2)
    assert call("image", size=32).shape == (32, 32, 3)
    assert make("image")({"it": red}, None).shape == (50, 50, 3)


def test_batches_hold_image_label_and_inputs(array_record_dir):
    plain = load(array_record_dir, {})
    assert [batch.keys() for batch in plain] == [{"image", "label"}] * 2
    batches = load(array_record_dir, SECTION)
    for batch, other in zip(batches, plain, strict=True):
        assert batch.keys() == {"image", "label", *SECTION}
        for key in ("image", "label"):
            np.testing.assert_array_equal(batch[key], other[key])
        # Maps follow the random crop and the mirroring of the image.
        np.testing.assert_array_equal(batch["style"], batch["image"])
        known = batch["masked_image"][..., 3] == 0
        np.testing.assert_allclose(
            batch["masked_image"][known][:, :3],
            batch["image"][known] / 127.5 - 1,
            atol=1e-6,
        )
    assert not np.array_equal(batches[0]["layout"], batches[1]["layout"])


def test_workers_change_nothing(array_record_dir):
    in_threads = load(array_record_dir, SECTION, steps=3)
    in_workers = load(array_record_dir, SECTION, steps=3, workers=1)
    for batch, other in zip(in_threads, in_workers, strict=True):
        for key in batch:
            np.testing.assert_array_equal(batch[key], other[key])


def test_a_source_without_what_is_needed(array_record_dir):
    inputs = {"embedding": dict(kind="feature", feature="clip")}
    with pytest.raises(ConfigError, match='shapes/32.* has no feature "clip"'):
        load(array_record_dir, inputs)


def test_every_position_draws_anew(array_record_dir):
    inputs = {"masked_image": dict(kind="masked_image")}
    batches = load(array_record_dir, inputs, steps=2 * TRAIN // 4)
    masks = np.concatenate([batch["masked_image"][..., 3] for batch in batches])
    assert len({mask.tobytes() for mask in masks}) > 0.95 * len(masks)
