"""A bit that storage lost is found before anything is read, and the way back works."""

import contextlib
import errno
import re
import shutil
import signal
import subprocess
import threading
from unittest import mock

import numpy as np
import pytest

from ldm_jax import checkpoint, peers
from ldm_jax.checkpoint import Checkpoints, TrainState, checksums, damage, items
from ldm_jax.checkpoint.folder import refuse_unmarked
from ldm_jax.errors import CheckpointError, ConfigError, Unreachable

META = {"config": {"stage": "diffusion"}}


def _state(value=0.5):
    kernel = np.full((40, 25), value, np.float32)
    return TrainState(
        step=np.asarray(3, np.int32),
        params={"net": {"kernel": kernel}},
        ema_params={"net": {"kernel": kernel + 1}},
        opt_state={},
        stats={},
    )


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Workdir with checkpoints of steps 10 to 13."""
    workdir = tmp_path_factory.mktemp("saved") / "a run"
    checkpoints = Checkpoints(workdir, keep_last=4)
    for step in (10, 11, 12, 13):
        checkpoints.save(step, _state(step), META)
    checkpoints.close()
    return workdir


@pytest.fixture
def workdir(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "a run")


def _files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _flip_data(workdir, step, item):
    """Flips a bit of the largest file of an item."""
    files = _files(workdir / "checkpoints" / str(step) / item)
    _flip(max(files, key=lambda path: path.stat().st_size))


def _restore(workdir, step):
    checkpoints = Checkpoints(workdir)
    try:
        assert checkpoints.meta(step) == META
        return checkpoints.restore(step, _state())
    finally:
        checkpoints.close()


@pytest.mark.parametrize("damage", ["flip", "shorten", "lengthen", "remove"])
def test_damage_of_any_file_is_found(workdir, damage):
    folder = workdir / "checkpoints" / "13"
    assert checksums.find_damage(folder) is None
    files = _files(folder)
    assert len(files) > 10
    for path in files:
        whole = path.read_bytes()
        if damage == "flip":
            _flip(path)
        elif damage == "remove" and path.name != "checksums.json":
            path.unlink()
        else:
            path.write_bytes(whole[:-1] if damage == "shorten" else whole + b" ")
        found = checksums.find_damage(folder)
        # Space behind JSON means nothing.
        harmless = path.name == "checksums.json" and damage in ("lengthen", "remove")
        assert bool(found) != harmless, path
        path.write_bytes(whole)
    assert checksums.find_damage(folder) is None


def test_large_files_are_compared_block_by_block_by_several_processes(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(checksums, "_BLOCK", 16)
    path = tmp_path / "params" / "data"
    path.parent.mkdir()
    path.write_bytes(bytes(range(100)))
    checksums.seal(tmp_path)
    for position in (0, 50, 99):
        data = bytearray(range(100))
        data[position] ^= 128
        path.write_bytes(data)
        assert checksums.find_damage(tmp_path, ("ema_params",)) is None
        parts = [checksums.find_damage(tmp_path, part=(i, 3)) for i in range(3)]
        assert len([part for part in parts if part]) == 1
    path.write_bytes(bytes(range(96)))
    assert "params/data is not what was saved" in checksums.find_damage(tmp_path)


@pytest.mark.parametrize("item", ["params", "ema_params", "training", "meta"])
def test_whoever_reads_an_item_compares_it(workdir, item):
    _flip_data(workdir, 13, item)
    with pytest.raises(CheckpointError, match=f"its file {item}/.* step 12 is intact"):
        _restore(workdir, 13)
    folder = workdir / "checkpoints" / "13"
    if item == "meta":
        readers = [lambda: checkpoint.read_meta(folder)]
        readers += [lambda: checkpoint.load_weights(workdir)]
    else:
        readers = [lambda: checkpoint.load_item(folder, item)]
    if item in ("params", "ema_params"):
        average = item == "ema_params"
        readers += [lambda: checkpoint.load_weights(workdir, average=average)]
    for read in readers:
        with pytest.raises(CheckpointError, match=f"its file {item}/"):
            read()


def test_a_lost_average_is_not_replaced_in_silence(workdir):
    shutil.rmtree(workdir / "checkpoints" / "13" / "ema_params")
    with pytest.raises(CheckpointError, match="its file ema_params/.* cannot be read"):
        checkpoint.load_weights(workdir)


def test_the_way_back_that_is_named_works(workdir):
    """Past a second damaged one, and twice, with a space in the path."""
    for steps, whole in (((13, 12), 11), ((11,), 10)):
        for step in steps:
            _flip_data(workdir, step, "training")
        with pytest.raises(CheckpointError) as error:
            _restore(workdir, steps[0])
        assert f"step {whole} is intact" in str(error.value)
        command = re.search(r"same command again: (mkdir .*)", str(error.value))[1]
        subprocess.run(command, shell=True, check=True)
        checkpoints = Checkpoints(workdir)
        assert checkpoints.latest_step == whole
        restored = checkpoints.restore(whole, _state())
        np.testing.assert_array_equal(restored.params["net"]["kernel"][0, 0], whole)
        checkpoints.close()
    moved = {path.name for path in workdir.glob("damaged*/*")}
    assert moved == {"11", "12", "13"}
    _flip_data(workdir, 10, "training")
    with pytest.raises(CheckpointError, match="no earlier checkpoint is intact"):
        _restore(workdir, 10)


@pytest.mark.parametrize("error", [PermissionError(13, "no"), Unreachable("silent")])
def test_damage_is_told_whatever_an_earlier_checkpoint_is(workdir, monkeypatch, error):
    def find(folder):
        if folder.name == "12":
            raise error

    monkeypatch.setattr(damage, "find_damage", find)
    told = str(damage.DamagedCheckpoint(workdir / "checkpoints" / "13", "cut"))
    assert "13: cut; step 11 is intact" in told and "checkpoints/12" in told


@pytest.mark.parametrize(
    "error, damage",
    [
        (MemoryError("no"), False),
        (OSError(errno.EMFILE, "Too many open files"), False),
        (PermissionError(errno.EACCES, "Permission denied"), False),
        (ValueError("Error opening x [os_error_code='24' ...]"), False),
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes."), False),
        (RuntimeError("Gloo AllGather failed: Connection closed by peer"), False),
        (FileNotFoundError(errno.ENOENT, "No such file"), True),
        (ValueError("Error opening x [os_error_code='2' ...]"), True),
        (OSError("Not a gzipped file"), True),
        (KeyError("x"), True),
    ],
)
def test_want_of_memory_files_or_peers_is_no_damage(
    tmp_path, monkeypatch, error, damage
):
    def fail(*_):
        raise error

    def wrap(*_):
        # As Orbax does.
        try:
            raise error
        except Exception as inner:
            raise KeyError("incompatible handler") from inner

    monkeypatch.setattr(peers, "several", lambda: True)
    for raising in fail, wrap:
        monkeypatch.setattr(items.ocp, "load_checkpointables", raising)
        monkeypatch.setattr(items.ocp, "checkpointables_metadata", raising)
        for read in _READS:
            with pytest.raises(CheckpointError if damage else type(error)) as raised:
                read(tmp_path)
            assert damage or raised.value is error


_READS = (lambda path: items.load(path, {}), items.shapes_of)


@pytest.mark.parametrize("read", _READS)
def test_ctrl_c_while_a_checkpoint_is_read_is_no_damage(
    tmp_path, monkeypatch, ctrl_c, read
):
    def wrap(*_):
        try:
            signal.raise_signal(signal.SIGINT)
        except BaseException as inner:
            raise KeyError("incompatible handler") from inner

    def swallow(*_):
        with contextlib.suppress(BaseException):
            signal.raise_signal(signal.SIGINT)
        return mock.Mock(metadata={})

    for interrupted in wrap, swallow:
        monkeypatch.setattr(items.ocp, "load_checkpointables", interrupted)
        monkeypatch.setattr(items.ocp, "checkpointables_metadata", interrupted)
        with pytest.raises(KeyboardInterrupt):
            read(tmp_path)
        assert signal.getsignal(signal.SIGINT) is ctrl_c


def test_a_run_goes_on_beside_damage_and_seals_what_it_saves(workdir):
    _flip(workdir / "checkpoints" / "12" / "_CHECKPOINT_METADATA")
    checkpoints = Checkpoints(workdir, keep_last=4)
    checkpoints.save(14, _state(14), META)
    checkpoints.close()
    assert "checksums.json" in {
        path.name for path in (workdir / "checkpoints" / "14").iterdir()
    }
    assert checksums.find_damage(workdir / "checkpoints" / "14") is None


def test_training_does_not_wait_for_checksums(workdir, monkeypatch):
    go_on, seal = threading.Event(), checksums.seal

    def slow(folder):
        assert go_on.wait(30)
        seal(folder)

    monkeypatch.setattr(checksums, "seal", slow)
    checkpoints = Checkpoints(workdir)
    checkpoints.save(14, _state(14), META)
    assert checkpoint.load_weights(workdir)
    go_on.set()
    checkpoints.close()
    assert (workdir / "checkpoints" / "14" / "checksums.json").is_file()


def test_a_copy_of_what_vanishes_meanwhile_is_refused(workdir, tmp_path, monkeypatch):
    source, copyfile = workdir / "checkpoints" / "12", shutil.copyfile

    def vanish(path, target):
        copyfile(path, target)
        if "params" in path.parts and source.is_dir():
            shutil.rmtree(source)

    monkeypatch.setattr(shutil, "copyfile", vanish)
    with pytest.raises(CheckpointError, match="removed or damaged while it was copied"):
        checkpoint.copy_items(source, tmp_path / "copy", ("meta", "params"))


def test_checkpoints_without_checksums_are_read(workdir):
    for step in (12, 13):
        (workdir / "checkpoints" / str(step) / "checksums.json").unlink()
    restored = _restore(workdir, 13)
    np.testing.assert_array_equal(restored.ema_params["net"]["kernel"], 14)
    assert checkpoint.load_weights(workdir)[2]["step"] == 13
    # And are worth going back to.
    shutil.rmtree(workdir / "checkpoints" / "13" / "params")
    with pytest.raises(CheckpointError, match="step 12 is intact"):
        _restore(workdir, 13)


@pytest.mark.parametrize("count", [0, -1])
def test_keeping_none_is_refused(workdir, count):
    with pytest.raises(ConfigError, match=f"train.keep_last={count} .* give 1 or more"):
        Checkpoints(workdir, keep_last=count)
    assert len(list((workdir / "checkpoints").iterdir())) == 4


def test_a_store_refuses_whole_checkpoints_without_their_mark(tmp_path, monkeypatch):
    """Those of older versions: they would count as half saved, and be removed."""
    monkeypatch.setattr("ldm_jax.checkpoint.folder.is_remote", lambda path: True)
    refuse_unmarked(tmp_path / "checkpoints")
    step = tmp_path / "checkpoints" / "10"
    step.mkdir(parents=True)
    # Half saved, which is nobody's loss.
    refuse_unmarked(step.parent)
    (step / "checksums.json").write_text("{}")
    with pytest.raises(CheckpointError, match="10/commit_success.txt, and continue"):
        refuse_unmarked(step.parent)
    (step / "commit_success.txt").touch()
    refuse_unmarked(step.parent)


@pytest.mark.parametrize(
    "number, kind", [(errno.ENOTCONN, Unreachable), (errno.EACCES, PermissionError)]
)
def test_what_does_not_answer_or_may_not_be_read_is_no_damage(
    saved, monkeypatch, number, kind
):
    def fail(*_):
        raise OSError(number, "no")

    monkeypatch.setattr(checksums, "read_part", fail)
    with pytest.raises(kind):
        checksums.find_damage(saved / "checkpoints" / "13")
