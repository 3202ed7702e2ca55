"""Tar shards: what is an example, what it holds, where shards may lie."""

import io
import json
import os
import pickle
import tarfile
from contextlib import closing

import fsspec
import numpy as np
import pytest

from ldm_jax.data.loader import make_loader
from ldm_jax.data.open_source import open_source
from ldm_jax.data.tar import TarSource
from ldm_jax.data.tar.scan import scan
from ldm_jax.data.tar.shards import expand
from tests.data.tar_shards import (
    add,
    array,
    members,
    metadata,
    write_shard,
    write_shards,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("tar") / "shards")


def numbers(source):
    return [int(source.describe(i).split()[-1]) for i in range(len(source))]


def test_examples_hold_what_was_written(folder):
    source = TarSource(folder, "all", keys=["caption"])
    assert len(source) == 30 and numbers(source) == list(range(30))
    for number in (0, 9, 10, 29):
        written = members(number)
        assert source[number] == {
            "image": written["jpg"],
            "caption": f"caption {number}",
            "label": number % 3,
        }
    assert source.num_classes == 3 and source.class_names is None
    assert source.describe(10) == f"{folder}/00001.tar key 000000010"


def test_an_index_is_made_once_beside_each_shard(tmp_path):
    folder = write_shards(tmp_path / "shards", shards=2)
    first = TarSource(folder, "all")
    made = {p: p.stat().st_mtime_ns for p in (tmp_path / "shards").glob("*.index")}
    assert sorted(path.name for path in made) == ["00000.tar.index", "00001.tar.index"]
    again = TarSource(folder, "all")
    assert all(path.stat().st_mtime_ns == time for path, time in made.items())
    assert first.fingerprint() == again.fingerprint()


def test_ways_to_name_shards(folder, monkeypatch):
    def count(name, **options):
        return len(TarSource(name, "all", **options))

    assert count(folder) == count(f"{folder}/*.tar") == 30
    assert count(f"{folder}/{{00000..00001}}.tar") == 20
    assert count([f"{folder}/00000.tar", f"{folder}/00002.tar"]) == 20
    assert count("{00002,00000}.tar", data_dir=folder) == 20
    monkeypatch.chdir(folder)
    assert count("00001.tar") == 10
    assert expand("a{08..11}{x,y}") == [
        f"a{n}{c}" for n in ("08", "09", "10", "11") for c in "xy"
    ]
    assert expand("{9..11}") == ["9", "10", "11"]


def test_sizes_and_columns_come_from_the_index(folder):
    source = TarSource(folder, "all")
    rows = [metadata(number) for number in range(30)]
    sizes = source.sizes()
    assert sizes.dtype == np.int32
    assert sizes.tolist() == [[row["height"], row["width"]] for row in rows]
    assert {"aesthetic", "language", "watermark", "width", "cls"} <= set(
        source.column_names
    )
    columns = source.columns(["aesthetic", "language", "watermark", "width", "cls"])
    for name in ("aesthetic", "language", "watermark", "width"):
        assert columns[name].tolist() == [row[name] for row in rows]
    assert [columns[n].dtype.kind for n in ("aesthetic", "watermark")] == ["f", "b"]
    assert columns["cls"].tolist() == [number % 3 for number in range(30)]


def test_splits_divide_the_examples_by_hash(folder):
    held_out = TarSource(folder, "validation", validation_fraction=0.3)
    train = TarSource(folder, "train", validation_fraction=0.3)
    assert sorted(numbers(held_out) + numbers(train)) == list(range(30))
    assert len(held_out) and held_out.fingerprint() != train.fingerprint()
    assert train.num_classes == held_out.num_classes == 3
    part = TarSource(f"{folder}/00001.tar", "validation", validation_fraction=0.3)
    assert set(numbers(part)) <= set(numbers(held_out))
    rows = [metadata(number)["aesthetic"] for number in numbers(train)]
    assert train.columns(["aesthetic"])["aesthetic"].tolist() == rows
    assert train.sizes().shape == (len(train), 2)


def test_a_copy_in_another_process_reads_the_same(folder):
    source = TarSource(folder, "train")
    copied = pickle.loads(pickle.dumps(source))
    assert [copied[i] for i in range(3)] == [source[i] for i in range(3)]


