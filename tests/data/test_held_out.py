"""Held-out data of another name than the training data."""

import pickle

import pytest

from ldm_jax.data.open_source import held_out_notes, open_source
from ldm_jax.errors import ConfigError
from tests.data.common import write_images
from tests.data.tables import make_rows, save_to_disk, write_parquet
from tests.data.tar_shards import write_shard

ROWS = make_rows(30)


def write_sets(kind, folder):
    """A training set of 30 examples and a validation set of 5; returns their names."""
    train, val = folder / "train", folder / "val"
    if kind == "tar":
        folder.mkdir(exist_ok=True)
        write_shard(str(folder / "train.tar"), range(30))
        write_shard(str(folder / "val.tar"), range(30, 35))
        return str(folder / "train.tar"), str(folder / "val.tar")
    if kind == "parquet":
        write_parquet(train / "0.parquet", ROWS)
        # Classes in another order.
        swapped = [row | {"label": 1 - row["label"]} for row in make_rows(5, 30)]
        write_parquet(val / "0.parquet", swapped, names=["dog", "cat"])
    elif kind == "huggingface":
        save_to_disk(train, ROWS)
        save_to_disk(val, make_rows(5, 30))
    else:
        write_images(train, [f"{'ab'[k % 2]}/{k}.png" for k in range(30)])
        # A class is missing.
        write_images(val, [f"b/{k}.png" for k in range(5)])
    return str(train), str(val)


def section_of(kind, folder, **changes):
    name, eval_name = write_sets(kind, folder)
    section = dict(source=kind, name=name, eval_name=eval_name, image_size=8)
    return section | dict(split="train", eval_split="validation") | changes


LABELS = {
    "tar": [0, 1, 2, 0, 1],
    "parquet": [0, 1, 0, 1, 0],
    # Two files, of every second row.
    "huggingface": [0, 0, 0, 1, 1],
    "folder": [1, 1, 1, 1, 1],
}


@pytest.mark.parametrize("kind", LABELS)
def test_held_out_data_of_another_name(tmp_path, kind):
    section = section_of(kind, tmp_path)
    train = open_source(section, "train")
    held_out = pickle.loads(pickle.dumps(open_source(section, "validation")))
    # Nothing of what is trained on is held out.
    assert (len(train), len(held_out)) == (30, 5)
    assert "val" in held_out.describe(0) and "train" in train.describe(0)
    assert held_out.class_names == train.class_names
    assert held_out.num_classes == train.num_classes
    assert [held_out[k]["label"] for k in range(5)] == LABELS[kind]
    assert held_out.fingerprint() != train.fingerprint()
    assert len(held_out.sizes()) == 5
    section["label_key"] = ""
    assert "label" not in open_source(section, "validation")[0]
    del section["eval_name"]
    assert len(open_source(section, "train")) < 30


def test_classes_that_are_not_trained_on_are_refused(tmp_path):
    section = section_of("folder", tmp_path)
    write_images(tmp_path / "val", ["c/0.png"])
    with pytest.raises(
        ConfigError, match="data.eval_name: its c are none of the 2 cla"
    ):
        open_source(section, "validation")
    write_parquet(tmp_path / "n" / "0.parquet", [ROWS[0] | {"label": 7}], names=None)
    write_parquet(tmp_path / "m" / "0.parquet", ROWS, names=None)
    section |= dict(source="parquet", name=str(tmp_path / "m"))
    section["eval_name"] = str(tmp_path / "n")
    with pytest.raises(
        ConfigError, match="its 2, 3, 4, 5, 6, 1 more are none of the 2"
    ):
        open_source(section, "validation")
    write_parquet(tmp_path / "m" / "0.parquet", ROWS)
    with pytest.raises(
        ConfigError, match="its classes have names, and those of the tr"
    ):
        open_source(section, "validation")


def test_parts_have_held_out_data_of_their_own(tmp_path):
    first, second = (section_of("tar", tmp_path / name) for name in "ab")
    del second["eval_name"]
    keys = ("source", "name", "eval_name")
    parts = {
        name: {key: part[key] for key in keys if key in part}
        for name, part in (("a", first), ("b", second))
    }
    section = dict(source="mixture", parts=parts, validation_fraction=0.2)
    section |= dict(split="train", eval_split="validation", image_size=8)
    held_out = open_source(section, "validation")
    places = {held_out.describe(k).split(" key")[0] for k in range(len(held_out))}
    assert any(place.endswith("a/val.tar") for place in places)
    assert any(place.endswith("b/train.tar") for place in places)
    with pytest.raises(ConfigError, match="set data.parts.NAME.eval_name"):
        open_source(section | {"eval_name": "x"}, "validation")


def test_a_mixture_whose_parts_hold_nothing_out(tmp_path):
    parts = {name: dict(source="folder", eval_split="") for name in "ab"}
    section = dict(source="mixture", parts=parts, name=str(tmp_path), image_size=8)
    section |= dict(split="train", eval_split="validation")
    message = r"no part .* in a, b\): set data.parts.a.eval_split, or data.eval_split= "
    with pytest.raises(ConfigError, match=message):
        open_source(section, "validation")


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(source="tfds"), "data.source=tfds has splits of its own"),
        (dict(eval_split=""), 'data.eval_split is "", with data.split="train": set'),
        (dict(split="validation"), "set eval_split to"),
        (dict(eval_name="nowhere.tar"), "data.eval_name: cannot read .*nowhere.tar"),
    ],
)
def test_wrong_held_out_data_are_one_line(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        open_source(section_of("tar", tmp_path, **changes), "validation")


@pytest.mark.parametrize(
    "split, eval_split, shared",
    [
        ("all", "validation", True),
        ("train", "all[:5%]", True),
        ("train + validation", "validation", True),
        (None, "validation", False),
        ("train", "train", True),
        ("train+validation", "validation", True),
        ("train", "train[:5%]", True),
        ("train[5%:]", "train", True),
        ("train", "validation", False),
        ("train[5%:]", "train[:5%]", False),
        ("all", "", False),
    ],
)
def test_what_is_held_out_and_trained_on_is_warned_of(split, eval_split, shared):
    section = dict(source="tfds", name="x", split=split, eval_split=eval_split)
    notes = held_out_notes(section)
    assert len(notes) == shared
    if shared:
        message = f"data.split={split} trains on images of data.eval_split={eval_split}"
        assert message in notes[0]
    assert held_out_notes(section | dict(eval_name="elsewhere")) == []
    parts = {"a": dict(source="tfds"), "b": dict(source="folder", eval_split="")}
    found = held_out_notes(section | dict(source="mixture", parts=parts))
    assert [note.count("data.parts.a.eval_split") for note in found] == [2] * shared
