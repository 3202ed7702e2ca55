"""`ldm-encode`: what it writes, in any order of events."""

import contextlib
import json
import pathlib
import re
import types

import jax
import numpy as np
import pytest

from ldm_jax.config import to_dict
from ldm_jax.data.encoded import Header, LatentSource
from ldm_jax.data.loader import make_loader
from ldm_jax.data.open_source import open_source
from ldm_jax.data.tokenizers import load_tokenizer
from ldm_jax.encoding import shard_files
from ldm_jax.encoding import write_set as module
from ldm_jax.encoding.stream import Options
from ldm_jax.encoding.write_set import make_writer
from ldm_jax.errors import ConfigError, DataError, DiskError
from ldm_jax.images import to_float
from ldm_jax.trained import load_first_stage
from tests.runs import tiny_config

OPTIONS = Options("float32", True, 8, 24, 0)


@pytest.fixture(scope="module")
def first(first_stage):
    return load_first_stage(first_stage)


@pytest.fixture
def section(shapes_dir):
    return to_dict(tiny_config("shapes_class", shapes_dir).data)


def files_in(folder):
    return {
        path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def test_encodes_every_image_with_its_mirrored_copy(first, section, tmp_path):
    make_writer(first, section, OPTIONS)(tmp_path / "train", "train")
    source = LatentSource(tmp_path, "train", image_size=32)
    header, images = source.header, open_source(section, "train")
    assert header.count == len(source) == 64 and len(header.shards) == 3
    assert {p.name for p in (tmp_path / "train").iterdir()} == {
        *("latents.json", "settings.json"),
        *(shard["file"] for shard in header.shards),
    }
    batch = next(make_loader(images, section, batch_size=64, seed=0, train=False))
    apply = jax.jit(
        lambda images: first.module.apply(
            {"params": first.params}, to_float(images), method="encode"
        )
    )
    for read, step in (source.__getitem__, 1), (source.mirrored, -1):
        posterior = apply(batch["image"][:, :, ::step])
        found = [read(k) for k in range(64)]
        for name, value in (
            ("latent_mean", posterior.mean),
            ("latent_std", np.exp(posterior.logvar / 2)),
            ("label", batch["label"]),
        ):
            stored = np.stack([each[name] for each in found])
            assert stored.dtype == value.dtype
            np.testing.assert_allclose(stored, value, rtol=1e-4, atol=1e-5)
    assert "example 7" in source.describe(7)


def test_the_header_says_what_samples_of_the_latents_are_like(first, section, tmp_path):
    make_writer(first, section, OPTIONS)(tmp_path / "train", "train")
    source = LatentSource(tmp_path, "train")
    random, drawn = np.random.default_rng(0), []
    for k in range(64):
        for each in source[k], source.mirrored(k):
            noise = random.standard_normal((16, *each["latent_mean"].shape))
            drawn.append(each["latent_mean"] + each["latent_std"] * noise)
    drawn, found = np.asarray(drawn), source.header.statistics
    axes = tuple(range(drawn.ndim - 1))
    np.testing.assert_allclose(found["mean"], drawn.mean(axes), atol=0.01)
    np.testing.assert_allclose(found["std"], drawn.std(axes), rtol=0.01)
    np.testing.assert_allclose(found["overall_mean"], drawn.mean(), atol=0.01)
    np.testing.assert_allclose(found["overall_std"], drawn.std(), rtol=0.01)


def test_goes_on_after_any_shard_to_the_same_bytes(
    first, section, tmp_path, monkeypatch
):
    options = OPTIONS._replace(mirrored=False)
    write = make_writer(first, section, options)
    write(tmp_path / "whole", "train")

    class Killed(Exception):
        pass

    real = module.ShardFiles.write
    for cut in 1, 2:

        def written(self, shard, batches, source, cut=cut):
            if shard == cut:
                # Killed while it writes: what it had begun is left behind.
                left = self.folder / f"latents.{cut}.tmp.array_record"
                left.write_bytes(b"half")
                raise Killed
            real(self, shard, batches, source)

        monkeypatch.setattr(module.ShardFiles, "write", written)
        with pytest.raises(Killed):
            write(tmp_path / "cut", "train")
        assert not (tmp_path / "cut" / "latents.json").exists()
    monkeypatch.setattr(module.ShardFiles, "write", real)
    with pytest.raises(ConfigError, match="other settings .dtype: float32 there"):
        other = options._replace(dtype="bfloat16")
        make_writer(first, section, other)(tmp_path / "cut", "train")
    write(tmp_path / "cut", "train")
    assert files_in(tmp_path / "cut") == files_in(tmp_path / "whole")
    # Once more: nothing is done.
    monkeypatch.setattr(module.ShardFiles, "write", None)
    write(tmp_path / "cut", "train")
    settings = tmp_path / "cut" / "settings.json"
    settings.write_text("[]")
    with pytest.raises(DataError, match="settings.json, .* read .it holds a list"):
        write(tmp_path / "cut", "train")
    settings.unlink()
    with pytest.raises(ConfigError, match="holds a set of latents, but no settings"):
        write(tmp_path / "cut", "train")
    assert (tmp_path / "cut" / "latents.json").exists()


class Captioned:
    """Images that have each two captions, of which one is drawn."""

    num_classes = class_names = None

    def __init__(self, images):
        self._images = images

    def __len__(self):
        return 20

    def __getitem__(self, index):
        long = " ".join(["a red circle"] * 20 * (index == 19))
        captions = [f"a red circle {long}", f"a blue square {long}"]
        return {"image": self._images[index]["image"], "caption": captions}

    def describe(self, index):
        return f"image {index}"


def captioned(section, monkeypatch, **options):
    images = open_source(section, "train")
    monkeypatch.setattr(module, "open_source", lambda *_: Captioned(images))
    caption = {"kind": "caption", "tokenizer": "shapes", "max_length": 40, **options}
    return section | {"inputs": {"caption": caption}}


def test_what_is_drawn_depends_on_no_kill_and_no_process(
    first, section, tmp_path, monkeypatch
):
    options = OPTIONS._replace(shard_size=7)
    section = captioned(section, monkeypatch)
    write = make_writer(first, section, options)
    write(tmp_path / "whole", "train")
    # The second of two processes, which takes the shard in the middle, ...
    second = types.SimpleNamespace(process_index=lambda: 1, process_count=lambda: 2)
    with monkeypatch.context() as patch:
        patch.setattr(module, "jax", second)
        patch.setattr(
            module, "_listening", lambda: contextlib.nullcontext(lambda text: None)
        )
        patch.setattr(module.ShardFiles, "has_begun", lambda self: True)
        write(tmp_path / "cut", "train")
    found = files_in(tmp_path / "cut")
    assert {name.partition("-of")[0] for name in found} == {
        *("latents-00001", "00001.json")
    }
    # ... and then one alone, which continues.
    write(tmp_path / "cut", "train")
    assert files_in(tmp_path / "cut") == files_in(tmp_path / "whole")


def test_no_caption_is_dropped_for_good(first, section, tmp_path, monkeypatch, capsys):
    section = captioned(section, monkeypatch, dropout=0.99)
    options = OPTIONS._replace(mirrored=False)
    make_writer(first, section, options)(tmp_path / "train", "train")
    source = LatentSource(tmp_path, "train", inputs=section["inputs"])
    assert "dropout" not in source.header.inputs["caption"]
    (empty,) = load_tokenizer("shapes", 40)([""])
    assert not any((source[k]["caption"] == empty).all() for k in range(20))
    # One caption is too long, and its row is repeated to fill up the last batch.
    assert source.header.cut == {"caption": 1} and source.header.shortened == 0
    said = capsys.readouterr().out
    assert 'of 1 images only a part of "caption" is kept' in said


def test_a_part_that_is_left_out_is_counted(first, section, tmp_path, monkeypatch):
    images, options = open_source(section, "train"), OPTIONS._replace(mirrored=False)
    monkeypatch.setattr(module, "open_source", lambda *_: Damaged(images, {}))
    notes = "ldm_jax.data.load_batch.notes_of"
    said = iter([["its boxes"]] * 3)
    monkeypatch.setattr(notes, lambda example: next(said, []))
    make_writer(first, section, options)(tmp_path / "train", "train")
    assert Header.read(tmp_path / "train").shortened == 3


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda folder: next(folder.glob("*-00000-*")).unlink(), "00000-of.* missing"),
        (lambda folder: (folder / "latents.json").write_text("{"), "json is damaged"),
    ],
)
def test_a_set_that_lost_something_is_made_again(
    first, section, tmp_path, capsys, damage, message
):
    write = make_writer(first, section, OPTIONS._replace(mirrored=False))
    write(tmp_path / "train", "validation")
    whole = files_in(tmp_path)
    write(tmp_path / "train", "validation")
    assert "already encoded" in capsys.readouterr().out
    damage(tmp_path / "train")
    write(tmp_path / "train", "validation")
    said = capsys.readouterr().out
    assert re.search(f"{message}.* is encoded again", said), said
    assert "already encoded" not in said and files_in(tmp_path) == whole


