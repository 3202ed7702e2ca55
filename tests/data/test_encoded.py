"""Records of latents, their header, and the source that reads them."""

import json
import pickle
import threading

import ml_dtypes
import numpy as np
import pytest
from array_record.python import array_record_module

from ldm_jax.data.encoded import Header, LatentSource, RecordFormat
from ldm_jax.data.encoded.header import FILE, VERSION
from ldm_jax.data.open_source import open_source
from ldm_jax.errors import ConfigError

CAPTION = {"kind": "caption", "tokenizer": "shapes", "max_length": 40}


def example(number):
    random = np.random.default_rng(number)
    mean, std = random.standard_normal((2, 4, 4, 2))
    return {
        "latent_mean": mean.astype(ml_dtypes.bfloat16),
        "latent_std": np.abs(std).astype(ml_dtypes.bfloat16),
        "caption": np.arange(40, dtype=np.int32) + number,
        "label": np.int32(number % 3),
        "seen": np.array([True, False]),
    }


def plain(value):
    return np.asarray(value).astype(np.float32)


def write_set(folder, count=5, copies=1, per_shard=2):
    """Writes a set by hand; returns its folder."""
    place, form = folder / "train", RecordFormat.of(example(0))
    place.mkdir(parents=True)
    shards = []
    for start in range(0, count, per_shard):
        name = f"latents-{start}.array_record"
        writer = array_record_module.ArrayRecordWriter(
            str(place / name), "group_size:1"
        )
        numbers = range(start, min(start + per_shard, count))
        for number in numbers:
            for copy in range(copies):
                writer.write(form.pack(example(number + 100 * copy), f"é{number}.png"))
        writer.close()
        shards.append(
            {"file": name, "records": copies * len(numbers), "crc32": f"{start:08x}"}
        )
    header = Header(
        version=VERSION,
        count=count,
        mirrored=copies == 2,
        fields=form.to_json(),
        shards=shards,
        num_classes=3,
        class_names=["a", "b", "c"],
        first_stage={"kind": "kl", "workdir": "/runs/one", "step": 4, "checksum": 7},
        statistics={},
        data={"image_size": 8},
        inputs={"caption": CAPTION},
        source={},
        skipped={},
        written_by="",
    )
    (place / FILE).write_text(json.dumps(header.to_json()))
    return folder


def section(folder, **changes):
    return {"source": "latents", "name": str(folder), "image_size": 8} | changes


def test_a_record_comes_back_as_it_was():
    form = RecordFormat.of(example(3))
    record = form.pack(example(3), "folder/é.png")
    form = RecordFormat.from_json(json.loads(json.dumps(form.to_json())))
    assert len(record) == form.size + len("folder/é.png".encode())
    assert form.key_of(record) == "folder/é.png"
    found = form.unpack(record)
    for name, value in example(3).items():
        np.testing.assert_array_equal(plain(found[name]), plain(value))
        assert found[name].shape == value.shape
    assert found["latent_mean"].dtype == np.float32
    assert found["label"].dtype == np.int32 and found["seen"].dtype == bool
    assert form.unpack(record, {"label"}).keys() == {"label"}


def test_records_refuse_what_is_unlike_the_first_or_no_array():
    form = RecordFormat.of(example(3))
    with pytest.raises(ValueError, match="caption is int32 .3., but it was int32 .40."):
        form.pack(example(3) | {"caption": np.zeros(3, np.int32)}, "")
    with pytest.raises(ValueError, match="x is of type object, which records cannot"):
        RecordFormat.of({"x": np.array(["a"], object)})
    with pytest.raises(ValueError, match="the record has 9 bytes"):
        form.unpack(b"123456789")


def test_the_source_reads_any_example_from_threads_and_copies(tmp_path):
    source = LatentSource(write_set(tmp_path), "train", inputs={"caption": CAPTION})
    assert len(source) == 5 and source.class_names == ("a", "b", "c")
    copy = pickle.loads(pickle.dumps(source))
    assert copy.fingerprint() == source.fingerprint()
    wrong = []

    def read():
        for number in np.random.default_rng().integers(5, size=50):
            found = copy[number]
            same = plain(found["latent_mean"]) == plain(example(number)["latent_mean"])
            if not same.all() or "seen" in found:
                wrong.append(number)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert source.describe(3).endswith("train example 3 (é3.png)")
    with pytest.raises(ValueError, match="no mirrored copies"):
        source.mirrored(0)
    with pytest.raises(IndexError):
        source[5]


def test_open_shards_are_few(tmp_path, monkeypatch):
    source = LatentSource(write_set(tmp_path, 9), "train")
    monkeypatch.setattr("ldm_jax.data.encoded.latent_source._MOST_OPEN", 2)
    assert [int(source[k]["label"]) for k in range(9)] == [0, 1, 2] * 3
    assert len(source._open) == 2


@pytest.mark.parametrize(
    "split, changes, message",
    [
        ("test", {}, "holds the sets train, but no test: set data.split"),
        ("train", {"image_size": 16}, "image_size=16: set data.image_size=8"),
        ("train", {"flip": True}, "no mirrored copies: encode with --mirrored"),
        (
            "train",
            {"inputs": {"low": {"kind": "low_res"}}},
            "data.inputs.low was not encoded",
        ),
        (
            "train",
            {"inputs": {"caption": CAPTION | {"max_length": 41}}},
            "caption.max_length is 41, but the latents were encoded with 40",
        ),
        ("train", {"filter": "width > 9"}, "encoded with filter=None: leave it out"),
        ("train", {"name": "/nowhere"}, "/nowhere holds no set of latents"),
    ],
)
def test_says_what_a_set_does_not_hold(tmp_path, split, changes, message):
    write_set(tmp_path)
    with pytest.raises(ConfigError, match=message):
        open_source(section(tmp_path, **changes), split)


def test_says_what_is_wrong_with_files(tmp_path):
    place = write_set(tmp_path) / "train"
    text = (place / FILE).read_text()
    (place / FILE).write_text(text.replace('"version": 1', '"version": 2'))
    with pytest.raises(ConfigError, match="of version 2 and this code reads 1"):
        open_source(section(tmp_path), "train")
    (place / FILE).write_text(text[:40])
    with pytest.raises(ConfigError, match="is damaged"):
        open_source(section(tmp_path), "train")
    (place / FILE).write_text(text)
    (place / "latents-2.array_record").unlink()
    with pytest.raises(ConfigError, match="latents-2.array_record is missing"):
        open_source(section(tmp_path), "train")
    (place / FILE).unlink()
    with pytest.raises(ConfigError, match="no finished set of latents"):
        open_source(section(tmp_path), "train")


def test_another_first_stage_is_refused_by_name(tmp_path):
    header = Header.read(write_set(tmp_path) / "train")
    other = {"workdir": "/runs/two", "step": 9, "checksum": 7}
    header.require_first_stage(other, "first_stage.workdir")
    with pytest.raises(ConfigError, match="/runs/two, step 9, .* step 4 of /runs/one"):
        header.require_first_stage(other | {"checksum": 8}, "first_stage.workdir")
