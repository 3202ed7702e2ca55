"""What the library `datasets` itself writes is read as it reads it."""

import pytest

from ldm_jax.data.tables.huggingface import HuggingFaceSource
from ldm_jax.data.tables.parquet import ParquetSource
from tests.data.common import make_image

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def written():
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=["cat", "dog"]),
            "caption": datasets.List(datasets.Value("string")),
            "width": datasets.Value("int32"),
        }
    )
    rows = {
        "image": [make_image(20, 10 + k, k) for k in range(250)],
        "label": [k % 2 for k in range(250)],
        "caption": [[f"a {k}", f"the {k}"] for k in range(250)],
        "width": [20] * 250,
    }
    return datasets, datasets.Dataset.from_dict(rows, features)


def same(source, theirs):
    plain = theirs.cast_column(
        "image", theirs.features["image"].__class__(decode=False)
    )
    assert len(source) == len(plain) and source.class_names == ("cat", "dog")
    for k in range(0, len(plain), 7):
        row, example = plain[k], source[k]
        assert example["image"] == row["image"]["bytes"]
        assert (example["label"], example["caption"]) == (row["label"], row["caption"])


def test_folders(written, tmp_path):
    datasets, theirs = written
    theirs.save_to_disk(tmp_path / "one", num_shards=3)
    same(HuggingFaceSource(str(tmp_path / "one"), "all", keys=["caption"]), theirs)
    parts = {"train": theirs, "test": theirs.select(range(20, 40))}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "two")
    for split, part in (("train", "train"), ("validation", "test")):
        source = HuggingFaceSource(str(tmp_path / "two"), split, keys=["caption"])
        same(source, parts[part])


def test_parquet(written, tmp_path):
    _, theirs = written
    theirs.to_parquet(tmp_path / "x.parquet")
    same(ParquetSource(str(tmp_path / "x.parquet"), "all", keys=["caption"]), theirs)


def test_the_cache_of_a_set_by_its_name(written, tmp_path, monkeypatch):
    """By the library's own loader, of files, as there may be no network."""
    datasets, theirs = written
    theirs.to_parquet(tmp_path / "x.parquet")
    load = datasets.load_dataset

    def offline(name, subset, revision):
        assert name == "user/set"
        files = {"train": str(tmp_path / "x.parquet")}
        return load("parquet", data_files=files, cache_dir=str(tmp_path / "cache"))

    monkeypatch.setattr(datasets, "load_dataset", offline)
    same(HuggingFaceSource("user/set", "all", keys=["caption"]), theirs)
