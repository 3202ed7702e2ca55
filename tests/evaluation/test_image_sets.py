"""Sets of images: folders and npz files, as they are or cut, on any devices."""

import errno
import io
import os
import struct

import jax
import numpy as np
import pytest
from PIL import Image

from ldm_jax import sharding
from ldm_jax.data.folder import FolderSource
from ldm_jax.errors import ConfigError, DataError
from ldm_jax.evaluation.compare import check_sizes
from ldm_jax.evaluation.image_sets import open_images, open_training_set
from ldm_jax.files import write_json
from ldm_jax.images import Pixels, depth_of, suffix_of
from ldm_jax.images import write_image as write_pixels
from ldm_jax.metrics.adm_npz import StoredImages
from ldm_jax.sampling.sample_pixels import settings_of
from tests.sampling.common import picture, write_image


def mesh_of(devices):
    return sharding.make_mesh(devices=jax.devices()[:devices])


def collect(images, start=0):
    """(images that count, positions) from a position on."""
    found, positions = [], []
    for position, batch in images.batches(start):
        found.append(np.asarray(batch["image"])[np.asarray(batch["mask"])])
        positions.append(position)
    return np.concatenate(found), positions


@pytest.fixture
def folder(tmp_path):
    """Seven images in sub-folders."""
    for k in range(7):
        write_image(tmp_path / "images" / f"{k % 2}" / f"{k}.png", picture(k))
    return tmp_path / "images"


# In the order of the paths.
ORDER = [0, 2, 4, 6, 1, 3, 5]


@pytest.mark.parametrize("devices, size", [(1, 3), (2, 3), (4, 16)])
def test_a_folder_and_an_npz_of_it_are_the_same_images(folder, devices, size):
    expected = np.stack([picture(k) for k in ORDER])
    np.savez(folder / "all.npz", arr_0=expected)
    mesh = mesh_of(devices)
    for place in (folder, folder / "all.npz"):
        images = open_images(place, mesh, size)
        assert images.count == 7 and images.size == (16, 16)
        found, positions = collect(images)
        np.testing.assert_array_equal(found, expected)
        # From every position on come the others.
        for position in positions[:-1]:
            rest, _ = collect(images, position)
            np.testing.assert_array_equal(rest, expected[position:])
        few = open_images(place, mesh, size, count=5)
        np.testing.assert_array_equal(collect(few)[0], expected[:5])
    assert images.record["preprocessing"]["size"] == [16, 16]


def test_of_a_large_npz_no_more_is_read_than_is_asked_for(tmp_path, monkeypatch):
    np.savez(tmp_path / "a.npz", arr_0=np.zeros((40, 8, 8, 3), np.uint8))
    read, blocks = [], StoredImages.blocks

    def counted(self, size, start=0):
        for block in blocks(self, size, start):
            read.append(len(block))
            yield block

    monkeypatch.setattr(StoredImages, "blocks", counted)
    found, _ = collect(open_images(tmp_path / "a.npz", mesh_of(1), 4, count=6))
    assert len(found) == 6 and read == [4, 4]


def test_images_are_cut_where_a_size_is_asked_for(folder):
    write_image(folder / "wide.png", picture(9, 16, 40))
    images = open_images(folder, mesh_of(2), 4, image_size=16)
    found, positions = collect(images)
    assert found.shape == (8, 16, 16, 3) and images.size == (16, 16)
    np.testing.assert_array_equal(found[-1], picture(9, 16, 40)[:, 12:28])
    assert images.record["preprocessing"]["crop"] == "center"
    rest, _ = collect(images, positions[0])
    np.testing.assert_array_equal(rest, found[positions[0] :])


def test_the_list_of_images_is_recorded(folder):
    before = open_images(folder, mesh_of(1), 4).record["images"]
    assert open_images(folder, mesh_of(1), 4).record["images"] == before
    (folder / "0" / "0.png").rename(folder / "0" / "00.png")
    assert open_images(folder, mesh_of(1), 4).record["images"] != before


def test_other_images_of_the_same_names_and_sizes_are_told_apart(folder):
    last = folder / "1" / "5.png"
    data = last.read_bytes()
    for size in (None, 16):
        records = []
        for content in (data, data[::-1], data):
            last.write_bytes(content)
            images = open_images(folder, mesh_of(1), 4, image_size=size)
            records.append(images.record["images"])
        assert records[0] == records[2] != records[1]


def test_images_of_other_sizes_are_refused(folder):
    write_image(folder / "1" / "odd.png", picture(0, 16, 24))
    images = open_images(folder, mesh_of(1), 4)
    message = r"odd.png is 16 x 24 pixels and .*0.png 16 x 16: .*--image_size"
    with pytest.raises(DataError, match=message):
        collect(images)


