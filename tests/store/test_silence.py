"""Errors of a disk: large files are read again too; what cannot be seen is there."""

import errno
import os
import pathlib

import pytest

from ldm_jax.checkpoint import checksums
from ldm_jax.checkpoint.best import read_best
from ldm_jax.errors import DataError, Unreachable
from ldm_jax.models.text_encoder import TextEncoder
from ldm_jax.reading import names_in
from ldm_jax.store import exists, is_dir, is_file, is_of_one_file, raise_if_silent
from ldm_jax.weights.files import is_weights, read_weights
from ldm_jax.weights.towers import load_tower

LARGE = 2**26 + 1


def fault(path=None, number=errno.EIO):
    return OSError(number, os.strerror(number), path)


@pytest.fixture
def large(tmp_path):
    path = tmp_path / "large"
    with open(path, "wb") as file:
        file.truncate(LARGE)
    return path


def test_a_large_file_that_can_be_read_once_more_is_not_damaged(large):
    with pytest.raises(Unreachable):
        raise_if_silent(large, fault())


def test_a_large_file_with_bad_sectors_is_read_up_to_them_once(large, monkeypatch):
    read, asked = os.pread, []

    def pread(file, size, at):
        asked.append(at)
        if at <= 5 * 2**20 < at + size:
            raise fault()
        return read(file, size, at)

    monkeypatch.setattr(os, "pread", pread)
    counts = []
    for _ in range(2):
        error, before = fault(), len(asked)
        raise_if_silent(large, error)
        assert is_of_one_file(error)
        counts.append(len(asked) - before)
    # Then the place is known; a byte of another part says that the disk answers.
    assert counts[1] == 2 < counts[0] < 10
    monkeypatch.setattr(os, "pread", read)
    with pytest.raises(Unreachable):
        raise_if_silent(large, fault())


def test_one_error_of_a_large_file_of_a_checkpoint_is_no_damage(large, monkeypatch):
    checksums.seal(large.parent)
    read, failed = checksums.read_part, []

    def once(path, start, size):
        if path.name == "large" and not failed:
            failed.append(path)
            raise fault()
        return read(path, start, size)

    monkeypatch.setattr(checksums, "read_part", once)
    with pytest.raises(Unreachable):
        checksums.find_damage(large.parent)
    assert failed and checksums.find_damage(large.parent) is None


@pytest.mark.parametrize(
    "ask",
    [
        lambda folder: read_best(folder),
        lambda folder: checksums.find_damage(folder),
        lambda folder: read_weights(folder / "a.safetensors"),
        lambda folder: is_weights(folder / "a.safetensors"),
        lambda folder: load_tower(folder, TextEncoder(100, 16, 1)),
    ],
)
def test_what_cannot_be_seen_is_not_taken_for_missing(ask, tmp_path, monkeypatch):
    """As of Python 3.14, whose `pathlib` takes any error for a no."""
    for name in ("is_file", "is_dir", "exists"):
        old = {"is_file": "isfile", "is_dir": "isdir"}.get(name, name)
        function = getattr(os.path, old)
        monkeypatch.setattr(
            pathlib.Path, name, lambda self, function=function: function(self)
        )
    state = os.stat

    def stat(path, *args, **kwargs):
        if not isinstance(path, int) and str(tmp_path) in os.fspath(path):
            raise fault(path)
        return state(path, *args, **kwargs)

    monkeypatch.setattr(os, "stat", stat)
    with pytest.raises(Unreachable, match="Input/output error"):
        ask(tmp_path)


def test_what_is_there(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name, found in {
        "": (True, False, True),
        "file": (True, True, False),
        "loop": (False, False, False),
        "file/under": (False, False, False),
        "gone": (False, False, False),
    }.items():
        path = tmp_path / name
        assert (exists(path), is_file(path), is_dir(path)) == found, name


def test_a_link_in_a_folder_does_not_make_it_unreadable(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert names_in(tmp_path, folders=True) == ["a"]
    (tmp_path / "b").symlink_to(tmp_path / "a")
    scan, state = os.scandir, os.stat

    class Entry:
        def __init__(self, path):
            self.path, self.name = os.fspath(path), os.path.basename(path)

        def is_dir(self):
            raise fault(self.path, errno.EACCES)

    class Scan(list):
        __enter__ = lambda self: self  # noqa: E731
        __exit__ = lambda self, *_: None  # noqa: E731

    def stat(path, *args, **kwargs):
        if os.fspath(path).endswith("/b"):
            raise fault(path, errno.EACCES)
        return state(path, *args, **kwargs)

    monkeypatch.setattr(os, "stat", stat)
    monkeypatch.setattr(os, "scandir", lambda p: Scan(Entry(e.path) for e in scan(p)))
    with pytest.raises(DataError, match="/b cannot be looked at: Permission denied"):
        names_in(tmp_path, folders=True)
    assert names_in(tmp_path) == ["a", "b", "loop"]
