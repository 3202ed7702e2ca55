"""`ldm-encode`: what it writes, in any order of events."""

import json
import pathlib

import jax
import numpy as np
import pytest

from ldm_jax.config import to_dict
from ldm_jax.data.encoded import Header, LatentSource
from ldm_jax.data.loader import make_loader
from ldm_jax.data.open_source import open_source
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
    first, section, tmp_path, monkeypatch, capsys
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
    source = LatentSource(tmp_path, "train")
    names = [source.describe(k).rpartition("(")[2] for k in range(18)]
    assert names == [f"image {k})" for k in range(20) if k not in (3, 17)]
    section["on_error"] = "raise"
    with pytest.raises(DataError, match="cannot read image 3"):
        make_writer(first, section, options)(tmp_path / "other", "train")


def test_a_full_disk_is_one_line(first, section, tmp_path, monkeypatch):
    from ldm_jax.encoding import shard_files

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
