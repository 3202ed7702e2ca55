"""Small files that ask for much memory or time are refused before they take it."""

import os
import struct
import zipfile

import numpy as np
import pytest

from ldm_jax.convert import workdir
from ldm_jax.convert.bounds import check_layers, check_numbers, read_yaml_file
from ldm_jax.convert.compvis.read_yaml import read_yaml
from ldm_jax.convert.formats import convert
from ldm_jax.errors import ConversionError
from ldm_jax.files import write_json
from ldm_jax.weights import files, pickles, unpickle
from ldm_jax.weights.files import read_json, read_weights, write_weights
from tests.convert.pickled import Call, Name, dumps, tensor_of, write_zip
from tests.convert.published_files import write_diffusers

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
    "keys of one hash": (
        dumps({k * (2**61 - 1): None for k in range(1, 9)}),
        "2305843009213693951 as a key",
    ),
    "keys of one hash in tuples": (dumps({(1, 2): None}), "a tuple as a key"),
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


@pytest.mark.parametrize(
    "saved",
    [
        [{i: None} for i in range(101)],
        [dict.fromkeys(i + 0.5 for i in range(101))],
        [Call(Name("collections", "OrderedDict"), {i: None for i in range(51)})],
        [Call(Name("builtins", "set"), list(range(101)))],
    ],
)
def test_numbers_as_keys_are_counted(tmp_path, monkeypatch, saved):
    """Whoever makes a file can choose numbers that all collide in a dict."""
    monkeypatch.setattr(pickles, "MAX_NUMBERS", 100)
    write_zip(tmp_path / "m.ckpt", saved)
    with pytest.raises(ConversionError, match="more than 100 numbers as keys"):
        read_weights(tmp_path / "m.ckpt")


def test_keys_that_training_saves_are_read(tmp_path):
    keys = [None, 7, 2**47, 0.5, True, b"k", "k", ("k", "l"), Name("enum", "Enum")]
    saved = {"state_dict": {"w": tensor_of((6,), (1,))}}
    write_zip(
        tmp_path / "m.ckpt", saved | {"state": dict.fromkeys(keys, 1)}, _0=bytes(24)
    )
    assert list(read_weights(tmp_path / "m.ckpt").tensors) == ["w"]


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


@pytest.mark.parametrize("large", [False, True])
def test_directories_of_zips(tmp_path, monkeypatch, large):
    """The records of a zip are listed behind them, for little on disk each."""
    monkeypatch.setattr(unpickle, "_MAX_DIRECTORY", 1000)
    if large:  # counted in 64 bits, as from 65,536 records on
        monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 3)
    with zipfile.ZipFile(tmp_path / "m.ckpt", "w") as archive:
        archive.writestr("archive/data.pkl", dumps({}))
        for i in range(20):
            archive.writestr(f"archive/data/{i}", b"")
    with pytest.raises(ConversionError, match="lists its records in 1,[0-9]+ bytes"):
        read_weights(tmp_path / "m.ckpt")


def test_numbers_that_are_repeated(tmp_path):
    tensor = tensor_of((1 << 20, 1 << 20), (0, 0))
    write_zip(tmp_path / "m.ckpt", {"w": tensor}, _0=bytes(24))
    with pytest.raises(ConversionError, match="repeats the 6 numbers"):
        read_weights(tmp_path / "m.ckpt")


def test_tensors_that_view_the_same_numbers(tmp_path, monkeypatch):
    """Each has no more than its storage, but a thousand have a thousand times of it."""
    monkeypatch.setattr(unpickle, "_MAX_INFLATED", 1 << 16)
    count = 1 << 14
    for copies, fits in ((2, True), (1000, False)):
        path = tmp_path / f"{copies}.ckpt"
        one = tensor_of((count,), (1,), numbers=count)
        empty = tensor_of((0, 1 << 100), (1, 1), numbers=count)
        state = {"empty": empty} | {str(i): one for i in range(copies)}
        write_zip(path, state, _0=bytes(4 * count))
        if fits:
            assert len(read_weights(path).tensors) == copies + 1
        else:
            with pytest.raises(ConversionError, match="its tensors would take 65,536,"):
                read_weights(path)


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
    with pytest.raises(ConversionError, match="and at most 33,554,432 are read"):
        read_json(tmp_path / "large.json")
    for depth in (1000, 100_000):
        header = b'{"w":' + b"[" * depth + b"]" * depth + b"}"
        data = struct.pack("<Q", len(header)) + header
        (tmp_path / "m.safetensors").write_bytes(data)
        with pytest.raises(ConversionError, match="cannot read"):
            read_weights(tmp_path / "m.safetensors")


@pytest.mark.parametrize(
    "origin", [["x"], {"dtypes": {"w": "V1000000000"}}, {"dtypes": {"w": "object"}}]
)
def test_types_that_no_file_has(tmp_path, origin):
    """A workdir may come from strangers, too."""
    path = tmp_path / "origin.json"
    write_json(path, origin)
    with pytest.raises(ConversionError, match="its dtypes must be among float64"):
        workdir._read_origin(path)
    write_json(path, {"dtypes": {"w": "bfloat16", "x": "float16"}})
    assert workdir._read_origin(path)["dtypes"]["w"] == "bfloat16"


