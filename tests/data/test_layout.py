"""Layouts: the original's token ids, both ways, and JSON as people write it."""

import numpy as np
import pytest

from ldm_jax.data.layout import (
    decode_layout,
    encode_layout,
    num_sections,
    parse_layout,
)


def random_boxes(count, seed=0):
    """Boxes [count, 4] as (ymin, xmin, ymax, xmax)."""
    corners = np.sort(np.random.default_rng(seed).random((count, 2, 2)), axis=1)
    return corners.reshape(count, 4)


def test_ids_are_those_of_the_original():
    ids = encode_layout([[0, 0, 1, 1], [0.5, 0.25, 0.75, 1]], [600, 3])
    assert ids.shape == (92,) and ids.dtype == np.int32
    # A grid of 90 x 90 cells: row * 90 + column, both rounded from [0, 89].
    assert ids[:6].tolist() == [600, 0, 8099, 3, 44 * 90 + 22, 67 * 90 + 89]
    assert (ids[6:90] == 8191).all() and ids[90:].tolist() == [0, 8099]


@pytest.mark.parametrize("vocab_size", [8192, 1024, 257, 10])
def test_decoding_gives_back_what_was_encoded(vocab_size):
    boxes, labels = random_boxes(30), np.arange(30) % 8
    ids = encode_layout(boxes, labels, vocab_size)
    assert ids.min() >= 0 and ids.max() < vocab_size
    found, found_labels, crop = decode_layout(ids, vocab_size)
    np.testing.assert_array_equal(found_labels, labels)
    half_a_cell = 0.5 / (num_sections(vocab_size) - 1)
    assert np.abs(found - boxes).max() <= half_a_cell + 1e-6
    assert crop.tolist() == [0, 0, 1, 1]
    np.testing.assert_array_equal(encode_layout(found, found_labels, vocab_size), ids)


def test_no_corner_is_the_id_of_no_object():
    # 1024 is a square number: the original's last cell would be that id.
    ids = encode_layout([[0, 0, 1, 1]], [0], 1024, max_objects=1)
    assert 1023 not in ids and num_sections(8192) == 90


def test_padding_and_surplus_are_left_out():
    boxes = random_boxes(5)
    ids = encode_layout(boxes, [4, -1, 2, 1, -1], 100, max_objects=2)
    found, labels, _ = decode_layout(ids, 100)
    assert labels.tolist() == [4, 2] and ids.shape == (8,)
    np.testing.assert_allclose(found, boxes[[0, 2]], atol=0.1)


def test_crop_is_the_last_pair():
    ids = encode_layout([], [], crop=(0.1, 0.2, 0.9, 0.8))
    _, labels, crop = decode_layout(ids)
    assert not labels.size
    np.testing.assert_allclose(crop, (0.1, 0.2, 0.9, 0.8), atol=0.5 / 89)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([[0, 0, 1, 1]], [99], 100), "label 99 has no id: labels go up to 98"),
        (([[0, 0, 1, 1]], [1, 2]), "1 boxes and 2 box labels"),
    ],
)
def test_what_cannot_be_encoded(arguments, message):
    with pytest.raises(ValueError, match=message):
        encode_layout(*arguments)


def test_json_with_numbers_and_names():
    objects = [
        {"label": 1, "box": [0, 0, 0.5, 1]},
        {"label": "cat", "box": [0.1, 0.2, 0.3, 0.4]},
    ]
    boxes, labels = parse_layout(objects, ("cat", "dog"))
    assert labels.tolist() == [1, 0] and labels.dtype == np.int32
    np.testing.assert_allclose(boxes, [[0, 0, 0.5, 1], [0.1, 0.2, 0.3, 0.4]])
    boxes, labels = parse_layout([])
    assert boxes.shape == (0, 4) and labels.shape == (0,)


@pytest.mark.parametrize(
    ("objects", "message"),
    [
        ({"label": 1}, "a layout is a list of objects"),
        ([{"label": 1}], "an object of a layout is not"),
        ([{"label": "cow", "box": [0, 0, 1, 1]}], "'cow' .* choose from cat, dog"),
        ([{"label": 2, "box": [0, 0, 1, 1]}], "label 2 .* out of range: 0 to 1"),
        ([{"label": 0, "box": [0, 0, 1]}], r"must be \[ymin, xmin, ymax, xmax\]"),
        ([{"label": 0, "box": [0, 10, 1, 90]}], "0 <= xmin < xmax <= 1"),
    ],
)
def test_json_that_is_no_layout(objects, message):
    with pytest.raises(ValueError, match=message):
        parse_layout(objects, ("cat", "dog"))
    if "cow" in message:
        with pytest.raises(ValueError, match="give the class's number"):
            parse_layout(objects)
