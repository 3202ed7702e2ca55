"""Folders that `datasets` wrote, and the names of sets on the hub."""

import json
import pickle
import sys
import types

import pytest

from ldm_jax.data.tables.huggingface import HuggingFaceSource
from ldm_jax.errors import DataError
from tests.data.tables import make_rows, save_to_disk, write_parquet

ROWS = make_rows(9)


def texts(source):
    return sorted(source[k]["text"] for k in range(len(source)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_to_disk(tmp_path_factory.mktemp("saved") / "set", ROWS)


def test_rows_are_examples(folder):
    keys = ["caption", "boxes", "text"]
    source = pickle.loads(pickle.dumps(HuggingFaceSource(folder, "all", keys=keys)))
    assert len(source) == 9 and source.class_names == ("cat", "dog")
    # The first file holds every second row.
    for k, row in enumerate([*ROWS[::2], *ROWS[1::2]]):
        example = source[k]
        assert example["image"] == row["image"]["bytes"]
        assert (example["label"], example["text"]) == (row["label"], row["text"])
        assert example["caption"] == row["caption"]
    assert source.describe(7) == f"{folder}/data-00001-of-00002.arrow row 2"
    assert source.sizes()[1].tolist() == [12, 16]
    assert source.columns(["score"])["score"].tolist()[:2] == [0, 0.5]


def test_a_set_without_splits_is_divided(folder):
    sides = [
        HuggingFaceSource(folder, split, validation_fraction=0.3, keys=["text"])
        for split in ("train", "validation")
    ]
    assert sorted(texts(sides[0]) + texts(sides[1])) == sorted(r["text"] for r in ROWS)
    assert all(map(len, sides))


def test_a_set_with_splits(tmp_path):
    save_to_disk(tmp_path / "train", ROWS[:6])
    save_to_disk(tmp_path / "test", ROWS[6:], shards=1)
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    counts = {
        split: len(HuggingFaceSource(str(tmp_path), split))
        for split in ("train", "validation", "test", "all")
    }
    assert counts == {"train": 6, "validation": 3, "test": 3, "all": 9}
    with pytest.raises(ValueError, match='no split "dev"; it has train, test, all'):
        HuggingFaceSource(str(tmp_path), "dev")


def test_a_file_that_names_files_elsewhere_is_refused(folder, tmp_path):
    (tmp_path / "state.json").write_text(
        json.dumps({"_data_files": [{"filename": "../set/data-00000-of-00002.arrow"}]})
    )
    with pytest.raises(ValueError, match="names no files of its folder"):
        HuggingFaceSource(str(tmp_path), "all")


def test_folders_that_are_something_else(tmp_path):
    write_parquet(tmp_path / "x.parquet", ROWS[:1])
    with pytest.raises(ValueError, match="for Parquet files give data.source=parquet"):
        HuggingFaceSource(str(tmp_path), "all")
    with pytest.raises(ValueError, match="folder /no/where does not exist"):
        HuggingFaceSource("/no/where", "all")
    with pytest.raises(ValueError, match="name is empty"):
        HuggingFaceSource("", "all")


def test_a_damaged_file(tmp_path):
    folder = save_to_disk(tmp_path / "set", ROWS)
    path = tmp_path / "set" / "data-00000-of-00002.arrow"
    path.write_bytes(path.read_bytes()[:700])
    source = HuggingFaceSource(folder, "all")
    ((where, why),) = source.skipped
    assert len(source) == 4 and where == str(path) and "cannot be read as Arrow" in why
    with pytest.raises(DataError, match=f"cannot read {path}: it cannot be read as"):
        HuggingFaceSource(folder, "all", on_error="raise")
    (tmp_path / "set" / "state.json").write_text("{")
    with pytest.raises(ValueError, match="state.json is not JSON"):
        HuggingFaceSource(folder, "all")


def test_a_name_on_the_hub_needs_the_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r"4 or later: pip install 'ldm-jax\[datasets"):
        HuggingFaceSource("user/set", "train")
    library = types.SimpleNamespace(__version__="3.6.0")
    monkeypatch.setitem(sys.modules, "datasets", library)
    with pytest.raises(ValueError, match="from 4 on, and 3.6.0 is installed"):
        HuggingFaceSource("user/set", "train")


def test_a_name_on_the_hub(monkeypatch, folder):
    """What the library leaves in its cache is read; it is stood in for."""
    asked = []

    def load_dataset(*arguments, **options):
        asked.append((arguments, options))
        if arguments[0] == "user/none":
            raise OSError("no such\nset")
        files = [f"{folder}/data-0000{k}-of-00002.arrow" for k in range(2)]
        split = types.SimpleNamespace(cache_files=[{"filename": f} for f in files])
        return {"train": split}

    library = types.SimpleNamespace(load_dataset=load_dataset, __version__="4.0.0")
    monkeypatch.setitem(sys.modules, "datasets", library)
    source = HuggingFaceSource("user/set", "all", subset="large", revision="v1")
    assert len(source) == 9
    assert asked == [(("user/set", "large"), {"revision": "v1"})]
    with pytest.raises(ValueError, match="cannot be had from the hub: no such set"):
        HuggingFaceSource("user/none", "train")


def test_other_labels_make_another_set(tmp_path):
    rows = [row | {"label": 1 - row["label"]} for row in ROWS]
    first, second = (
        save_to_disk(tmp_path / str(k), r) for k, r in enumerate((ROWS, rows))
    )
    marks = {HuggingFaceSource(f, "all").fingerprint() for f in (first, second, first)}
    assert len(marks) == 2
    unlabelled = {
        HuggingFaceSource(f, "all", label_key="").fingerprint() for f in (first, second)
    }
    assert len(unlabelled) == 1


def test_all_parts_of_a_split_are_taken(tmp_path):
    names = ["train", "val", "validation", "test", "extra"]
    for k, name in enumerate(names):
        save_to_disk(tmp_path / name, ROWS[k : k + 2])
    (tmp_path / "dataset_dict.json").write_text(json.dumps({"splits": names}))
    counts = {
        split: len(HuggingFaceSource(str(tmp_path), split))
        for split in ("train", "validation", "val", "test", "extra", "all")
    }
    expected = dict(train=2, validation=4, val=2, test=2, extra=2, all=10)
    assert counts == expected
