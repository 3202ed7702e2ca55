"""Disks and mounts that do not answer end a run; what lies on them is not damaged."""

import contextlib
import errno
import os
import shutil
import struct

import numpy as np
import pytest

from ldm_jax.cli.failures import explain
from ldm_jax.data.folder import FolderSource
from ldm_jax.data.loader import make_loader
from ldm_jax.data.open_source import open_source
from ldm_jax.data.records import NamedRecords, TFRecords
from ldm_jax.data.tar.shards import find_shards
from ldm_jax.errors import (
    ConfigError,
    ConversionError,
    DataError,
    DiskError,
    ProcessLost,
    Unreachable,
)
from ldm_jax.store import raise_if_silent
from tests.data.common import write_images
from tests.data.every_source import write

SILENT = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.EHOSTDOWN)


class Faulty:
    """Eight small images, of which one raises an error."""

    num_classes = class_names = None

    def __init__(self, error):
        self.error = error

    def __len__(self):
        return 8

    def __getitem__(self, index):
        if index == 3:
            raise self.error
        return {"image": np.zeros((8, 8, 3), np.uint8)}

    def describe(self, index):
        return f"example {index}"


def wrapped(error):
    """The error that a source makes of another one."""
    try:
        raise ValueError("row group 0 cannot be read") from error
    except ValueError as made:
        return made


def load(source, **section):
    """Loads all examples; returns the loader."""
    loader = make_loader(source, {"image_size": 8} | section, batch_size=8, seed=0)
    next(loader)
    return loader


@pytest.mark.parametrize(
    "error",
    [OSError(number, os.strerror(number)) for number in SILENT]
    + [
        wrapped(OSError(errno.EIO, "Input/output error")),
        RuntimeError("INTERNAL: pread() failed: Stale file handle"),
        Unreachable("a store is gone"),
    ],
    ids=repr,
)
def test_what_is_silence(error):
    with pytest.raises(Unreachable):
        raise_if_silent("a", error)


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(errno.ENOENT, "No such file or directory"),
        PermissionError(errno.EACCES, "Permission denied"),
        OSError("image file is truncated"),
        RuntimeError("INVALID_ARGUMENT: invalid chunk header"),
        # Of special files: a pipe that nobody reads, a device that is not there.
        OSError(errno.ENXIO, os.strerror(errno.ENXIO)),
        RuntimeError("open() failed: No such device or address"),
        # What cannot be written has a status of its own.
        DiskError("cannot write index: Input/output error"),
    ],
    ids=repr,
)
def test_what_is_none(error):
    raise_if_silent("a", error)


def test_silence_is_no_damage():
    silent = OSError(errno.ESTALE, "Stale file handle")
    with pytest.raises(Unreachable, match=r"example 3: .* the same command continues"):
        load(Faulty(silent))
    assert Unreachable.exit_code == 11
    assert len(load(Faulty(PermissionError(errno.EACCES, "no"))).skipped) == 1


def silence(monkeypatch, function, folder, number=errno.EIO):
    """Has a function of the system fail at all below a folder, or at all files."""
    ask = getattr(os, function)

    def silent(path, *args, **kwargs):
        # Files that are open have numbers.
        if isinstance(path, int) or str(folder) in os.fsdecode(path):
            raise OSError(number, os.strerror(number), path)
        return ask(path, *args, **kwargs)

    monkeypatch.setattr(os, function, silent)


@pytest.mark.parametrize(
    "kind, function", [("folder", "open"), ("tar", "pread"), ("parquet", "pread")]
)
def test_a_run_ends_where_its_disk_does_not_answer(
    kind, function, tmp_path, monkeypatch
):
    source = open_source(write(kind, tmp_path, None), "all")
    with monkeypatch.context() as patch:
        silence(patch, function, tmp_path)
        with pytest.raises(Unreachable, match="Input/output error"):
            load(source)
        with pytest.raises(Unreachable, match="Input/output error"):
            source.sizes()
    assert not load(source).skipped