def test_side_information_follows_the_table_of_modalities(tmp_path):
    depth = members(0)["jpg"]
    boxes = b'[{"label": "cat", "box": [0, 0, 1, 1]}]'
    folder = write_shards(
        tmp_path / "shards",
        shards=1,
        only=["jpg", "depth.png", "json", "clip.npy", "other.txt"],
        depth_png=lambda n: depth,
        json=lambda n: boxes,
        clip_npy=array,
        other_txt=lambda n: b"one\ntwo\n",
    )
    keys = ["depth", "boxes", "box_labels", "clip", "other"]
    source = TarSource(folder, "all", keys=keys, box_names=["dog", "cat"])
    example = source[4]
    assert example["depth"] == depth and example["other"] == ["one", "two"]
    assert example["boxes"].tolist() == [[0, 0, 1, 1]]
    assert example["box_labels"].tolist() == [1]
    assert example["clip"].tolist() == [4, 4, 4]
    # A map is no image of its own.
    assert source.sizes()[4].tolist() == [20, 28]


def test_captions_and_labels_from_json(tmp_path):
    folder = write_shards(tmp_path / "shards", shards=1, only=["jpg", "json"])
    source = TarSource(folder, "all", keys=["caption", "url"])
    assert source[3]["caption"] == "caption 3" and source[3]["url"].endswith("/3.jpg")
    source = TarSource(
        folder, "all", keys=["caption"], caption_field="url", label_key="status"
    )
    assert source[3]["caption"].endswith("/3.jpg") and source[3]["label"] == 0
    assert source.class_names == ("success",)


def test_classes_by_name(tmp_path):
    names = (b"wolf", b"fox\n")
    folder = write_shards(tmp_path / "s", shards=1, cls=lambda n: names[n % 2])
    source = TarSource(folder, "all")
    assert source.class_names == ("fox", "wolf") and source.num_classes == 2
    assert [source[n]["label"] for n in range(3)] == [1, 0, 1]
    assert source.columns(["cls"])["cls"].tolist()[:2] == ["wolf", "fox"]
    assert TarSource(folder, "all", label_key="").num_classes is None


@pytest.mark.parametrize(
    "format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]
)
def test_formats_and_long_names(tmp_path, format):
    path = str(tmp_path / "a.tar")
    stem = f"{'d' * 60}/{'e' * 60}/{'k' * 60}"
    with tarfile.open(path, "w", format=format) as archive:
        archive.addfile(tarfile.TarInfo("./"))
        for suffix, data in members(5).items():
            add(archive, f"./{stem}.{suffix.upper()}", data)
    source = TarSource(path, "all", keys=["caption"])
    assert source[0]["caption"] == "caption 5"
    assert source.describe(0).endswith(f" key {stem}") and source.skipped == []


def test_members_of_an_example_may_lie_apart(tmp_path):
    path = str(tmp_path / "a.tar")
    with tarfile.open(path, "w") as archive:
        for suffix in ("jpg", "txt"):
            for number in range(20):
                add(archive, f"{number}.{suffix}", members(number)[suffix])
    source = TarSource(path, "all", keys=["caption"])
    assert len(source) == 20 and source[7]["caption"] == "caption 7"


def test_addresses_of_local_files(folder, tmp_path):
    for name in (folder, f"{folder}/*.tar", f"{folder}/{{00000..00002}}.tar"):
        name, index_dir = f"file://{name}", str(tmp_path / "indexes")
        source = TarSource(name, "all", keys=["caption"], index_dir=index_dir)
        assert len(source) == 30 and source[11]["caption"] == "caption 11"
    assert len(os.listdir(index_dir)) == 3


