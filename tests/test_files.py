"""Disks that are full, or may not be written to: one line, and nothing half-written."""

import errno
import os

import numpy as np
import pytest

from ldm_jax import files
from ldm_jax.checkpoint import Checkpoints
from ldm_jax.data.shapes import prepare
from ldm_jax.errors import ConfigError, DiskError
from ldm_jax.files import (
    LogFile,
    check_outfile,
    drafted,
    replacing,
    write_bytes,
    write_json,
    writing,
)
from ldm_jax.images import write_png
from ldm_jax.weights.files import write_weights


@pytest.fixture
def full(monkeypatch):
    """A disk with no room for a file of its own."""

    def refuse(source, target):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), target)

    monkeypatch.setattr(files.os, "replace", refuse)


WRITERS = {
    "bytes": lambda path: write_bytes(path, b"new"),
    "json": lambda path: write_json(path, {"new": 1}),
    "png": lambda path: write_png(path, np.zeros((2, 2, 3), np.uint8)),
    "weights": lambda path: write_weights(
        path.with_suffix(".ckpt"), {"a": np.zeros(3, np.float32)}
    ),
}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_a_full_disk_is_one_line_and_leaves_what_was_there(write, full, tmp_path):
    (tmp_path / "x.ckpt").write_text("old")
    with pytest.raises(DiskError) as error:
        write(tmp_path / "x.ckpt")
    assert str(error.value) == (
        f"cannot write {tmp_path / 'x.ckpt'}: No space left on device; what was "
        "written before is intact: make room, and the same command continues"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["x.ckpt"]
    assert (tmp_path / "x.ckpt").read_text() == "old"


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_a_place_that_is_no_folder(write, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DiskError, match="cannot write .*x.ckpt.*give another place"):
        write(tmp_path / "file" / "x.ckpt")


def test_a_file_that_cannot_be_written_is_refused_before_the_work(
    tmp_path, monkeypatch
):
    (tmp_path / "file").write_text("kept")
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    for name in ("file", "nowhere", "new.json", "new/plan.json"):
        check_outfile(tmp_path / name, "json")
    names = {".": "a folder", "file/plan.json": "no folder", "nowhere/a": "no folder"}
    for name, words in names.items():
        with pytest.raises(ConfigError, match=f"^--json=.* is {words}"):
            check_outfile(tmp_path / name, "json")
    with pytest.raises(ConfigError, match="is no ordinary file"):
        check_outfile("/dev/null", "json")
    # For whom everything may be written, as root, the system never says no.
    monkeypatch.setattr(files.os, "access", lambda *arguments: False)
    with pytest.raises(DiskError, match="^--json=.* may not be written to"):
        check_outfile(tmp_path / "file", "json")


def test_what_fails_for_other_reasons_leaves_nothing_behind(tmp_path):
    with pytest.raises(KeyError), replacing(tmp_path / "a" / "x.npz") as temporary:
        assert temporary.suffix == ".npz"
        temporary.write_text("half")
        raise KeyError
    assert list((tmp_path / "a").iterdir()) == []


def test_a_target_that_cannot_be_filled_leaves_all_as_it_was(tmp_path):
    (tmp_path / "mine").touch()
    target = tmp_path / "new"
    with pytest.raises(DiskError, match=str(tmp_path)), drafted(target) as draft:
        (draft / "checkpoints" / "0").mkdir(parents=True)
        (draft / "config.json").touch()
        raise OSError(errno.ENOSPC, "x")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    with drafted(target) as draft:
        draft.mkdir()
        (draft / "file").touch()
    assert (target / "file").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"mine", "new"}


def test_two_commands_do_not_write_one_target(tmp_path):
    with drafted(tmp_path / "new") as draft:
        draft.touch()
        with pytest.raises(DiskError, match="new is being written by another"):
            with drafted(tmp_path / "new"):
                pass
        assert draft.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def test_what_a_killed_command_left_of_a_draft_is_not_taken(tmp_path):
    (tmp_path / ".new.partial").mkdir()
    (tmp_path / ".new.partial" / "old").touch()
    with drafted(tmp_path / "new") as draft:
        draft.touch()
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.EDQUOT, "x"), "quota exceeded; .* make room"),
        (OSError(errno.EROFS, "x"), "Read-only file system; .* may be written to"),
        (
            ValueError("OUT_OF_RANGE: Failed: File too large [os_error_code='27']"),
            "cannot write here: File too large; .* make room",
        ),
        (
            RuntimeError("flushing: No space left on device; writing d-00000"),
            "No space left on device; .* make room",
        ),
    ],
)
def test_what_libraries_say_of_a_disk(error, words):
    with pytest.raises(DiskError, match=words), writing("here"):
        raise error


def test_other_errors_are_none_of_a_disk():
    with pytest.raises(ValueError, match="shape"), writing("here"):
        raise ValueError("shape")


def test_a_log_waits_for_room(tmp_path):
    path = tmp_path / "log"
    path.symlink_to("/dev/full")
    log = LogFile(path)
    log.write(b"one\n")
    log.flush()
    assert log.failure == "No space left on device"
    log.write(b"two\n")
    log.flush()
    path.unlink()
    log.flush()
    assert log.failure is None and path.read_bytes() == b"one\ntwo\n"


def test_what_waits_for_room_has_a_limit(tmp_path):
    log = LogFile(tmp_path, most=10)
    for _ in range(9):
        log.write(b"123")
        log.flush()
    assert log.failure == "Is a directory" and len(log._pending) == 12


class FullCheckpointer:
    """Orbax on a disk that is full: half a checkpoint, and an error in words."""

    def __init__(self, folder):
        self.half = folder / "8.orbax-checkpoint-tmp"
        self.half.mkdir()

    def wait(self):
        raise ValueError("RESOURCE_EXHAUSTED: Failed writing [os_error_code='28']")


def test_a_checkpoint_that_finds_no_room_names_the_one_before(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.close()
    (tmp_path / "checkpoints" / "4").mkdir()
    checkpoints._checkpointer = full = FullCheckpointer(tmp_path / "checkpoints")
    with pytest.raises(DiskError, match="No space left on device; .* step 4 is intact"):
        checkpoints.wait()
    assert not full.half.exists()


@pytest.mark.parametrize("there", [True, False])
def test_data_that_cannot_be_prepared_anew_stay(there, tmp_path):
    path = tmp_path / "1.0.0"
    if there:
        path.mkdir()
    with pytest.raises(KeyboardInterrupt), prepare._replaced(path):
        assert not path.exists()
        raise KeyboardInterrupt
    assert path.exists() == there
    with prepare._replaced(path):
        path.mkdir()
        (path / "new").touch()
    assert [p.name for p in tmp_path.iterdir()] == ["1.0.0"]
    assert (path / "new").exists()