def test_what_is_held_out_is_not_mirrored(first, section, tmp_path):
    make_writer(first, section, OPTIONS)(tmp_path / "validation", "validation")
    header = Header.read(tmp_path / "validation")
    assert not header.mirrored
    assert sum(shard["records"] for shard in header.shards) == header.count


def test_what_changes_no_byte_may_change(section):
    section["parts"] = {"a": {"name": "x", "cache_gb": 2.0}}
    changes = {"cache_gb": 9.0, "index_dir": "/else", "buckets": {"step": 8}}
    changes |= {"parts": {"a": {"name": "x", "cache_gb": 3.0, "index_dir": "/b"}}}
    assert module._decisive(section | changes) == module._decisive(section)
    changes["parts"]["a"]["name"] = "y"
    assert module._decisive(section | changes) != module._decisive(section)


@pytest.mark.parametrize(
    "call, problem",
    [(0, "process 1 does not see it"), (1, "process 1 finds other shards there")],
)
def test_processes_that_share_no_folder_learn_it_at_once(
    first, section, tmp_path, monkeypatch, call, problem
):
    calls = iter(range(9))

    def gather(text):
        # The first one says whether the set is finished.
        return [text, "other" if next(calls) == call + 1 else text]

    monkeypatch.setattr(module.peers, "gather", gather)
    with pytest.raises(ConfigError, match=f"train is not shared: {problem}"):
        make_writer(first, section, OPTIONS)(tmp_path / "train", "train")


