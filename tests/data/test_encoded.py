"""Records of latents, their header, and the source that reads them."""

import contextlib
import dataclasses
import functools
import itertools
import json
import pickle
import shutil
import threading

import ml_dtypes
import numpy as np
import pytest
from array_record.python import array_record_module
from ml_collections import ConfigDict

from ldm_jax.batches import Data
from ldm_jax.data.encoded import Header, LatentSource, RecordFormat
from ldm_jax.data.encoded.header import FILE, VERSION
from ldm_jax.data.loader import make_loader
from ldm_jax.data.open_source import open_source
from ldm_jax.errors import ConfigError
from ldm_jax.sharding import make_mesh

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
            str(place / name), "group_size:1,uncompressed"
        )
        numbers = range(start, min(start + per_shard, count))
        for number in numbers:
            for copy in range(copies):
                writer.write(form.pack(example(number + 100 * copy), f"é{number}.png"))
        writer.close()
        size = (place / name).stat().st_size
        shard = {"file": name, "records": copies * len(numbers), "bytes": size}
        shards.append(shard | {"crc32": f"{start:08x}"})
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
        shortened=0,
        cut={},
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
    assert found["latent_mean"].dtype == ml_dtypes.bfloat16
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
        for number in np.random.default_rng().integers(5, size=50).tolist():
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
    monkeypatch.setattr("ldm_jax.data.encoded.latent_source._MOST_OPEN", 2)
    source, opened = LatentSource(write_set(tmp_path, 9), "train"), []
    real = LatentSource._open_shard

    def open_shard(self, shard):
        # Opening takes milliseconds: other threads are not to wait for it.
        opened.append(self._lock.locked())
        return real(self, shard)

    monkeypatch.setattr(LatentSource, "_open_shard", open_shard)
    assert [int(source[k]["label"]) for k in range(9)] == [0, 1, 2] * 3
    assert len(source._open) == 2 and opened == [False] * 5


def test_as_many_shards_are_open_as_the_system_allows(tmp_path, monkeypatch):
    write_set(tmp_path)
    for soft, most in (1024, 256), (20_000, 512), (-1, 512), (16, 8):
        monkeypatch.setattr("resource.getrlimit", lambda _, soft=soft: (soft, soft))
        assert LatentSource(tmp_path, "train")._most_open == most


def test_what_training_leaves_out_is_drawn_anew_at_every_step(tmp_path):
    write_set(tmp_path)
    inputs = {"caption": CAPTION | {"dropout": 0.5}}
    data = section(tmp_path, inputs=inputs)
    source = open_source(data, "train")
    batches = make_loader(source, data, batch_size=50, seed=0)
    captions = next(batches)["caption"]
    batches.close()
    # Those of the set count up from the first id.
    assert 10 < np.sum(captions[:, 39] != captions[:, 0] + 39) < 40
    loader = make_loader(source, data, batch_size=5, seed=0, train=False)
    with contextlib.closing(loader):
        captions = next(loader)["caption"]
    np.testing.assert_array_equal(captions[:, 0], np.arange(5))


def test_held_out_latents_need_no_mirrored_copies(tmp_path):
    write_set(tmp_path)
    data = section(tmp_path, flip=True, split="else", eval_split="train")
    assert len(open_source(data, "train")) == 5
    with pytest.raises(ConfigError, match="no mirrored copies"):
        open_source(data | {"split": "train"}, "train")


def test_held_out_latents_are_of_the_same_first_stage_and_contents(tmp_path):
    header = Header.read(write_set(tmp_path) / "train")
    changed = functools.partial(dataclasses.replace, header)
    fields = [[name, "float32", shape] for name, _, shape in header.fields[:2]]
    header.require_alike(changed(fields=fields + header.fields[2:]), "data.eval_split")
    other = changed(first_stage=header.first_stage | {"checksum": 8, "step": 9})
    with pytest.raises(ConfigError, match="step 9 of /runs/one made .* and step 4"):
        header.require_alike(other, "data.eval_split=validation")
    other = changed(fields=[["latent_mean", "bfloat16", [8, 8, 2]], *header.fields[1:]])
    with pytest.raises(ConfigError, match=r"hold latents \[8, 8, 2\], and those of"):
        header.require_alike(other, "data.eval_split=validation")
    with pytest.raises(ConfigError, match="as seen its records hold nothing"):
        header.require_alike(changed(fields=header.fields[:-1]), "data.eval_split")