def test_images_that_cannot_be_read(folder):
    (folder / "0" / "3.png").write_bytes(b"no image")
    images = open_images(folder, mesh_of(2), 4)
    message = "3.png cannot be read .* --skip_unreadable"
    with pytest.raises(DataError, match=message):
        collect(images)
    images = open_images(folder, mesh_of(2), 4, skip_unreadable=True)
    found, positions = collect(images)
    assert len(found) == 7 and positions == [4, 8]
    for path in folder.rglob("*.png"):
        path.write_bytes(b"no image")
    with pytest.raises(DataError, match="none of the 8 images can be read"):
        open_images(folder, mesh_of(2), 4, skip_unreadable=True)


@pytest.mark.parametrize("size", [None, 16])
@pytest.mark.parametrize("kept", [4, 8, 12, -40])
def test_a_damaged_tiff_is_an_image_that_cannot_be_read(folder, size, kept, caplog):
    """And not one of other channels, of which nothing says what they are."""
    path = folder / "0" / "0.tif"
    Image.fromarray(picture(9)).save(path, compression="tiff_lzw")
    path.write_bytes(path.read_bytes()[:kept])
    options = {"image_size": size, "skip_unreadable": True}
    assert len(collect(open_images(folder, mesh_of(1), 4, **options))[0]) == 7
    assert any("0.tif" in record.getMessage() for record in caplog.records)
    with pytest.raises(DataError, match="0.tif.*--skip_unreadable"):
        collect(open_images(folder, mesh_of(1), 4, image_size=size))


def test_how_little_a_tiff_says(monkeypatch):
    def tiff(array):
        buffer = io.BytesIO()
        Image.fromarray(array).save(buffer, "TIFF")
        return buffer.getvalue()

    photo = tiff(picture(9))
    # Of five channels, which Pillow does not open.
    samples = struct.pack("<HHII", 277, 3, 1, 3)
    assert photo.count(samples) == 1
    five = photo.replace(samples, struct.pack("<HHII", 277, 3, 1, 5))
    assert depth_of(photo) is None and depth_of(five) == "array"
    assert depth_of(tiff(np.zeros((4, 4), np.uint16))) == "16 bits"
    assert depth_of(tiff(np.zeros((4, 4), np.float32))) == "array"
    # Also where Pillow would call it a bomb.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 8)
    assert depth_of(photo) is None


def test_what_is_no_set_of_images(folder, tmp_path):
    mesh = mesh_of(1)
    with pytest.raises(ConfigError, match="--images=.*none does not exist"):
        open_images(tmp_path / "none", mesh, 4)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="--reference: no images in .*empty"):
        open_images(tmp_path / "empty", mesh, 4, flag="--reference")
    (tmp_path / "drawn" / "samples").mkdir(parents=True)
    (tmp_path / "drawn" / "settings.json").write_text("{}")
    # As an editor leaves it.
    (folder / "settings.json").write_text("{}")
    open_images(folder, mesh, 4)
    with pytest.raises(ConfigError, match="ldm-sample: give its samples, .*/samples"):
        open_images(tmp_path / "drawn", mesh, 4)
    with pytest.raises(ConfigError, match="has 1 image: .* two or more"):
        open_images(folder, mesh, 4, count=1)
    np.savez(tmp_path / "a.npz", arr_0=np.zeros((3, 8, 8, 3), np.uint8))
    with pytest.raises(ConfigError, match="8 x 8 pixels.*leave --image_size out"):
        open_images(tmp_path / "a.npz", mesh, 4, image_size=16)


def test_training_images(folder):
    for k, path in enumerate(sorted(folder.rglob("*.png"))):
        Image.fromarray(picture(k, 32, 32)).save(path)
    section = dict(source="folder", name=str(folder), split="train", image_size=16)
    section |= dict(crop="random", flip=True, validation_fraction=0.3)
    images = open_training_set(section, mesh_of(1), 4)
    assert images.size == (16, 16) and "split train" in images.name
    found, _ = collect(images)
    again, _ = collect(open_training_set(section, mesh_of(2), 2))
    np.testing.assert_array_equal(found, again)
    assert images.record["whole_training_set"]
    few = open_training_set(section, mesh_of(1), 4, count=3)
    assert not few.record["whole_training_set"]


# ---- Images of other channels, bits and ranges.


def write_samples(place, pixels, images):
    """A folder as ldm-sample leaves it."""
    settings = settings_of(pixels) | {"conditions": {}, "options": {}}
    write_json(place / "settings.json", settings)
    for k, image in enumerate(images):
        name = f"{k:06d}{suffix_of(pixels)}"
        write_pixels(place / "samples" / name, image, pixels)
    return place / "samples"


