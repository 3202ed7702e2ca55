"""Samples in shards: the same bytes for any cut and any number of processes."""

import tarfile
from unittest import mock

import jax
import numpy as np
import pytest

from ldm_jax import peers, sampling
from ldm_jax.data.open_source import open_source
from ldm_jax.errors import ConfigError, DecodeError, WorkdirInUse
from ldm_jax.images import decode, read_image
from ldm_jax.lock import FILE, hold
from ldm_jax.sampling.sample_files import OUTPUTS, NpzShards
from ldm_jax.sampling.sampler import Sampler
from tests.sampling.common import (
    make_bare,
    make_trained,
    options_of,
    with_small_backbone,
)

# Seven samples in shards of three, in batches of two: each ends with a part.
GIVEN = {"labels": ["star", "1", "heart"], "prompt": ["a star", "a blue ring"]}
OPTIONS = dict(
    num_samples=7,
    shard_size=3,
    batch_size=2,
    num_steps=2,
)


def run(sampler, folder, **options):
    options = options_of(sampler.trained, **options)
    return sampling.run(sampler, folder, GIVEN, *options)


@pytest.fixture(scope="module")
def sampler():
    trained = with_small_backbone(make_trained("label", "caption"))
    two = jax.local_devices()[:2]
    with mock.patch.object(jax, "local_devices", lambda: two):
        return Sampler(trained)


@pytest.fixture(scope="module")
def whole(sampler, tmp_path_factory):
    """Folders of undisturbed runs, by form."""
    folders = {form: tmp_path_factory.mktemp(form) for form in ("png", "npz", "tar")}
    for form, folder in folders.items():
        run(sampler, folder, output=form, npz=True, **OPTIONS)
    return folders


def files_in(folder):
    return {path.name: path.read_bytes() for path in (folder / "samples").iterdir()}


def test_all_forms_hold_the_same(whole, sampler, tmp_path):
    expected = [read_image(p) for p in sorted((whole["png"] / "samples").iterdir())]
    names = [f"{a:06d}-{b:06d}" for a, b in ((0, 2), (3, 5), (6, 6))]
    assert sorted(files_in(whole["npz"])) == [f"{name}.npz" for name in names]
    arrays = [np.load(whole["npz"] / "samples" / f"{name}.npz") for name in names]
    images = np.concatenate([array["arr_0"] for array in arrays])
    assert np.abs(images.astype(int) - expected).max() <= 1
    star, heart = (sampler.trained.class_names.index(n) for n in ("star", "heart"))
    assert arrays[0]["arr_1"].tolist() == [star, 1, heart]
    assert arrays[1]["caption"].tolist() == ["a blue ring", "a star", "a blue ring"]
    with tarfile.open(whole["tar"] / "samples" / f"{names[1]}.tar") as archive:
        assert archive.getnames()[:3] == ["000003.png", "000003.cls", "000003.txt"]
        png = archive.extractfile("000004.png").read()
    np.testing.assert_array_equal(np.asarray(decode(png)), images[4])
    # They are a data set like any other's.
    source = open_source(
        dict(
            source="tar",
            name=str(whole["tar"] / "samples"),
            keys=("caption",),
            index_dir=str(tmp_path),
        ),
        "all",
    )
    assert len(source) == 7 and source[2]["caption"] == "a star"
    joined = {form: np.load(whole[form] / "samples.npz") for form in whole}
    np.testing.assert_array_equal(joined["npz"]["arr_0"], images)
    for form in whole:
        assert joined[form]["arr_1"].tolist() == [star, 1, heart] * 2 + [star]
        assert (whole[form] / "grid.png").exists()
        np.testing.assert_array_equal(joined["tar"]["arr_0"], images)


@pytest.mark.parametrize("form", ["npz", "tar"])
def test_a_killed_run_ends_in_the_same_bytes(form, whole, sampler, tmp_path, capsys):
    real, calls = sampler.draw, []

    def draw(*arguments):
        for batch in real(*arguments):
            calls.append(batch[0])
            if len(calls) == 4:
                raise KeyboardInterrupt
            yield batch

    sampler.draw = draw
    try:
        with pytest.raises(KeyboardInterrupt):
            run(sampler, tmp_path, output=form, **OPTIONS)
    finally:
        del sampler.draw
    # What was cut is not there, nor a part of it.
    assert [*files_in(tmp_path)] == [f"000000-000002.{form}"]
    # A kill leaves one.
    (tmp_path / "samples" / f"000003-000005.12345678.tmp.{form}").write_bytes(b"half")
    capsys.readouterr()
    run(sampler, tmp_path, output=form, **OPTIONS)
    assert "3 of 7 samples are there already" in capsys.readouterr().out
    assert files_in(tmp_path) == files_in(whole[form])
    run(sampler, tmp_path, output=form, **OPTIONS)
    assert "all of 7 samples are there already" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="other settings .*num_samples: 7 there, 8"):
        run(sampler, tmp_path, output=form, **OPTIONS | {"num_samples": 8})