@pytest.mark.skipif(not os.path.exists("/proc/self/mem"), reason="Linux has it")
@pytest.mark.parametrize("kind", ["latents", "tfds", "tar", "parquet"])
def test_what_the_system_itself_says(kind, tmp_path, array_record_dir):
    """Also to readers in C++: where no memory is, reading it is an EIO.

    Where readers are ours the file is opened again, as after a mount came back.
    """
    section = write(kind, tmp_path, array_record_dir)
    source = open_source(section, section["split"])
    expected, memory = source[0], os.open("/proc/self/mem", os.O_RDONLY)
    place = os.path.realpath(array_record_dir if kind == "tfds" else tmp_path)
    opened = [
        int(number)
        for number in os.listdir("/proc/self/fd")
        if os.path.realpath(f"/proc/self/fd/{number}").startswith(place)
    ]
    kept = {number: os.dup(number) for number in opened}
    try:
        for number in opened:
            os.dup2(memory, number)
        if kind != "tfds":
            assert not load(source).skipped
        else:
            message = r"\.array_record-00000-of-0000.: Input/output error"
            with pytest.raises(Unreachable, match=message):
                load(source)
    finally:
        for number, own in kept.items():
            # Not where another of the files that were opened again has its number now.
            if os.path.realpath(f"/proc/self/fd/{number}").endswith("/mem"):
                os.dup2(own, number)
            os.close(own)
        os.close(memory)
    assert opened and source[0].keys() == expected.keys()


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_a_disk_that_does_not_answer_when_it_is_opened(kind, tmp_path, monkeypatch):
    section = write(kind, tmp_path, None)
    silence(monkeypatch, "pread", tmp_path)
    with pytest.raises(Unreachable, match="Input/output error"):
        open_source(section, "all")


def test_a_file_that_was_replaced_on_its_server_is_opened_again(tmp_path, monkeypatch):
    source = open_source(write("tar", tmp_path, None), "all")
    expected, read, stale = source[0], os.pread, []

    def once(number, *where):
        if not stale:
            stale.append(number)
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return read(number, *where)

    monkeypatch.setattr(os, "pread", once)
    assert source[0] == expected and stale


def break_reads(monkeypatch, path, first=0, number=errno.EIO):
    """Has reads of a file fail from a byte on, as where its sectors are bad."""
    read, inode = os.pread, os.stat(path).st_ino
    ask = os.open

    def pread(file, size, at):
        if os.fstat(file).st_ino == inode and at + size > first:
            raise OSError(number, os.strerror(number))
        return read(file, size, at)

    def opening(name, *args, **kwargs):
        # What is read whole is not read by `pread`.
        if not first and os.fspath(name) == os.fspath(path):
            raise OSError(number, os.strerror(number), name)
        return ask(name, *args, **kwargs)

    monkeypatch.setattr(os, "pread", pread)
    monkeypatch.setattr(os, "open", opening)


def test_one_file_with_bad_sectors_is_damaged(tmp_path, monkeypatch):
    """What lies beside it is read before its disk is said not to answer."""
    section = write("folder", tmp_path, None)
    source = open_source(section, "all")
    bad = source.describe(3)
    with monkeypatch.context() as patch:
        break_reads(patch, bad)
        assert source.sizes()[3].tolist() == [0, 0]
        loader = make_loader(source, section, batch_size=len(source), seed=0)
        next(loader)
        assert loader.skipped == {bad: "Input/output error"}
        with pytest.raises(DataError, match="png: Input/output error; repair or"):
            make_loader(
                source, section | {"on_error": "raise"}, batch_size=len(source), seed=0
            ).__next__()
        # Other errors are of the whole mount.
        break_reads(patch, bad, number=errno.ENOTCONN)
        with pytest.raises(Unreachable):
            source[3]


