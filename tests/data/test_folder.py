"""Folders: what is an image, what is a class, what is a split."""

import os
import pickle

import numpy as np
import pytest

from ldm_jax.data.folder import FolderSource
from tests.data.common import write_images


def names(source, root):
    paths = [source.describe(index) for index in range(len(source))]
    return [os.path.relpath(path, root) for path in paths]


def labels(source):
    return [source[index].get("label") for index in range(len(source))]


def test_classes_are_the_sorted_subfolders(tmp_path):
    write_images(tmp_path, ["dog/b.png", "cat/x.jpg", "dog/a.webp", "dog/deep/c.bmp"])
    source = FolderSource(str(tmp_path), "all")
    assert source.class_names == ("cat", "dog") and source.num_classes == 2
    assert names(source, tmp_path) == [
        "cat/x.jpg",
        "dog/a.webp",
        "dog/b.png",
        "dog/deep/c.bmp",
    ]
    assert labels(source) == [0, 1, 1, 1]


def test_bytes_are_those_of_the_file(tmp_path):
    write_images(tmp_path, ["a.png"])
    source = FolderSource(str(tmp_path), "train")
    assert source[0] == {"image": (tmp_path / "a.png").read_bytes()}
    assert source.num_classes is None and source.class_names is None


def test_an_image_outside_the_subfolders_means_no_classes(tmp_path):
    write_images(tmp_path, ["a.png", "cat/b.png"])
    source = FolderSource(str(tmp_path), "all")
    assert source.num_classes is None and len(source) == 2


def test_classes_can_be_ignored(tmp_path):
    write_images(tmp_path, ["cat/a.png", "dog/b.png"])
    source = FolderSource(str(tmp_path), "all", label_key="")
    assert source.num_classes is None and labels(source) == [None, None]


def test_other_files_are_passed_over(tmp_path):
    write_images(
        tmp_path,
        ["a.PNG", ".hidden.png", ".cache/b.png", "__MACOSX/._a.png", "c.JPEG", "d.tif"],
    )
    (tmp_path / "notes.txt").write_text("no image")
    source = FolderSource(str(tmp_path), "all")
    assert names(source, tmp_path) == ["a.PNG", "c.JPEG", "d.tif"]


def test_links_are_followed_but_not_for_ever(tmp_path):
    write_images(tmp_path / "elsewhere", ["a.png"])
    root = tmp_path / "root"
    write_images(root, ["cat/b.png"])
    (root / "dog").symlink_to(tmp_path / "elsewhere")
    (root / "cat" / "loop").symlink_to(root)
    source = FolderSource(str(root), "all")
    assert names(source, root) == ["cat/b.png", "dog/a.png"]


def test_names_that_are_not_text(tmp_path):
    write_images(tmp_path, ["ok.png"])
    odd = os.path.join(os.fsencode(tmp_path), b"\xff\xfe.png")
    os.rename(tmp_path / "ok.png", odd)
    source = pickle.loads(pickle.dumps(FolderSource(str(tmp_path), "all")))
    assert source[0]["image"].startswith(b"\x89PNG")


def test_relative_to_data_dir(tmp_path, monkeypatch):
    write_images(tmp_path / "images", ["a.png"])
    assert len(FolderSource("images", "all", data_dir=str(tmp_path))) == 1
    monkeypatch.chdir(tmp_path)
    assert len(FolderSource("images", "all")) == 1
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(FolderSource("~/images", "all")) == 1


@pytest.mark.parametrize("held_out", ["val", "validation", "valid", "test"])
def test_subfolders_that_are_splits(tmp_path, held_out):
    write_images(tmp_path, ["train/cat/a.png", "train/dog/b.png", "extra/x.png"])
    write_images(tmp_path, [f"{held_out}/dog/c.png"])
    train = FolderSource(str(tmp_path), "train")
    assert names(train, tmp_path) == ["train/cat/a.png", "train/dog/b.png"]
    for split in ("validation", "test"):
        source = FolderSource(str(tmp_path), split)
        assert names(source, tmp_path) == [f"{held_out}/dog/c.png"]
        # The label is the one that the class has in training.
        assert labels(source) == [1]
    assert len(FolderSource(str(tmp_path), "all")) == 3


def test_all_folders_of_a_split_are_taken(tmp_path, caplog):
    write_images(tmp_path, ["train/cat/a.png", "training/dog/b.png", "more/x.png"])
    write_images(tmp_path, ["val/dog/c.png", "Validation/dog/d.png", "test/cat/e.png"])
    found = {
        split: names(FolderSource(str(tmp_path), split), tmp_path)
        for split in ("train", "validation", "test")
    }
    assert found["train"] == ["train/cat/a.png", "training/dog/b.png"]
    assert found["validation"] == ["Validation/dog/d.png", "val/dog/c.png"]
    assert found["test"] == ["test/cat/e.png"]
    assert labels(FolderSource(str(tmp_path), "train")) == [0, 1]
    assert "1 others are not read, as more" in caplog.text


