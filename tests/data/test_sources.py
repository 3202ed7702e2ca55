"""What data a run was trained on is recorded, and what changed since is named."""

import json
import shutil

import numpy as np
import pytest

from ldm_jax.data.folder import FolderSource
from ldm_jax.data.prepared import TfdsSource
from ldm_jax.data.sources import compare_records, make_record
from tests.data.common import write_images

FILES = [f"{name}/{k}.png" for name in ("cat", "dog", "fish") for k in range(3)]
EXAMPLE = {
    "image": np.zeros((1, 8, 8, 3), np.uint8),
    "label": np.zeros(1, np.int32),
    "caption": np.zeros((1, 12), np.int32),
    "clip": np.zeros((1, 5), np.float32),
    "text": np.array(["a star"]),
}


def record(folder, **example):
    made = make_record(FolderSource(str(folder), "all"), EXAMPLE | example)
    return json.loads(json.dumps(made))


@pytest.fixture
def folder(tmp_path):
    write_images(tmp_path / "images", FILES)
    return tmp_path / "images"


def changes(now, then, by_class=True):
    return [(c.text, c.fits) for c in compare_records(now, then, by_class)]


def test_the_same_data_elsewhere_are_the_same(folder):
    then = record(folder)
    assert then["num_examples"] == 9 and then["class_names"] == ["cat", "dog", "fish"]
    assert then["shapes"] == {
        "image": ["uint8", [8, 8, 3]],
        "label": ["int32", []],
        "caption": ["int32", [12]],
        "clip": ["float32", [5]],
    }
    moved = folder.rename(folder.parent / "moved")
    assert record(moved) == then and changes(record(moved), then) == []


def test_a_renamed_class_is_named(folder):
    then = record(folder)
    (folder / "dog").rename(folder / "dogs")
    assert changes(record(folder), then) == [
        ("classes were renamed (gone: dog, new: dogs)", True),
        ("as many images, but other ones", True),
    ]


def test_a_class_of_another_number_does_not_fit(folder):
    then = record(folder)
    (folder / "dog").rename(folder / "a dog")
    text = "class cat is number 1, was 0 (gone: dog, new: a dog)"
    assert changes(record(folder), then)[0] == (text, False)
    assert changes(record(folder), then, by_class=False)[0] == (text, True)


def test_a_lost_folder_does_not_fit(folder):
    then = record(folder)
    shutil.rmtree(folder / "dog")
    assert changes(record(folder), then) == [
        ("2 classes, 3 then (gone: dog)", False),
        ("6 images, 9 then", True),
    ]
    write_images(folder, ["0.png"])
    text = "no classes, 3 then (gone: cat, dog, fish)"
    assert changes(record(folder), then)[0] == (text, False)
    # A model that knows nothing of classes can continue.
    assert all(fits for _, fits in changes(record(folder), then, by_class=False))


def test_more_images_and_other_images_fit(folder):
    then = record(folder)
    write_images(folder, ["cat/4.png"])
    assert changes(record(folder), then) == [("10 images, 9 then", True)]
    (folder / "cat" / "4.png").unlink()
    assert changes(record(folder), then) == []
    write_images(folder, ["cat/0.png"], size=(50, 60))
    assert changes(record(folder), then) == [("as many images, but other ones", True)]


@pytest.mark.parametrize(
    ("key", "value", "fits"),
    [
        ("image", np.zeros((1, 16, 16, 3), np.uint8), True),
        ("caption", np.zeros((1, 20), np.int32), True),
        ("caption", np.zeros((1, 20), np.float32), False),
        ("clip", np.zeros((1, 7), np.float32), False),
        ("clip", np.zeros((1, 1, 5), np.float32), False),
    ],
)
def test_shapes_of_conditions(folder, key, value, fits):
    ((text, found),) = changes(record(folder, **{key: value}), record(folder))
    assert text.startswith(f"{key} is {value.dtype} [") and found == fits


def test_what_an_older_checkpoint_lacks_is_not_compared(folder):
    now = record(folder)
    assert changes(now, {}) == []
    classes = {"num_classes": 3, "class_names": ["cat", "dog", "fish"]}
    assert changes(now, classes) == []
    assert changes(now, classes | {"num_classes": 4})[0][1] is False


def test_fingerprints_of_prepared_data(shapes_dir, tmp_path):
    source = TfdsSource("shapes/32", "train", shapes_dir)
    moved = shutil.copytree(shapes_dir, tmp_path / "moved")
    again = TfdsSource("shapes/32", "train", moved).fingerprint()
    assert source.fingerprint() == again
    for split in ("validation", "train[:50%]"):
        other = TfdsSource("shapes/32", split, shapes_dir).fingerprint()
        assert other != source.fingerprint()


def test_the_fingerprint_of_many_files_asks_for_the_size_of_some(folder, monkeypatch):
    monkeypatch.setattr("ldm_jax.data.folder.folder_source._SIZES", 2)
    source = FolderSource(str(folder), "all")
    before = source.fingerprint()
    write_images(folder, [FILES[1]], size=(50, 60))
    assert source.fingerprint() == before  # Not one of those.
    write_images(folder, [FILES[5]], size=(50, 60))
    assert source.fingerprint() != before