def test_samples_of_unknown_settings_are_not_taken_for_these(sampler, tmp_path):
    run(sampler, tmp_path, output="npz", **OPTIONS)
    (tmp_path / "settings.json").unlink()
    path = tmp_path / "samples" / "000000-000002.npz"
    for _ in range(2):
        with pytest.raises(ConfigError, match="holds samples, but no settings.json"):
            run(sampler, tmp_path, output="npz", **OPTIONS)
        # Whether all of them are there or some.
        path.unlink(missing_ok=True)


def test_samples_of_another_process_count_as_well(sampler, tmp_path, monkeypatch):
    run(sampler, tmp_path, output="npz", **OPTIONS)
    (tmp_path / "settings.json").unlink()
    # Of the three shards process 1 draws the second one.
    (tmp_path / "samples" / "000003-000005.npz").unlink()
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    other = {"False": "True"}
    monkeypatch.setattr(peers, "gather", lambda text: [other.get(text, text), text])
    with pytest.raises(ConfigError, match="holds samples, but no settings.json"):
        run(sampler, tmp_path, output="npz", **OPTIONS)
    assert not (tmp_path / "settings.json").exists()


def test_a_folder_takes_one_command_at_a_time(whole, sampler, tmp_path):
    with hold(tmp_path):
        with pytest.raises(WorkdirInUse, match="is in use by process"):
            run(sampler, tmp_path, output="npz", **OPTIONS)
    assert list(tmp_path.iterdir()) == []
    run(sampler, tmp_path, output="npz", **OPTIONS)
    assert files_in(tmp_path) == files_in(whole["npz"])
    # Also where all is there, as the grid is drawn again.
    with hold(tmp_path):
        with pytest.raises(WorkdirInUse, match="is in use by process"):
            run(sampler, tmp_path, output="npz", **OPTIONS)
    assert not (tmp_path / FILE).exists()


def test_processes_write_the_bytes_of_one(whole, sampler, tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(peers, "gather", lambda text: [text, text])
    for process in 1, 0:
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        run(sampler, tmp_path, output="npz", **OPTIONS)
    assert files_in(tmp_path) == files_in(whole["npz"])


def test_processes_with_other_flags_are_refused_before_they_draw(
    sampler, tmp_path, monkeypatch
):
    told = []
    monkeypatch.setattr(peers, "gather", lambda text: told.append(text) or [*told])
    monkeypatch.setattr(sampler, "batches", lambda *_: pytest.fail("it draws"))
    for changes, key in (
        ({"num_samples": 8}, "num_samples"),
        ({"seed": 1}, "seed"),
        ({"num_steps": 3}, "options"),
    ):
        told.clear()
        with pytest.raises(pytest.fail.Exception):
            run(sampler, tmp_path / "first", **OPTIONS)
        with pytest.raises(ConfigError, match=f"process 1 is to draw.* in {key}; give"):
            run(sampler, tmp_path / "second", **OPTIONS | changes)
    assert not (tmp_path / "second").exists()


@pytest.mark.parametrize("form", OUTPUTS)
def test_a_file_that_was_taken_away_is_gone_and_not_damaged(form, tmp_path):
    store = OUTPUTS[form](tmp_path, *make_bare(3), 3)
    store.folder.mkdir()
    with pytest.raises(DecodeError, match=f"000000.*{form} is gone: the same command"):
        list(store.images(3))


def test_a_damaged_shard_is_named(whole, sampler, tmp_path):
    store = NpzShards(tmp_path, *make_bare(3), 3)
    data = bytearray(files_in(whole["npz"])["000000-000002.npz"])
    data[400] ^= 1
    store.folder.mkdir()
    store.path_of(range(3)).write_bytes(bytes(data))
    with pytest.raises(DecodeError, match="000000-000002.npz is damaged .*again"):
        list(store.images(3))