def test_a_file_that_can_be_read_once_more_was_none_with_bad_sectors(
    tmp_path, monkeypatch
):
    source = open_source(write("folder", tmp_path, None), "all")
    error = OSError(errno.EIO, os.strerror(errno.EIO), source.describe(3))
    with pytest.raises(Unreachable):
        raise_if_silent("example 3", error)


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_bad_sectors_in_a_file_of_many(kind, tmp_path, monkeypatch):
    section = write(kind, tmp_path, None)
    source = open_source(section, "all")
    path = source.describe(0).rpartition(kind)[0] + kind
    with monkeypatch.context() as patch:
        break_reads(patch, path, 1)
        loader = make_loader(source, section, batch_size=len(source), seed=0)
        next(loader)
    assert loader.skipped
    assert all(where.startswith(path) for where in loader.skipped)


def test_bad_sectors_of_latents(tmp_path, monkeypatch):
    """Its reader is C++: the file is one that cannot be read, opened again or not."""
    section = write("latents", tmp_path, None)
    source = open_source(section, section["split"])
    path = source._folder / source.header.shards[0]["file"]

    class Broken:
        def read(self, places):
            raise RuntimeError("INTERNAL: pread() failed: Input/output error")

    own, opened = source._open_shard, []

    def open_shard(shard):
        opened.append(shard)
        return own(shard) if shard else Broken()

    monkeypatch.setattr(source, "_open_shard", open_shard)
    # The file itself can be read: it was its disk.
    with pytest.raises(Unreachable):
        source[0]
    break_reads(monkeypatch, path)
    with pytest.raises(ValueError, match=f"{path}: INTERNAL.*output error") as raised:
        source[0]
    assert not isinstance(raised.value, Unreachable)
    # Each time again, beside the first.
    assert opened == [0] * 3 and source[len(source) - 1]


class BrokenRecords:
    """Records of which those from some position on cannot be read, says C++."""

    def __init__(self, records, first):
        self._records, self._first = records, first

    def __len__(self):
        return len(self._records)

    def __getitem__(self, index):
        if index >= self._first:
            raise RuntimeError("INTERNAL: pread() failed: Input/output error")
        return self._records[index]


def test_bad_sectors_of_a_prepared_set(tmp_path, array_record_dir, monkeypatch):
    root = shutil.copytree(array_record_dir, tmp_path / "data")
    section = write("tfds", tmp_path, root)
    source = open_source(section, section["split"])
    (path,) = root.rglob("*train.array_record*")
    left, count = 5, len(source)
    source._records._records = BrokenRecords(source._records._records, left)
    with pytest.raises(Unreachable, match=f"{path}: Input/output error"):
        source[left]
    break_reads(monkeypatch, path)
    loader = make_loader(source, section, batch_size=count, seed=0, train=False)
    mask = next(loader)["mask"]
    assert mask.tolist() == [True] * left + [False] * (count - left)
    assert len(loader.skipped) == count - left
    assert all(why.startswith(f"{path}: INTERN") for why in loader.skipped.values())


def test_each_record_is_named_by_its_own_file(tmp_path):
    paths = [tmp_path / name for name in "abc"]
    parts = [(paths[0], 0, 3), (paths[1], 2, 1), (paths[2], 0, 2)]
    records = NamedRecords([b""] * 6, parts)
    records._records = BrokenRecords(records._records, 0)
    for index, path in enumerate([paths[0]] * 3 + [paths[1]] + [paths[2]] * 2):
        with pytest.raises(Unreachable, match=f"^{path}: "):
            records[index]


def test_bad_sectors_of_a_file_of_records(tmp_path, monkeypatch):
    for name in "ab":
        record = struct.pack("<Q", 3) + b"sum." + b"abc" + b"sum."
        (tmp_path / name).write_bytes(record)
    records = TFRecords([(tmp_path / name, 0, -1) for name in "ab"])
    break_reads(monkeypatch, tmp_path / "a", 1)
    with pytest.raises(OSError, match="Input/output error") as raised:
        records[0]
    assert not isinstance(raised.value, Unreachable) and records[1] == b"abc"
    silence(monkeypatch, "pread", tmp_path)
    with pytest.raises(Unreachable):
        records[1]