def test_more_tensors_than_any_model_has(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_MAX_TENSORS", 3)
    for count in (3, 4):
        tensors = {str(i): np.zeros(1, np.float32) for i in range(count)}
        write_weights(tmp_path / "m.safetensors", tensors)
        if count == 3:
            assert len(read_weights(tmp_path / "m.safetensors").tensors) == 3
    with pytest.raises(ConversionError, match="holds 4 tensors, more than 3"):
        read_weights(tmp_path / "m.safetensors")


@pytest.mark.parametrize(
    "section",
    [
        dict(channel_mult=(1,) * 17, num_res_blocks=1),
        dict(channel_mult=(1,) * 16, num_res_blocks=64),
        dict(channel_mult=(1, 2), num_res_blocks=(200, 64), transformer_depth=(1, 200)),
    ],
)
def test_networks_of_more_layers_than_any(section):
    with pytest.raises(ConversionError, match="which no published network has"):
        check_layers(section, "backbone")
    check_layers(
        dict(channel_mult=(1, 2, 4), num_res_blocks=2, transformer_depth=(1, 2, 10)),
        "backbone",
    )


def yaml_of(*lines):
    return "model:\n  target: X\n  params:\n" + "".join(f"    {x}\n" for x in lines)


LAUGHS = [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
MERGES = [f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}" for i in range(1, 40)]
YAMLS = {
    "aliases of aliases": (["a0: &a0 x", *LAUGHS], "more than 20,000 values"),
    "merges of merges": (["a0: &a0 {k: v}", *MERGES], "more than 20,000 values"),
    "an alias of itself": (["a: &a [*a]"], "more than 20,000 values"),
    "deep": ([f"a: {'[' * 5000}{']' * 5000}"], "nested too deep"),
    "large": ([f"a: {'x' * (300 << 10)}"], "at most 262,144 are read"),
    "timesteps": (
        ["timesteps: 2000000000"],
        "timesteps must be a number from 2 to 100",
    ),
    "a text": (["timesteps: many"], "timesteps must be a number .* got 'many'"),
    "layers": (
        ["unet_config: {params: {num_res_blocks: 1000000000}}"],
        "num_res_blocks must be a number from 0 to 256",
    ),
    "layers of a list": (
        ["unet_config: {params: {num_res_blocks: [1, .inf]}}"],
        "num_res_blocks must be a number from 0 to 256, got inf",
    ),
    "levels": (
        [f"unet_config: {{params: {{channel_mult: {[1] * 100}}}}}"],
        "channel_mult has 100 values, more than 32",
    ),
    "layers of a text encoder": (
        ["cond_stage_config: {params: {n_layer: 999999}}"],
        "n_layer must be a number from 0 to 256",
    ),
    "resolution": (
        ["first_stage_config: {params: {ddconfig: {resolution: 1.0e+9}}}"],
        "resolution must be a number from 1 to 65536",
    ),
    "a date": (["a: 2020-13-45"], "cannot read .*month"),
    "an object": (["a: !!python/object/apply:os.system [ls]"], "cannot read"),
}


@pytest.mark.parametrize("name", YAMLS)
def test_yaml_that_asks_for_too_much(tmp_path, name):
    lines, message = YAMLS[name]
    (tmp_path / "m.yaml").write_text(yaml_of(*lines))
    with pytest.raises(ConversionError, match=message):
        read_yaml(tmp_path / "m.yaml")


def test_yaml_of_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConversionError, match="pipe is a pipe"):
        read_yaml_file(tmp_path / "pipe")


def test_yaml_with_some_aliases_is_read(tmp_path):
    lines = ["a: &a {ch: 128}", "b: *a", "c: {<<: *a, d: 1e-4, e: 2020-01-02}"]
    (tmp_path / "m.yaml").write_text(yaml_of(*lines))
    params = read_yaml(tmp_path / "m.yaml")["params"]
    assert params["b"] == {"ch": 128} and params["c"]["ch"] == 128


@pytest.mark.parametrize(
    "config, message",
    [
        ({"layers_per_block": 10**9}, "layers_per_block must be a number from 0"),
        ({"block_out_channels": [0, 32]}, "block_out_channels must be a number from 1"),
        ({"transformer_layers_per_block": [[1, 10**6]]}, "transformer_layers_per"),
        ({"sample_size": True}, "sample_size must be a number from 1 to 65536"),
        ({"text_config": {"num_hidden_layers": 1e6}}, "num_hidden_layers must be"),
        ({"num_train_timesteps": 10**12}, "num_train_timesteps must be"),
    ],
)
def test_configs_that_ask_for_too_much(config, message):
    with pytest.raises(ConversionError, match=f"config.json: {message}"):
        check_numbers(config, "config.json")


@pytest.mark.parametrize(
    "config",
    [
        ["x"],
        {"_class_name": "AutoencoderKL"},
        {"_class_name": "AutoencoderKL", "block_out_channels": "x"},
        {"_class_name": "AutoencoderKL", "block_out_channels": []},
        {
            "_class_name": "AutoencoderKL",
            "block_out_channels": [8],
            "down_block_types": 3,
        },
        {"_class_name": ["AutoencoderKL"]},
    ],
)
def test_folders_with_values_of_the_wrong_kind(tmp_path, config):
    write_diffusers(tmp_path / "vae", {"a": np.zeros(1, np.float32)}, config)
    with pytest.raises(ConversionError):
        convert(tmp_path / "vae", tmp_path / "ours", log=lambda line: None)