def test_a_class_called_train_is_a_class(tmp_path):
    write_images(tmp_path, ["train/a.png", "tram/b.png"])
    assert FolderSource(str(tmp_path), "all").class_names == ("train", "tram")


def test_a_training_folder_alone_is_divided(tmp_path):
    write_images(tmp_path, [f"train/{name}/{i}.png" for name in "ab" for i in range(9)])
    train = FolderSource(str(tmp_path), "train")
    held_out = FolderSource(str(tmp_path), "validation")
    assert train.class_names == ("a", "b") and len(train) + len(held_out) == 18


def test_division_by_hash(tmp_path):
    write_images(tmp_path, [f"{i}.png" for i in range(60)], size=(2, 2))
    train = names(
        FolderSource(str(tmp_path), "train", validation_fraction=0.2), tmp_path
    )
    source = FolderSource(str(tmp_path), "validation", validation_fraction=0.2)
    held_out = names(source, tmp_path)
    assert sorted(train + held_out) == sorted(f"{i}.png" for i in range(60))
    assert 4 <= len(held_out) <= 24
    # More files do not move those that were there.
    write_images(tmp_path, [f"{i}.png" for i in range(60, 90)], size=(2, 2))
    source = FolderSource(str(tmp_path), "validation", validation_fraction=0.2)
    assert set(held_out) <= set(names(source, tmp_path))
    assert not set(train) & set(names(source, tmp_path))


def test_few_files_leave_one_for_validation(tmp_path):
    write_images(tmp_path, ["a.png", "b.png"])
    for split in ("train", "validation"):
        assert len(FolderSource(str(tmp_path), split)) == 1


def test_a_single_file_is_for_training(tmp_path):
    write_images(tmp_path, ["a.png"])
    assert len(FolderSource(str(tmp_path), "train")) == 1
    with pytest.raises(ValueError, match='no images for split "validation"'):
        FolderSource(str(tmp_path), "validation")


def test_a_class_that_training_does_not_know(tmp_path):
    write_images(tmp_path, ["train/cat/a.png", "val/zebra/b.png"])
    with pytest.raises(ValueError, match="zebra/b.png is in none of the 1 class"):
        FolderSource(str(tmp_path), "validation")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(name="nowhere"), "nowhere does not exist; data.name"),
        (dict(name=""), "name is empty"),
        (dict(name="file"), "is a file"),
        (dict(name="empty"), "no images in .*empty or below; looked for .jpg"),
        (dict(name="empty", split="dev"), 'the splits train, .* not "dev"'),
        (dict(name="empty", label_key="cls"), 'label_key="cls"'),
        (dict(name="empty", validation_fraction=1.0), r"must be in \(0, 1\), got 1.0"),
    ],
)
def test_errors_say_what_to_change(tmp_path, arguments, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=message):
        FolderSource(**{"split": "train", "data_dir": str(tmp_path)} | arguments)


def test_images_that_are_not_read_are_named(tmp_path, caplog):
    write_images(tmp_path, ["train/a/0.png", "val/a/0.png", "loose.png"])
    (tmp_path / "train" / "a" / "1.AVIF").write_bytes(b"")
    (tmp_path / "train" / "a" / "1.txt").write_bytes(b"")
    assert len(FolderSource(str(tmp_path), "train")) == 1
    assert "1 others are not read, as loose" in caplog.text
    assert "1 images of formats" in caplog.text and "a/1.AVIF" in caplog.text


def test_a_split_that_is_not_there_is_no_other_division(tmp_path):
    write_images(tmp_path, ["train/a/0.png", "train/a/1.png"])
    (tmp_path / "val").symlink_to(tmp_path / "gone")
    with pytest.raises(ValueError, match="/val cannot be listed: it is a link to what"):
        FolderSource(str(tmp_path), "train")


def test_links_that_lead_nowhere_beside_classes(tmp_path):
    """They may be classes, unless they are called as files are."""
    write_images(tmp_path, ["a/0.png", "b/0.png"])
    for name in ("README", "notes.md"):
        (tmp_path / name).symlink_to(tmp_path / "gone")
    source = FolderSource(str(tmp_path), "all")
    assert source.class_names == ("a", "b") and not source.skipped
    (tmp_path / "c").symlink_to(tmp_path / "gone")
    with pytest.raises(ValueError, match="/c cannot be listed: .* classes"):
        FolderSource(str(tmp_path), "all")
    assert len(FolderSource(str(tmp_path), "all", label_key="").skipped) == 1


def test_what_is_not_read_is_named_once(tmp_path, caplog):
    """Arrays are looked for where there are no images."""
    for name in ("train/a/0.npy", "val/a/0.npy", "train/a/1.avif", "other/0.npy"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        np.save(tmp_path / name, np.zeros((2, 2, 3)))
        if not name.endswith(".npy"):
            (tmp_path / f"{name}.npy").rename(tmp_path / name)
    assert len(FolderSource(str(tmp_path), "train")) == 1
    assert caplog.text.count("images of formats") == 1
    assert caplog.text.count("others are not read") == 1