def test_bad_sectors_are_named_where_a_shard_is_indexed(tmp_path, monkeypatch):
    section = write("tar", tmp_path, None)
    with monkeypatch.context() as patch:
        break_reads(patch, tmp_path / "tar" / "00001.tar", 5000)
        source = open_source(section, "all")
        assert "Input/output error; once it can" in source.skipped[0][1]
        with pytest.raises(DataError, match="cannot be read: Input/output error"):
            open_source(section | {"on_error": "raise"}, "all")
    assert 16 <= len(source) < 24


def refuse(monkeypatch, function, ends, number=errno.EACCES):
    """Has a function of the system fail at paths that end so."""
    ask = getattr(os, function)

    def refused(path=".", *args, **kwargs):
        if not isinstance(path, int) and os.fspath(path).endswith(ends):
            raise OSError(number, os.strerror(number), path)
        return ask(path, *args, **kwargs)

    monkeypatch.setattr(os, function, refused)


def test_a_class_that_cannot_be_listed_would_change_the_labels(tmp_path, monkeypatch):
    write_images(tmp_path, ["a/0.png", "b/0.png", "c/0.png"])
    refuse(monkeypatch, "scandir", "/b")
    with pytest.raises(ValueError, match="/b cannot be listed: Permission denied, and"):
        FolderSource(str(tmp_path), "all")


# What has bad sectors is damaged alike: files beside it can be read.
@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES])
def test_folders_that_cannot_be_listed(tmp_path, monkeypatch, number):
    write_images(tmp_path, ["a/0.png", "b/0.png", "b/d/0.png"])
    refuse(monkeypatch, "scandir", "/d", number)
    source = FolderSource(str(tmp_path), "all")
    # No silent loss.
    assert len(source) == 2
    expected = f"cannot be listed: {os.strerror(number)}"
    assert source.skipped == [(str(tmp_path / "b" / "d"), expected)]
    section = {"source": "folder", "name": str(tmp_path), "on_error": "raise"}
    with pytest.raises(DataError, match=expected):
        open_source(section, "all")


def test_what_nobody_asks_for_need_not_be_listed(tmp_path, monkeypatch):
    write_images(tmp_path, ["train/a/0.png", "val/a/0.png", "val/b/0.png"])
    (tmp_path / "train" / "lost+found").mkdir()
    refuse(monkeypatch, "scandir", ("/lost+found", "/val/b"))
    section = {"source": "folder", "name": str(tmp_path), "on_error": "raise"}
    assert open_source(section, "train").class_names == ("a",)
    with pytest.raises(DataError, match="/val/b: cannot be listed"):
        open_source(section, "validation")


@pytest.mark.parametrize("number", [errno.ENOTCONN, errno.EACCES])
def test_links_to_what_does_not_answer_or_is_gone(tmp_path, monkeypatch, number):
    """`os.walk` takes them for files of another kind."""
    write_images(tmp_path / "set", ["a/0.png"])
    (tmp_path / "set" / "a" / "more").symlink_to(tmp_path / "gone")
    source = FolderSource(str(tmp_path / "set"), "all")
    assert "a link to what is not there" in source.skipped[0][1]
    scan = os.scandir

    class Entry:
        def __init__(self, entry):
            self.name, self._entry = entry.name, entry

        def __getattr__(self, name):
            return getattr(self._entry, name)

        def is_dir(self, **options):
            if self.name == "more" and not options:
                raise OSError(number, os.strerror(number), self.path)
            return self._entry.is_dir(**options)

    @contextlib.contextmanager
    def scandir(path):
        with scan(path) as entries:
            yield map(Entry, entries)

    monkeypatch.setattr(os, "scandir", scandir)
    if number == errno.ENOTCONN:
        with pytest.raises(Unreachable, match="a/more: "):
            FolderSource(str(tmp_path / "set"), "all")
    else:
        source = FolderSource(str(tmp_path / "set"), "all")
        assert "Permission denied" in source.skipped[0][1]