def test_another_process_waits_for_what_it_is_to_see(tmp_path, monkeypatch):
    files = shard_files.ShardFiles(tmp_path / "train", {}, 3, 2)
    monkeypatch.setattr(shard_files, "_SEEN", 0.0)
    assert not files.has_begun()
    files.begin()
    assert files.has_begun()


class Damaged:
    """A source some of whose images cannot be read."""

    num_classes = class_names = None

    def __init__(self, images, bad):
        self._images, self._bad = images, bad

    def __len__(self):
        return 20

    def __getitem__(self, index):
        image = b"no image" if index in self._bad else self._images[index]["image"]
        return {"image": image}

    def describe(self, index):
        return f"image {index}"


def test_what_cannot_be_read_is_named_and_left_out(
    first, section, tmp_path, monkeypatch, capsys, caplog
):
    images = open_source(section, "train")
    options = OPTIONS._replace(batch_size=8, shard_size=16)
    monkeypatch.setattr(module, "open_source", lambda *_: Damaged(images, {3, 17}))
    make_writer(first, section, options)(tmp_path / "train", "train")
    header = Header.read(tmp_path / "train")
    assert header.count == 18
    assert [shard["records"] for shard in header.shards] == [30, 6]
    assert header.skipped["count"] == 2
    assert [row[0] for row in header.skipped["examples"]] == ["image 3", "image 17"]
    assert all(row[1] for row in header.skipped["examples"])
    assert "left out 2 images" in capsys.readouterr().out
    # Of 24 places of batches.
    assert "skipped 2 of 20 examples" in caplog.text
    source = LatentSource(tmp_path, "train")
    names = [source.describe(k).rpartition("(")[2] for k in range(18)]
    assert names == [f"image {k})" for k in range(20) if k not in (3, 17)]
    section["on_error"] = "raise"
    with pytest.raises(DataError, match="cannot read image 3"):
        make_writer(first, section, options)(tmp_path / "other", "train")


def test_a_full_disk_is_one_line(first, section, tmp_path, monkeypatch):
    monkeypatch.setattr(shard_files, "writer_is_whole", lambda *_: False)
    with pytest.raises(DiskError, match="cannot write .*No space left"):
        make_writer(first, section, OPTIONS)(tmp_path / "train", "train")
    assert not list(pathlib.Path(tmp_path).rglob("*.tmp.*"))


def test_refuses_what_has_no_latents(first, section, tmp_path):
    identity = load_first_stage("identity")
    with pytest.raises(ConfigError, match="identity has no latents to store"):
        make_writer(identity, section, OPTIONS)
    with pytest.raises(ConfigError, match="use data.image_size=34"):
        make_writer(first, section | {"image_size": 33}, OPTIONS)


def test_the_header_is_plain_text(first, section, tmp_path):
    make_writer(first, section, OPTIONS)(tmp_path / "validation", "validation")
    text = (tmp_path / "validation" / "latents.json").read_text()
    found = json.loads(text)
    assert found["first_stage"]["checksum"] == first.record["checksum"]
    assert found["data"]["split"] == "validation" and found["data"]["crop"] == "center"
