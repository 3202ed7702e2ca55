"""Files beside images that are hostile, huge or no files: refused before they cost."""

import json
import os

import numpy as np
import pytest

from ldm_jax.data.folder import FolderSource
from ldm_jax.data.records import TFRecords
from ldm_jax.images import memory_limit, require_memory
from ldm_jax.reading import MAX_TEXT, parse_json, read_array, read_file
from ldm_jax.sampling.flag_values import Names, read_flags
from tests.data.common import write_images


def write_array(path, header, data=b""):
    """A NumPy file with any header."""
    header = header.encode() + b"\n"
    size = len(header).to_bytes(2, "little")
    path.write_bytes(b"\x93NUMPY\x01\x00" + size + header + data)
    return path


HEADER = "{'descr': '%s', 'fortran_order': False, 'shape': %s}"


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (HEADER % ("<f8", "(1000000, 1000000)"), "not a NumPy array"),
        (HEADER % ("<f8", f"({10**30},)"), "not a NumPy array"),
        (HEADER % ("<f8", "(-5,)"), "not a NumPy array"),
        (HEADER % ("|O", "(1,)"), "not a NumPy array"),
        (HEADER % ("|V8", "(1,)"), "array of numbers is expected"),
        ("(" * 9000, "not a NumPy array"),
        ("[" * 60 + "]" * 60, "not a NumPy array"),
        ("{'descr': 1}", "not a NumPy array"),
        (HEADER % ("<f8", "(1,)") + " " * 60000, "not a NumPy array"),
    ],
)
def test_arrays_that_are_none(tmp_path, header, message):
    path = write_array(tmp_path / "a.npy", header, bytes(8))
    with pytest.raises(ValueError, match=message) as error:
        read_array(path)
    assert "\n" not in str(error.value)


def test_archives_and_folders_are_no_arrays(tmp_path):
    np.savez(tmp_path / "a.npz", a=np.zeros(3))
    with pytest.raises(ValueError, match="archive of several"):
        read_array(tmp_path / "a.npz")
    with pytest.raises(ValueError, match="not a file"):
        read_array(tmp_path)


def folder(tmp_path, keys):
    write_images(tmp_path, ["a.png"])
    return FolderSource(str(tmp_path), "all", keys=keys)


def test_an_array_larger_than_the_limit_is_not_copied(tmp_path):
    source = folder(tmp_path, ["clip"])
    np.save(tmp_path / "a.clip.npy", np.zeros(1000, np.float32))
    assert source[0]["clip"].shape == (1000,)
    with memory_limit(3e-6), pytest.raises(ValueError, match="a.clip.npy: 4,000 bytes"):
        source[0]
    np.save(tmp_path / "a.clip.npy", np.zeros((0, 5), np.float32))
    assert source[0]["clip"].shape == (0, 5)


@pytest.mark.parametrize("opening", ["[", '{"a":', '[{"label": 0, "box": ['])
def test_deep_nesting_is_an_error_in_one_line(tmp_path, opening):
    text = opening * 100_000
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_json(text)
    source = folder(tmp_path, ["boxes"])
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match="a.json: nested too deeply"):
        source[0]
    with pytest.raises(ValueError, match="a.json: nested too deeply"):
        read_flags({"layout": [str(tmp_path / "a.json")]}, Names())


@pytest.mark.parametrize(
    "objects",
    [
        [{"label": 2**40, "box": [0, 0, 1, 1]}],
        [{"label": 10**400, "box": [0, 0, 1, 1]}],
        [{"label": [[]], "box": [0, 0, 1, 1]}],
        [{"label": 1, "box": [0, 0, 1, 10**400]}],
        [{"label": 1, "box": [0, 0, 1, float("nan")]}],
        [{"label": 1, "box": [0, 0, 1, float("inf")]}],
        [{"label": 1, "box": {"a": 1}}],
        [[]],
    ],
)
def test_numbers_that_are_none(tmp_path, objects):
    source = folder(tmp_path, ["boxes", "box_labels"])
    (tmp_path / "a.json").write_text(json.dumps(objects))
    with pytest.raises(ValueError, match="^a.json: ") as error:
        source[0]
    assert "\n" not in str(error.value)


def test_large_texts_are_not_read(tmp_path):
    source = folder(tmp_path, ["caption"])
    with open(tmp_path / "a.txt", "wb") as file:
        file.truncate(MAX_TEXT + 1)
    with pytest.raises(ValueError, match="a.txt has 16,777,217 bytes, and at most"):
        source[0]


def test_large_files_are_not_read(tmp_path):
    source = folder(tmp_path, [])
    with open(tmp_path / "a.png", "wb") as file:
        file.truncate(2 * 10**9)  # Without a byte on the disk.
    with pytest.raises(ValueError, match="the bytes of a.png take 2 GB.*max_image_gb"):
        source[0]


def test_large_records_are_not_read(tmp_path):
    path = tmp_path / "a.tfrecord"
    path.write_bytes((100).to_bytes(8, "little") + bytes(4 + 100 + 4))
    records = TFRecords([(path, 0, -1)])
    assert records[0] == bytes(100)
    with memory_limit(5e-8), pytest.raises(ValueError, match="100 bytes of a record"):
        records[0]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes")
def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "x.png")
    with pytest.raises(ValueError, match="x.png is a pipe"):
        read_file(tmp_path / "x.png", require_memory)
    os.mkfifo(tmp_path / "x.npy")
    with pytest.raises(ValueError, match="not a file"):
        read_array(tmp_path / "x.npy")