@pytest.mark.parametrize(
    "kind, function, pattern",
    [
        *((k, "stat", "") for k in ("folder", "huggingface", "latents")),
        *((k, f, "") for k in ("tar", "parquet") for f in ("stat", "scandir")),
        *((k, "scandir", f"/*/*.{k}") for k in ("tar", "parquet")),
        ("folder", "scandir", ""),
    ],
)
def test_a_mount_that_is_dead_from_the_start(
    kind, function, pattern, tmp_path, monkeypatch
):
    section = write(kind, tmp_path, None)
    if pattern:
        section["name"] = f"{tmp_path}{pattern}"
    silence(monkeypatch, function, tmp_path, errno.ENOTCONN)
    with pytest.raises(Unreachable, match="not connected"):
        open_source(section, section["split"])


def test_a_mount_that_dies_before_the_fingerprint(tmp_path, monkeypatch):
    source = open_source(write("folder", tmp_path, None), "all")
    silence(monkeypatch, "stat", tmp_path)
    with pytest.raises(Unreachable, match="Input/output error"):
        source.fingerprint()


def test_patterns_do_not_pass_over_folders_that_cannot_be_listed(tmp_path, monkeypatch):
    for name in ("a", "b", "lost+found"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.tar").write_bytes(b"")
    assert [shard.path for shard in find_shards(f"{tmp_path}/*/*.tar")] == [
        str(tmp_path / "a" / "0.tar"),
        str(tmp_path / "b" / "0.tar"),
    ]
    refuse(monkeypatch, "scandir", ("/b", "/lost+found"))
    for pattern in ("*/*.tar", "**/*.tar"):
        with pytest.raises(DataError, match="/b cannot be listed: Permission denied"):
            find_shards(f"{tmp_path}/{pattern}")


def test_patterns_find_files_at_any_depth_and_name_lost_links(tmp_path, caplog):
    (tmp_path / "a" / "b").mkdir(parents=True)
    found = [tmp_path / "0.tar", tmp_path / "a" / "1.tar", tmp_path / "a" / "b" / "2"]
    for path in found:
        path.write_bytes(b"")
    assert [s.path for s in find_shards(f"{tmp_path}/**")] == sorted(map(str, found))
    for name in ("c", "README", "3.tar"):
        (tmp_path / name).symlink_to(tmp_path / "gone")
    for pattern in ("*/*.tar", "**/1.tar"):
        caplog.clear()
        shards = find_shards(f"{tmp_path}/{pattern}")
        assert [shard.path for shard in shards] == [str(found[1])]
        assert caplog.text.count("it is a link to what is not there") == 1
        assert f"{tmp_path}/c is passed over" in caplog.text


def test_patterns_and_folders_follow_the_same_links(tmp_path):
    """Not for ever, and of two to one folder the first by name, wherever it leads."""
    write_images(tmp_path / "elsewhere", ["a.png"])
    root = tmp_path / "root"
    write_images(root, ["a/b/c.png"])
    for name in ("x", "a/z", "y"):
        (root / name).symlink_to(tmp_path / "elsewhere")
    (root / "a" / "b" / "up").symlink_to(root)
    shards = find_shards(f"{root}/**/*.png")
    found = [os.path.relpath(shard.path, root) for shard in shards]
    source = FolderSource(str(root), "all")
    there = [os.path.relpath(source.describe(k), root) for k in range(len(source))]
    assert found == there == ["a/b/c.png", "a/z/a.png"]


def caused(error, cause):
    error.__cause__ = cause
    return error


def test_silence_that_nothing_caught_has_its_status():
    def fault(number):
        return OSError(number, os.strerror(number), "/mnt/a")

    for error in (
        fault(errno.ENOTCONN),
        caused(ConfigError("cannot read a"), fault(errno.EIO)),
        caused(ConversionError("cannot read a"), Unreachable("/mnt/a: it is gone")),
    ):
        failure = explain(error)
        assert failure.exit_code == 11 and failure.line.startswith("/mnt/a: ")
    for error in (DiskError("cannot write a"), ProcessLost("another has gone")):
        code = error.exit_code
        assert explain(caused(error, fault(errno.EIO))).exit_code == code