def drawn(pixels, count=3):
    """Images as a model draws them, in the type of a batch."""
    rng = np.random.default_rng(0)
    shape = (count, 16, 16, pixels.count)
    return pixels.quantise(rng.uniform(-1, 1, shape).astype(np.float32))


@pytest.mark.parametrize(
    "pixels",
    [
        Pixels("grey", "uint16", value_range=(0, 4095)),
        Pixels("rgb", value_range=(0, 200)),
        Pixels("rgba"),
        Pixels("rgb", "uint16"),
        Pixels(5, value_range=(-200, 800), rgb_channels=(4, 2, 0)),
        Pixels("grey", "float32", value_range=(0, 1)),
        Pixels("rgb", "float32"),
        Pixels(2),
    ],
    ids=str,
)
def test_samples_are_read_as_their_run_shows_them(tmp_path, pixels):
    """On the scale that they were written in, whatever that was."""
    images = drawn(pixels)
    samples = write_samples(tmp_path / "run", pixels, images)
    expected = pixels.shown(images).astype(int)
    for options in ({}, {"image_size": 16}):
        found = open_images(samples, mesh_of(1), 4, **options)
        # Files of narrow ranges hold fewer digits.
        assert abs(collect(found)[0] - expected).max() <= 1
        assert found.record["preprocessing"]["values"] == pixels.describe_range()
    np.savez(tmp_path / "run" / "samples.npz", arr_0=pixels.shown(images))
    with pytest.raises(ConfigError, match="as the settings of their run say"):
        open_images(tmp_path / "run" / "samples.npz", mesh_of(1), 4)


def test_an_npz_of_photos_needs_no_settings_and_takes_those_of_photos(tmp_path):
    images = drawn(Pixels())
    place = write_samples(tmp_path / "run", Pixels(), images) / "000000-000002.npz"
    np.savez(place, arr_0=images)
    found = open_images(place, mesh_of(1), 4)
    np.testing.assert_array_equal(collect(found)[0], images)
    assert found.record["preprocessing"]["values"] is None


def test_16_bits_without_settings_are_said_to_fill_their_range(tmp_path, caplog):
    pixels = Pixels("grey", "uint16")
    images = drawn(pixels)
    alone = write_samples(tmp_path / "run", pixels, images).rename(tmp_path / "alone")
    # What other programs call so.
    (tmp_path / "settings.json").write_text('{"editor.tabSize": 4}')
    found = open_images(alone, mesh_of(1), 4)
    np.testing.assert_array_equal(collect(found)[0], pixels.shown(images))
    (said,) = [r.getMessage() for r in caplog.records if "65535" in r.getMessage()]
    assert "000000.png has 16 bits, and no settings.json" in said
    # Samples whose settings say otherwise are not compared with them.
    ranged = Pixels("grey", "uint16", value_range=(0, 4095))
    samples = write_samples(tmp_path / "other", ranged, drawn(ranged))
    message = "values in the whole .*, from 0 to 65535 and these have values from 0 to"
    with pytest.raises(ConfigError, match=message):
        check_sizes(open_images(samples, mesh_of(1), 4), found)


@pytest.mark.parametrize("size", [None, 16])
def test_floats_without_settings_are_refused(tmp_path, size):
    pixels = Pixels("rgb", "float32", value_range=(0, 3))
    samples = write_samples(tmp_path / "run", pixels, drawn(pixels))
    alone = samples.rename(tmp_path / "alone")
    for skip in (False, True):
        message = "--reference: nothing says which values of .*alone/000000.npy"
        with pytest.raises(ConfigError, match=message):
            open_images(
                alone,
                mesh_of(1),
                4,
                image_size=size,
                skip_unreadable=skip,
                flag="--reference",
            )


def test_a_folder_that_cannot_be_listed_is_no_smaller_set(folder, monkeypatch, caplog):
    scan = os.scandir

    def scandir(path):
        if os.fspath(path).endswith("/1"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(
        DataError, match="/1 cannot be listed: Permission denied: repair"
    ):
        open_images(folder, mesh_of(1), 2)
    assert open_images(folder, mesh_of(1), 2, skip_unreadable=True).count == 4
    assert "/1 cannot be listed" in caplog.text


@pytest.mark.parametrize("size", [None, 16])
def test_a_set_of_junk_is_not_read_to_its_end(tmp_path, size, monkeypatch):
    for number in range(120):
        (tmp_path / f"{number:03}.png").write_bytes(b"none")
    read, item = [], FolderSource.__getitem__

    def counted(self, index):
        read.append(index)
        return item(self, index)

    monkeypatch.setattr(FolderSource, "__getitem__", counted)
    with pytest.raises(DataError, match="none of the first 100 images.* is .*000.png"):
        open_images(tmp_path, mesh_of(1), 4, image_size=size, skip_unreadable=True)
    assert len(read) == 100
