"""Sets of images: folders and npz files, as they are or cut, on any devices."""

import jax
import numpy as np
import pytest
from PIL import Image

from ldm_jax import sharding
from ldm_jax.errors import ConfigError, DataError
from ldm_jax.evaluation.image_sets import open_images, open_training_set
from ldm_jax.metrics.adm_npz import StoredImages
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


def test_what_is_no_set_of_images(folder, tmp_path):
    mesh = mesh_of(1)
    with pytest.raises(ConfigError, match="--images=.*none does not exist"):
        open_images(tmp_path / "none", mesh, 4)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="--reference: no images in .*empty"):
        open_images(tmp_path / "empty", mesh, 4, flag="--reference")
    (tmp_path / "drawn").mkdir()
    (tmp_path / "drawn" / "settings.json").write_text("{}")
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
