"""Transforms: geometry, antialiasing, and maps that follow the image."""

import io

import numpy as np
import pytest
from PIL import Image

from ldm_jax.data import crops
from ldm_jax.data.crops import Crop, choose_crop, size_and_crop, whole_size
from ldm_jax.data.inputs import apply_inputs, make_inputs
from ldm_jax.data.transforms import transform
from tests.data.common import encode, make_image

WHOLE = Crop(0, 0, 1, 1, False)


def generator(seed=0):
    return np.random.default_rng(seed)


@pytest.mark.parametrize(("width", "height"), [(40, 24), (24, 40), (32, 32), (7, 90)])
@pytest.mark.parametrize("crop", ["center", "random"])
def test_crops_are_square_and_as_large_as_can_be(width, height, crop):
    for seed in range(20):
        where = choose_crop(width, height, 16, crop, True, generator(seed))
        side = min(width, height)
        assert (where.right - where.left) * width == pytest.approx(side)
        assert (where.bottom - where.top) * height == pytest.approx(side)
        assert min(where.left, where.top) >= 0
        assert max(where.right, where.bottom) <= 1 + 1e-9


def test_center_crop_is_in_the_middle():
    assert choose_crop(40, 20, 16) == Crop(0.25, 0, 0.75, 1, False)


def test_random_crops_reach_both_ends():
    lefts = [
        choose_crop(60, 20, 16, "random", rng=generator(seed)).left
        for seed in range(200)
    ]
    assert min(lefts) == 0 and max(lefts) == pytest.approx(40 / 60)
    assert np.mean(lefts) == pytest.approx(20 / 60, abs=0.04)


def test_half_of_the_images_are_mirrored():
    flips = [choose_crop(8, 8, 8, flip=True, rng=generator(s)).flip for s in range(400)]
    assert 0.42 < np.mean(flips) < 0.58
    assert not choose_crop(8, 8, 8, rng=generator()).flip


def test_an_image_of_the_right_size_is_not_touched():
    image = make_image(16, 16)
    result = transform({"image": encode(image)}, 16)
    np.testing.assert_array_equal(result["image"], image)


def test_center_crop_cuts_whole_pixels():
    image = make_image(20, 16)
    result = transform({"image": encode(image)}, 16)
    np.testing.assert_array_equal(result["image"], image[:, 2:18])


@pytest.mark.parametrize("size", [(5, 9), (9, 5), (1, 1), (300, 3)])
def test_small_images_are_enlarged(size):
    result = transform({"image": encode(np.full((*size, 3), 77, np.uint8))}, 16)
    assert result["image"].shape == (16, 16, 3) and np.all(result["image"] == 77)


@pytest.mark.parametrize("format", ["PNG", "JPEG"])
def test_resizing_does_not_alias(format):
    # Lines one pixel wide average to grey; without a filter they leave black or white.
    stripes = np.zeros((512, 512, 3), np.uint8)
    stripes[:, ::2] = 255
    result = transform({"image": encode(stripes, format)}, 32)["image"]
    assert np.abs(result[:, 2:-2].astype(int) - 127).max() < 16


def test_resizing_agrees_with_pillow_on_the_whole_image():
    image = Image.fromarray(make_image(90, 60))
    whole = image.resize((48, 32), Image.Resampling.BICUBIC)
    expected = np.asarray(whole, int)[:, 8:40]
    result = transform({"image": encode(image)}, 32)["image"]
    assert np.abs(result - expected).max() <= 6


