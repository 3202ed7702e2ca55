"""Real runs on gs://, by gcsfs, TensorStore and Orbax, against an emulator."""

import gc
import json
import signal
import time

import numpy as np
import pytest

from ldm_jax import checkpoint
from ldm_jax.checkpoint import Checkpoints, DamagedCheckpoint, TrainState
from ldm_jax.errors import WorkdirInUse
from ldm_jax.lock import hold
from ldm_jax.store import Claim, as_path, files_below, local_copy, paths, send, size_of
from tests.runs import ROOT, command
from tests.store.emulator import Object, serve

pytest.importorskip("gcsfs", reason="pip install 'ldm-jax[gcs]'")

pytestmark = [
    pytest.mark.slow,
    # gcsfs sends parts as they are.
    pytest.mark.filterwarnings("ignore:Sending a large body"),
]

RUN = (
    *("--config.train.num_steps=6", "--config.train.checkpoint_every=2"),
    *("--config.train.log_every=1", "--config.train.preview_images=0"),
)


@pytest.fixture
def objects(monkeypatch, tmp_path):
    """The objects of an empty bucket, gs://bucket, of this process and of programs."""
    with serve() as (store, variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        forget()
        yield store.objects
        forget()


def forget():
    """Connections are to the emulator of another test."""
    from etils.epath import backend
    from gcsfs import GCSFileSystem

    paths._file_system.cache_clear()
    backend.fsspec_backend._get_filesystem.cache_clear()
    GCSFileSystem.clear_instance_cache()


def finish(process):
    """Waits for a program; returns what it printed."""
    out, _ = process.communicate(timeout=600)
    assert process.returncode == 0, out
    return out


def test_files_and_the_lock(objects, tmp_path):
    data = np.random.default_rng(0).bytes(60 << 20)
    (tmp_path / "large").write_bytes(data)
    send(tmp_path / "large", as_path("gs://bucket/a/large"))
    assert size_of(as_path("gs://bucket/a/large")) == len(data)
    assert local_copy("gs://bucket/a/large").read_bytes() == data
    assert [path.name for path in files_below(as_path("gs://bucket/a"))] == ["large"]
    with hold("gs://bucket/run"), pytest.raises(WorkdirInUse, match="is in use by"):
        with hold("gs://bucket/run"):
            pass
    with hold("gs://bucket/run"):
        assert ("bucket", "run/in_use.json") in objects
    assert ("bucket", "run/in_use.json") not in objects


def test_what_is_cut_is_not_sent_and_an_answer_that_is_lost_is_known(
    objects, tmp_path, monkeypatch
):
    (tmp_path / "small").write_bytes(bytes(1000))

    def cut(source, target, size):
        target.write(source.read(10))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("shutil.copyfileobj", cut)
        send(tmp_path / "small", as_path("gs://bucket/small"))
    # What nothing refers to any more a thread of the library closes.
    gc.collect()
    time.sleep(1)
    assert not objects
    claim = Claim(as_path("gs://bucket/in_use.json"), {})
    objects["bucket", "in_use.json"] = Object(claim._data(), 1)
    assert claim.make() and not Claim(as_path("gs://bucket/in_use.json"), {}).make()


def save(*steps):
    """Saves some steps of a tiny state; returns the folders that are there then."""
    params = {"a": {"w": np.ones((300, 300), np.float32)}}
    step = np.asarray(1, np.int32)
    state = TrainState(step=step, params=params, ema_params={}, opt_state={}, stats={})
    checkpoints = Checkpoints("gs://bucket/run")
    for step in steps:
        checkpoints.save(step, state, {"config": {"a": 1}})
    checkpoints.close()
    return checkpoints.folders


def test_what_a_killed_save_leaves_is_no_checkpoint(objects):
    assert [folder.name for folder in save(1, 2)] == ["1", "2"]
    left = ("bucket", "run/checkpoints/3/params/d/half")
    objects[left] = Object(b"half", 1)
    assert checkpoint.checkpoint_folder("gs://bucket/run").name == "2"
    assert [folder.name for folder in save(3)] == ["2", "3"]
    assert left not in objects
    assert np.all(checkpoint.load_item(save()[-1], "params")["a"]["w"] == 1)


def test_damage_is_found(objects):
    folders = save(1, 2, 3)
    assert [folder.name for folder in folders] == ["2", "3"]
    newest = folders[-1]
    assert np.all(checkpoint.load_item(newest, "params")["a"]["w"] == 1)
    key = next(key for key in objects if "/3/params/d/" in key[1])
    objects[key] = objects[key]._replace(data=objects[key].data[:-5] + b"XXXXX")
    with pytest.raises(DamagedCheckpoint, match="gcloud storage mv gs://.* gs://.*/"):
        checkpoint.load_item(newest, "params")


def train(config, workdir, shapes_dir, *flags):
    """Starts a tiny run."""
    config = f"--config={ROOT}/configs/{config}.py:tiny"
    data = f"--config.data.data_dir={shapes_dir}"
    return command("train.py", config, data, f"--workdir={workdir}", *RUN, *flags)


def sums(workdir):
    """Checksums of all that the newest checkpoint holds."""
    folder = checkpoint.checkpoint_folder(workdir)
    items = ("params", "ema_params", "training")
    found = [checkpoint.tree_checksum(checkpoint.load_item(folder, i)) for i in items]
    lines = (as_path(workdir) / "metrics.jsonl").read_text().splitlines()
    losses = [
        (row["step"], row["loss"]) for row in map(json.loads, lines) if "loss" in row
    ]
    return folder.name, found, losses


def test_killed_and_resumed_both_stages_and_sampling(objects, shapes_dir, tmp_path):
    """A killed run on the store ends as an undisturbed one on a disk."""
    first, run = "gs://bucket/first", ("shapes_autoencoder", "gs://bucket/first")
    process = train(*run, shapes_dir)
    end = time.monotonic() + 400
    while ("bucket", "first/checkpoints/2/commit_success.txt") not in objects:
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert "resuming at step" in finish(train(*run, shapes_dir))
    finish(train("shapes_autoencoder", tmp_path / "first", shapes_dir))
    assert sums(first) == sums(tmp_path / "first")
    # A second stage on it, and on a local copy of it as gcloud makes one.
    given = f"--config.first_stage.workdir={first}"
    finish(train("shapes_class", "gs://bucket/second", shapes_dir, given))
    local = f"--config.first_stage.workdir={local_copy(first)}"
    finish(train("shapes_class", tmp_path / "second", shapes_dir, local))
    assert sums("gs://bucket/second") == sums(tmp_path / "second")
    images = []
    for place in ("gs://bucket", tmp_path):
        out = f"{place}/samples"
        flags = ("--num_samples=3", "--npz", "--num_steps=2")
        finish(
            command("sample.py", f"--workdir={place}/second", f"--outdir={out}", *flags)
        )
        with np.load(local_copy(f"{out}/samples.npz")) as archive:
            images.append(archive["arr_0"])
    assert np.array_equal(*images)
