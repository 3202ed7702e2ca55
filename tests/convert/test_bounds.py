"""Small files that ask for much memory or time are refused before they take it."""

import struct
import zipfile

import numpy as np
import pytest

from ldm_jax.errors import ConversionError
from ldm_jax.weights import pickles, unpickle
from ldm_jax.weights.files import read_json, read_weights
from tests.convert.pickled import Call, Name, dumps, tensor_of, write_zip

# (1, 1), then ((1, 1), (1, 1)) and so on: 2^60 numbers for whoever looks at all.
TUPLES = b"K\x01" + b"2\x86" * 60
BOMBS = {
    "hash of a key": (b"\x80\x02}" + TUPLES + b"Ns.", "a tuple as a key"),
    "hash of keys": (b"\x80\x02}(" + TUPLES + b"Nu.", "a tuple as a key"),
    "hash in a dict": (b"\x80\x02(" + TUPLES + b"Nd.", "a tuple as a key"),
    "hash in a set": (b"\x80\x04\x8f(" + TUPLES + b"\x90.", "a tuple as a key"),
    "hash in a frozen set": (b"\x80\x04(" + TUPLES + b"\x91.", "a tuple as a key"),
    "hash in a call": (
        b"\x80\x02c__builtin__\nset\n(](" + TUPLES + b"etR.",
        "a tuple as a key",
    ),
    "text of a reference": (b"\x80\x02" + TUPLES + b"Q.", "an unexpected reference"),
    "text of a storage": (
        b"\x80\x02(X\x07\0\0\0storagectorch\nFloatStorage\n" + TUPLES + b"NK\x01tQ.",
        "an unexpected reference a tuple",
    ),
    "index of the memo": (b"\x80\x02K\x01r\xff\xff\xff\x7f.", "holds no state dict"),
    "length of a text": (
        b"\x80\x04\x8d" + struct.pack("<Q", 1 << 40) + b"x.",
        "more than 64 MiB",
    ),
    "length of bytes": (
        b"\x80\x05\x96" + struct.pack("<Q", 1 << 62) + b"x.",
        "more than 64 MiB",
    ),
    "a large integer": (b"\x80\x02\x8a\xff" + b"\x7f" * 255 + b".", "128 bits"),
    "digits": (b"I" + b"7" * 100_000 + b"\n.", "cannot read"),
    "deep lists": (b"\x80\x02" + b"]" * 50_000 + b"a" * 49_999 + b".", "no state dict"),
    "a buffer": (b"\x80\x05\x97.", "opcode NEXT_BUFFER"),
    "a registered name": (b"\x80\x02\x82\x01.", "opcode EXT1"),
    "too little": (b"\x80\x02\x87.", "more than it has made"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_in_pickles(tmp_path, name):
    data, message = BOMBS[name]
    with zipfile.ZipFile(tmp_path / "m.ckpt", "w") as archive:
        archive.writestr("archive/data.pkl", data)
    with pytest.raises(ConversionError, match=message):
        read_weights(tmp_path / "m.ckpt")


def test_steps_are_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(pickles, "MAX_STEPS", 1000)
    (tmp_path / "m.ckpt").write_bytes(b"\x80\x02" + b"}0" * 1000 + b"N.")
    with pytest.raises(ConversionError, match="more than 1,000 steps"):
        read_weights(tmp_path / "m.ckpt")


@pytest.mark.parametrize("name", ["set", "OrderedDict", "Size"])
def test_copies_are_counted(tmp_path, monkeypatch, name):
    """A list that is made once and copied often takes as much as many lists."""
    monkeypatch.setattr(pickles, "MAX_STEPS", 2000)
    module = {"set": "__builtin__", "OrderedDict": "collections", "Size": "torch"}[name]
    items = [(i, i) for i in range(100)] if name == "OrderedDict" else list(range(100))
    call = dumps(Call(Name(module, name), items)).removesuffix(b".")
    # Its function and its arguments are kept, and called again and again.
    start = call.rindex(b"R")
    many = call[:start] + b"q\xff0q\xfe0" + b"h\xfeh\xffR0" * 100 + b"N."
    (tmp_path / "m.ckpt").write_bytes(many)
    with pytest.raises(ConversionError, match="more than 2,000 steps"):
        read_weights(tmp_path / "m.ckpt")


def test_records_that_inflate(tmp_path, monkeypatch):
    """Compressed weights are read, but not a hundred times of what is on disk."""
    monkeypatch.setattr(unpickle, "_MAX_INFLATED", 1 << 20)
    count = (1 << 20) // 4
    for copies, fits in ((1, True), (2, False)):
        path = tmp_path / f"{copies}.ckpt"
        state = {
            str(i): tensor_of((count,), (1,), key=str(i), numbers=count)
            for i in range(copies)
        }
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("archive/data.pkl", dumps(state))
            for i in range(copies):
                archive.writestr(f"archive/data/{i}", bytes(1 << 20))
        assert path.stat().st_size < 5000
        if fits:
            tensors = read_weights(path).tensors
            assert not np.any(tensors["0"]) and tensors["0"].shape == (count,)
        else:
            with pytest.raises(ConversionError, match="would take 2,097,152 bytes"):
                read_weights(path)


def test_numbers_that_are_repeated(tmp_path):
    tensor = tensor_of((1 << 20, 1 << 20), (0, 0))
    write_zip(tmp_path / "m.ckpt", {"w": tensor}, _0=bytes(24))
    with pytest.raises(ConversionError, match="repeats the 6 numbers"):
        read_weights(tmp_path / "m.ckpt")


@pytest.mark.parametrize("length", [1 << 26, 1 << 39])
def test_headers_of_safetensors(tmp_path, length):
    data = struct.pack("<Q", length) + b"{" + b" " * 100
    (tmp_path / "m.safetensors").write_bytes(data)
    with pytest.raises(ConversionError, match="more than 33,554,432"):
        read_weights(tmp_path / "m.safetensors")


def test_json_that_is_nested_or_large(tmp_path):
    (tmp_path / "deep.json").write_text("[" * 100_000 + "]" * 100_000)
    with pytest.raises(ConversionError, match="nested too deep"):
        read_json(tmp_path / "deep.json")
    with open(tmp_path / "large.json", "wb") as file:
        file.truncate(33 << 20)
    with pytest.raises(ConversionError, match="bytes of JSON, more than"):
        read_json(tmp_path / "large.json")
    for depth in (1000, 100_000):
        header = b'{"w":' + b"[" * depth + b"]" * depth + b"}"
        data = struct.pack("<Q", len(header)) + header
        (tmp_path / "m.safetensors").write_bytes(data)
        with pytest.raises(ConversionError, match="cannot read"):
            read_weights(tmp_path / "m.safetensors")
