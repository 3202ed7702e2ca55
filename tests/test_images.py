"""Images: round trips, clipping, grids, PNG files."""

import os

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from ldm_jax import images

EVERY = np.arange(256, dtype=np.uint8)


@pytest.mark.parametrize("module", [np, jnp])
def test_round_trip_of_every_value(module):
    floats = images.to_float(module.asarray(EVERY))
    assert isinstance(floats, type(module.asarray(EVERY)))
    assert floats.dtype == np.float32 and floats.min() == -1 and floats.max() == 1
    np.testing.assert_array_equal(np.asarray(images.to_uint8(floats)), EVERY)


def test_values_outside_are_clipped():
    result = images.to_uint8(np.array([-3.0, -1.0, 0.0, 1.0, 3.0]))
    np.testing.assert_array_equal(result, [0, 0, 128, 255, 255])


def test_grid_places_images_row_by_row():
    arrays = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones(
        (1, 3, 4, 3), np.uint8
    )
    grid = images.make_grid(arrays, columns=2, border=1)
    assert grid.shape == (3 * 4 - 1, 2 * 5 - 1, 3)
    for index in range(5):
        top, left = index // 2 * 4, index % 2 * 5
        assert np.all(grid[top : top + 3, left : left + 4] == index)
    assert np.all(grid[8:, 5:] == 255) and np.all(grid[3] == 255)


@pytest.mark.parametrize(("count", "shape"), [(1, (3, 4)), (4, (8, 10)), (7, (13, 16))])
def test_grid_is_about_square(count, shape):
    grid = images.make_grid(np.zeros((count, 3, 4, 3), np.uint8), border=2)
    assert grid.shape[:2] == shape


def test_grid_of_few_images_has_no_empty_columns():
    assert images.make_grid(np.zeros((2, 3, 4, 3), np.uint8), 8).shape == (3, 10, 3)


def test_grid_refuses_what_it_would_draw_wrongly():
    with pytest.raises(ValueError, match="uint8 images"):
        images.make_grid(np.zeros((2, 4, 4, 3), np.float32))
    with pytest.raises(ValueError, match="at least one"):
        images.make_grid(np.zeros((0, 4, 4, 3), np.uint8))


def test_png_round_trip(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    path = tmp_path / "new" / "image.png"
    images.write_png(path, image)
    np.testing.assert_array_equal(images.read_image(path), image)
    np.testing.assert_array_equal(images.read_image(path.read_bytes()), image)
    assert os.listdir(path.parent) == ["image.png"]


def test_png_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "image.png"
    images.write_png(path, np.zeros((2, 2, 3), np.uint8))

    def fail(source, target):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        images.write_png(path, np.ones((2, 2, 3), np.uint8))
    assert os.listdir(tmp_path) == ["image.png"]
    assert np.all(images.read_image(path) == 0)


def test_png_refuses_floats(tmp_path):
    with pytest.raises(ValueError, match="needs uint8, got float32"):
        images.write_png(tmp_path / "x.png", np.zeros((2, 2, 3), np.float32))


def test_read_image_gives_rgb_of_any_mode(tmp_path):
    Image.new("CMYK", (3, 2)).save(tmp_path / "x.tiff")
    result = images.read_image(tmp_path / "x.tiff")
    assert result.shape == (2, 3, 3) and result.dtype == np.uint8
