"""Conditions as images: nothing is lost, what differs looks different."""

import numpy as np

from ldm_jax.data import draw
from ldm_jax.data.inputs import make_inputs


def test_small_images_are_enlarged_pixel_by_pixel():
    image = np.random.default_rng(0).integers(0, 256, (3, 5, 3), np.uint8)
    large = draw.fit(image, (12, 20))
    np.testing.assert_array_equal(large, image.repeat(4, axis=0).repeat(4, axis=1))
    # Other proportions leave white at the sides.
    wide = draw.fit(image, (12, 30))
    np.testing.assert_array_equal(wide[:, 5:25], large)
    assert (wide[:, :5] == 255).all() and (wide[:, 25:] == 255).all()


def test_classes_have_colours_of_their_own():
    labels = np.arange(40).reshape(5, 8)
    colors = draw.color_labels(labels)
    assert colors.shape == (5, 8, 3)
    assert len(np.unique(colors.reshape(-1, 3), axis=0)) == 40
    np.testing.assert_array_equal(draw.color_labels(labels[:2]), colors[:2])


def test_a_hatched_mask_leaves_the_rest_alone():
    image = np.full((32, 32, 3), 90, np.uint8)
    mask = np.zeros((32, 32, 1), bool)
    mask[8:24, 4:20] = True
    shown = draw.hatch(image, mask)
    assert ((shown == image).all(axis=-1) == ~mask[..., 0]).all()


def test_boxes_are_drawn_where_they_are():
    box = [[0.25, 0.5, 0.75, 1.0]]
    shown = draw.draw_layout((box, [2]), (80, 100), ["a", "b", "c"])
    inked = (shown == draw.color_of(2)).all(axis=-1)
    rows, columns = np.nonzero(inked)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (20, 59, 50, 99)
    nothing = draw.draw_layout(([], []), (80, 100))
    named = draw.draw_layout((box, [2]), (80, 100))
    assert (named != nothing).any() and (named != shown).any()


def test_every_kind_of_map_is_drawn_at_the_size_asked_for():
    section = {
        key: dict(kind=key)
        for key in ("layout", "segmentation", "depth", "low_res", "masked_image")
    }
    inputs = make_inputs(section | {"style": dict(kind="image")})
    rng = np.random.default_rng(0)
    example = {
        "image": rng.integers(0, 256, (16, 16, 3), np.uint8),
        "boxes": np.array([[0, 0, 0.5, 0.5]]),
        "box_labels": np.array([3]),
        "segmentation": rng.integers(0, 4, (16, 16)),
        "depth": rng.random((16, 16, 1), np.float32),
    }
    for make in inputs.values():
        shown = make.draw(make(example, rng), (48, 64))
        assert shown.shape == (48, 64, 3) and shown.dtype == np.uint8
        assert len(np.unique(shown.reshape(-1, 3), axis=0)) > 1