def test_a_run_looks_at_both_sets(tmp_path):
    write_set(tmp_path)
    shutil.copytree(tmp_path / "train", tmp_path / "validation")
    path = tmp_path / "validation" / FILE
    path.write_text(path.read_text().replace('"checksum": 7', '"checksum": 8'))
    changes = {"split": "train", "eval_split": "validation", "inputs": {}}
    data = ConfigDict(section(tmp_path, **changes))
    with pytest.raises(ConfigError, match="data.eval_split=validation: step 4 of"):
        Data(data, 0, 2, make_mesh())


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


def test_one_split_is_not_taken_for_a_set(tmp_path):
    place = write_set(tmp_path) / "train"
    message = f"is one split of a set of latents: set data.name to .*{tmp_path}, and"
    with pytest.raises(ConfigError, match=message):
        open_source(section(tmp_path, name=str(place)), "train")


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
    shard = place / "latents-2.array_record"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(ConfigError, match="2.array_record has .* bytes and not"):
        open_source(section(tmp_path), "train")
    shard.unlink()
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


def test_a_batch_at_once_is_what_one_by_one_gives(tmp_path, monkeypatch):
    """Order, mirroring, dropout, rows of processes, and what is refused."""
    write_set(tmp_path, copies=2)
    data = section(tmp_path, flip=True, inputs={"caption": CAPTION | {"dropout": 0.5}})

    def steps(rows=None, train=True):
        source = open_source(data, "train")
        options = dict(batch_size=4, seed=3, rows=rows, train=train)
        loader = make_loader(source, data, check=refuse_the_third, **options)
        with contextlib.closing(loader):
            return list(itertools.islice(loader, 6)), loader.skipped

    def refuse_the_third(batch):
        if refused and (batch["label"] == 2).any():
            raise ValueError("not the third class")

    for refused in False, True:
        for rows, train in (None, True), ((2, 3), True), (None, False):
            found, skipped = steps(rows, train)
            with monkeypatch.context() as patch:
                patch.delattr(LatentSource, "draw_batch")
                same, same_skipped = steps(rows, train)
            assert skipped == same_skipped and bool(skipped) == refused
            assert len(found) == len(same) == (6 if train else 2)
            for one, other in zip(found, same, strict=True):
                assert one.keys() == other.keys()
                for key, value in one.items():
                    np.testing.assert_array_equal(value, other[key], strict=True)


def test_a_damaged_record_is_one_example_of_its_batch(tmp_path):
    place = write_set(tmp_path, count=4, per_shard=4) / "train"
    path, form = place / "latents-0.array_record", RecordFormat.of(example(0))
    shard = bytearray(path.read_bytes())
    data = section(tmp_path)
    source = open_source(data, "train")
    at = shard.find(form.pack(example(1), "é1.png")[:40])
    assert at > 0
    shard[at + 8] ^= 1
    path.write_bytes(bytes(shard))
    loader = make_loader(source, data, batch_size=4, seed=0, train=False)
    with contextlib.closing(loader):
        (batch,) = loader
    assert batch["mask"].tolist() == [True, False, True, True]
    assert batch["label"].tolist()[2:] == [2, 0] and len(loader.skipped) == 1


def test_a_set_of_before_keeps_its_fingerprint(tmp_path):
    """Without text states nothing is said of them, as in older versions."""
    write_set(tmp_path)
    found = Header.read(tmp_path / "train").to_json()
    assert "text_states" not in found