def position_maps(width=48, height=40):
    """Maps whose value at a pixel tells where the pixel is."""
    rows, columns = np.mgrid[:height, :width]
    image = np.stack([columns * 5, rows * 6, np.zeros_like(rows)], -1).astype(np.uint8)
    return {
        "image": encode(image),
        "segmentation": encode((columns // 8 + 6 * (rows // 8)).astype(np.uint8)),
        "depth": encode((columns * 1300).astype(np.uint16)),
    }


@pytest.mark.parametrize("seed", range(6))
def test_maps_follow_the_crop_and_the_mirroring(seed):
    result = transform(position_maps(), 40, "random", True, generator(seed))
    columns = np.round(result["image"][..., 0] / 5).astype(int)
    rows = np.round(result["image"][..., 1] / 6).astype(int)
    np.testing.assert_array_equal(
        result["segmentation"], columns // 8 + 6 * (rows // 8)
    )
    expected = columns * 1300 / 65535
    np.testing.assert_allclose(result["depth"][..., 0], expected, atol=1e-3)
    assert result["segmentation"].dtype == np.int32
    assert result["depth"].dtype == np.float32 and result["depth"].shape == (40, 40, 1)


def test_labels_are_never_mixed():
    segmentation = np.random.default_rng(0).choice([3, 200], (50, 70)).astype(np.uint8)
    for size in (16, 31, 128):
        example = {"image": make_image(70, 50), "segmentation": segmentation}
        result = transform(example, size)["segmentation"]
        assert set(np.unique(result)) == {3, 200}


def test_maps_of_another_resolution_cover_the_same_area():
    segmentation = np.zeros((20, 40), np.uint8)
    segmentation[:, 20:] = 1
    example = {"image": make_image(80, 40), "segmentation": segmentation}
    result = transform(example, 16)["segmentation"]
    assert np.all(result[:, :8] == 0) and np.all(result[:, 8:] == 1)


@pytest.mark.parametrize("flip", [False, True])
def test_boxes_follow_the_crop(flip):
    crop = Crop(0.25, 0.0, 0.75, 1.0, flip)
    boxes = [[0.2, 0.3, 0.6, 0.5], [0.0, 0.0, 0.5, 0.3], [0.0, 0.8, 1.0, 0.9]]
    result = crops.crop_boxes(boxes, crop)
    inside, cut = [0.2, 0.1, 0.6, 0.5], [0.0, 0.0, 0.5, 0.1]
    if flip:
        inside, cut = [0.2, 0.5, 0.6, 0.9], [0.0, 0.9, 0.5, 1.0]
    np.testing.assert_allclose(result[0], inside, atol=1e-6)
    np.testing.assert_allclose(result[1], cut, atol=1e-6)
    assert result.shape == (3, 4) and np.all(result[2:] == 0)


def test_boxes_that_a_crop_leaves_out_take_no_place():
    count = crops.MAX_BOXES
    boxes = [[0, 0, 1, 0.2]] * count + [[0, 0.5, 1, 0.6]] * 2
    example = {
        "image": make_image(80, 40),
        "boxes": boxes,
        "box_labels": [*range(count + 2)],
    }
    result = transform(example, 16)
    assert result["boxes"].shape == (count, 4) and result["box_labels"].shape == (
        count,
    )
    assert result["box_labels"][:3].tolist() == [count, count + 1, -1]
    np.testing.assert_allclose(result["boxes"][1], [0, 0.5, 1, 0.7], atol=1e-6)


@pytest.mark.parametrize(
    "captions", [[b"caf\xc3\xa9", b"x"], np.array([b"caf\xc3\xa9"])]
)
def test_captions_of_a_data_set_are_text(captions):
    result = transform({"image": make_image(8, 8), "caption": captions}, 8)
    assert result["caption"][0] == "café" and isinstance(result["caption"][-1], str)


def test_a_crop_may_be_smaller_than_it_could():
    sides = set()
    for seed in range(30):
        rng = np.random.default_rng(seed)
        crop = crops.choose_crop(80, 40, 16, "random", False, rng, min_crop=0.5)
        width, height = 80 * (crop.right - crop.left), 40 * (crop.bottom - crop.top)
        assert width == pytest.approx(height) and 20 <= height <= 40
        assert crop.left >= 0 and crop.top >= 0 and max(crop.right, crop.bottom) <= 1
        sides.add(round(height))
    assert len(sides) > 8


def test_classes_of_boxes_that_are_gone():
    example = {
        "image": make_image(80, 40),
        "boxes": [np.array([0, 0, 1, 0.2], np.float32), np.array([0, 0.3, 1, 0.6])],
        "box_labels": [np.int64(4), np.int64(0)],
    }
    result = transform(example, 16)
    assert list(result["box_labels"][:3]) == [0, -1, -1]
    assert result["box_labels"].dtype == np.int32


@pytest.mark.parametrize("count", [0, 1, 100, 130])
def test_any_number_of_boxes(count):
    boxes = np.tile(np.array([0.1, 0.2, 0.3, 0.4], np.float32), (count, 1))
    example = {
        "image": make_image(8, 8),
        "boxes": list(boxes),
        "box_labels": [1] * count,
    }
    result = transform(example, 8)
    assert result["boxes"].shape == (100, 4)
    assert np.sum(result["box_labels"] == 1) == min(count, 100)


def test_other_values_pass():
    example = {
        "image": make_image(8, 8),
        "label": 3,
        "caption": b"caf\xc3\xa9",
        "id": 7,
    }
    result = transform(example, 8)
    assert result["label"] == 3 and result["label"].dtype == np.int32
    assert result["caption"] == "café" and result["id"] == 7


@pytest.mark.parametrize(("width", "height"), [(40, 24), (24, 40), (7, 90)])
@pytest.mark.parametrize("size", [(8, 24), (24, 8)])
def test_crops_have_the_proportions_of_the_result(width, height, size):
    for crop in ("center", "random"):
        where = choose_crop(width, height, size, crop, rng=generator())
        across = (where.right - where.left) * width
        down = (where.bottom - where.top) * height
        assert across / down == pytest.approx(size[1] / size[0])
        assert across == pytest.approx(width) or down == pytest.approx(height)
        assert min(where.left, where.top) >= 0
        assert max(where.right, where.bottom) <= 1 + 1e-9
    maps = {"segmentation": np.arange(12 * 16, dtype=np.uint8).reshape(12, 16)}
    result = transform({"image": make_image(16, 12)} | maps, size)
    assert result["image"].shape == (*size, 3)
    assert result["segmentation"].shape == size


@pytest.mark.parametrize("values", [(0, 0.4, 0.6, 1), (0, 100, 200, 255)])
def test_masks_are_compared_with_half_of_their_largest_value(values):
    mask = np.array([values], np.float32)
    for one in (mask, mask > mask.max() / 2):
        resized = crops.resize_mask(one, Crop(0, 0, 1, 1, False), (1, 4))
        assert resized.dtype == bool and resized.tolist() == [
            [False, False, True, True]
        ]


# ---- Where an image comes from.


def test_sizes_and_crops_are_those_of_the_image_as_resized():
    example = {"image": encode(make_image(90, 60), "JPEG")}
    found = transform(example, (20, 20), with_size=True)["size_and_crop"]
    assert found.tolist() == [60, 90, 0, 5, 20, 20] and found.dtype == np.float32
    crop = Crop(0.0, 0.25, 0.5, 0.75, True)
    found = size_and_crop((80, 40), crop, (40, 20))
    assert found.tolist() == [80, 40, 20, 20, 40, 20]
    assert whole_size((8, 16)).tolist() == [8, 16, 0, 0, 8, 16]
    assert "size_and_crop" not in transform(example, 20)


def test_the_size_is_that_of_the_file_however_it_is_decoded():
    """XMP data that say the orientation leave the header to Pillow."""
    file = io.BytesIO()
    packet = b'<x:xmpmeta><rdf:Description tiff:Orientation="1"/></x:xmpmeta>'
    Image.new("RGB", (480, 320)).save(file, "JPEG", xmp=packet)
    found = transform({"image": file.getvalue()}, (20, 20), with_size=True)
    assert found["size_and_crop"][:2].tolist() == [320, 480]


def test_the_input_of_sizes_and_crops():
    made = make_inputs({"micro": {"kind": "size_and_crop"}})
    image = np.zeros((6, 8, 3), np.uint8)
    assert apply_inputs(made, {"image": image}, None)["micro"].tolist() == [
        *(6, 8, 0, 0, 6, 8)
    ]
    example = {"image": image, "size_and_crop": np.arange(6)}
    assert apply_inputs(made, example, None)["micro"].tolist() == list(range(6))