def test_shards_in_an_object_store(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for shard in range(2):
        with fsspec.open(f"memory://bucket/{shard}.tar", "wb") as file:
            write_shard(file, range(shard * 5, shard * 5 + 5))
    for name in ("memory://bucket/{0..1}.tar", "memory://bucket", "memory://bucket/*"):
        source = TarSource(name, "all", keys=["caption"])
        assert len(source) == 10 and source[7]["caption"] == "caption 7"
    assert source.describe(7) == "memory://bucket/1.tar key 000000007"
    assert len(os.listdir(tmp_path / "cache" / "ldm_jax" / "tar")) == 2
    # Other hosts find the index beside the shard.
    assert fsspec.filesystem("memory").exists("/bucket/1.tar.index")
    section = dict(source="tar", name="1.tar", data_dir="memory://bucket")
    assert len(open_source(section, "all")) == 5


def test_shards_may_lack_columns_or_have_others(tmp_path):
    values = {"0": {"age": 3}, "1": {}, "2": {"age": "old"}}
    for name, fields in values.items():
        with tarfile.open(tmp_path / f"{name}.tar", "w") as archive:
            for k in range(2):
                add(archive, f"{k}.jpg", members(k)["jpg"])
                add(archive, f"{k}.json", json.dumps(fields).encode())
    source = TarSource(str(tmp_path), "all")
    expected = [3.0, 3.0, None, None, "old", "old"]
    assert source.columns(["age"])["age"].tolist() == expected


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_the_batches_of_an_epoch(folder, processes):
    section = dict(source="tar", name=folder, image_size=8, keys=("key",))
    source = open_source(section, "all")

    def batches(process, count, start=0):
        rows = np.split(np.arange(4), count)[process]
        options = dict(batch_size=4, seed=3, rows=rows)
        with closing(make_loader(source, section, start_step=start, **options)) as made:
            return [next(made) for _ in range(start, 15)]

    alone = batches(0, 1)
    shared = [batches(process, processes) for process in range(processes)]
    for step, batch in enumerate(alone):
        for key in ("key", "image"):
            rows = np.concatenate([part[step][key] for part in shared])
            np.testing.assert_array_equal(rows, batch[key])
    # Fifteen batches of four are two epochs of thirty.
    keys = np.concatenate([batch["key"] for batch in alone]).tolist()
    assert len(set(keys[:30])) == len(set(keys[30:])) == 30
    # A run that continues at a step sees what it would have seen.
    for batch, again in zip(alone[7:], batches(0, 1, start=7), strict=True):
        np.testing.assert_array_equal(batch["image"], again["image"])


# The library leaves files open.
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_what_webdataset_writes_is_what_it_reads(tmp_path):
    webdataset = pytest.importorskip("webdataset")
    pattern, rows = str(tmp_path / "%03d.tar"), []
    with webdataset.ShardWriter(pattern, maxcount=7, verbose=0) as writer:
        for number in range(20):
            row = members(number)
            rows.append(row)
            writer.write(
                {
                    "__key__": f"part/{number:05d}",
                    "jpg": row["jpg"],
                    "txt": f"caption {number}",
                    "json": metadata(number),
                    "cls": number % 3,
                    "clip.npy": np.full(2, number),
                }
            )
    source = TarSource(str(tmp_path), "all", keys=["caption", "clip"])
    urls = [str(tmp_path / f"{shard:03d}.tar") for shard in range(3)]
    theirs = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert len(source) == len(theirs) == 20 and source.skipped == []
    for index, their in enumerate(theirs):
        example = source[index]
        assert example["image"] == their["jpg"] == rows[index]["jpg"]
        assert example["caption"] == their["txt"].decode()
        assert example["label"] == int(their["cls"])
        assert example["clip"].tolist() == [index, index]
        assert source.describe(index).endswith(f" key {their['__key__']}")
    names = ["aesthetic", "language"]
    columns = source.columns(names)
    for name in names:
        assert columns[name].tolist() == [metadata(n)[name] for n in range(20)]


@pytest.mark.parametrize("shape", [(5 * 10**5,), (1, 4, 300, 300)])
def test_arrays_that_are_no_images_are_not_read_whole(tmp_path, shape):
    """Embeddings and latents beside images, of which the header tells enough."""
    array = np.zeros(shape, np.float32)
    with io.BytesIO() as file:
        np.save(file, array)
        data = file.getvalue()
    path = write_shard(str(tmp_path / "0.tar"), range(3), npy=lambda _: data)
    with open(path, "rb") as file:
        whole, sizes = file.read(), []

    def read(at, size):
        sizes.append(size)
        return whole[at : at + size]

    header, arrays = scan(read, len(whole))
    members = arrays["members"]
    suffixes = [header["suffixes"][number] for number in members["suffix"]]
    found = {s: m["height"] for s, m in zip(suffixes, members, strict=True)}
    assert found["npy"] == 0 and found["jpg"] > 0
    assert max(sizes) <= 2**16 and sum(sizes) < 10**5


def test_what_is_about_a_shard_is_no_example_and_all_else_is(tmp_path):
    image = members(0)["jpg"]
    with tarfile.open(tmp_path / "0.tar", "w") as archive:
        for name in ("__0001.jpg", "__meta__", "__index__.json", "a/.b.jpg", "c__.jpg"):
            add(archive, name, image)
    source = TarSource(str(tmp_path), "all")
    assert [source.describe(k).rpartition(" ")[2] for k in range(len(source))] == [
        "__0001",
        "c__",
    ]
    assert not source.skipped


def test_shards_of_another_suffix_are_named(tmp_path, caplog):
    write_shards(tmp_path, shards=2, each=2)
    TarSource(str(tmp_path), "all")
    assert "are not read" not in caplog.text
    (tmp_path / "00002.tar.gz").write_bytes(b"")
    assert len(TarSource(str(tmp_path), "all")) == 4
    assert "1 files do not end in .tar and are not read, as 00002.tar.gz" in caplog.text
