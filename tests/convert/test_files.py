"""Files of weights: written and read back; what is damaged or hostile is refused."""

import errno
import os

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

from ldm_jax.errors import ConversionError, Unreachable
from ldm_jax.files import write_json
from ldm_jax.models.text_encoder import TextEncoder
from ldm_jax.weights.files import is_weights, read_weights, write_weights
from ldm_jax.weights.towers import load_tower
from tests.convert.pickled import (
    Build,
    Call,
    Name,
    tensor_of,
    write_legacy,
    write_zip,
)


def _tensors():
    rng = np.random.default_rng(0)
    return {
        "a.weight": rng.standard_normal((3, 2, 3, 3), np.float32),
        "a.transposed": rng.standard_normal((4, 5), np.float32).T,
        "half": rng.standard_normal(7).astype(np.float16),
        "brain": rng.standard_normal((2, 2)).astype(ml_dtypes.bfloat16),
        "count": np.array(5, np.int64),
        "empty": np.zeros((0, 3), np.float32),
        "flags": np.array([True, False]),
    }


def _assert_same(found, expected):
    assert list(found) == list(expected)
    for key, array in expected.items():
        assert found[key].shape == array.shape and found[key].dtype == array.dtype
        assert np.asarray(found[key]).tobytes() == array.tobytes(), key


@pytest.mark.parametrize("name", ["m.safetensors", "m.ckpt"])
def test_what_is_written_is_read_back(tmp_path, name):
    write_weights(tmp_path / name, _tensors(), step=7)
    weights = read_weights(tmp_path / name)
    _assert_same({key: weights.tensors[key] for key in _tensors()}, _tensors())
    assert weights.step == (7 if name.endswith("ckpt") else None)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_safetensors_agree_with_the_library(tmp_path):
    write_weights(tmp_path / "m.safetensors", _tensors())
    found = load_file(tmp_path / "m.safetensors")
    _assert_same({key: found[key] for key in _tensors()}, _tensors())


def test_shards_are_read_through_their_index(tmp_path):
    tensors = _tensors()
    parts = {"one.safetensors": ["a.weight"], "two.safetensors": ["half", "count"]}
    for part, keys in parts.items():
        write_weights(tmp_path / part, {key: tensors[key] for key in keys})
    index = {"weight_map": {key: part for part in parts for key in parts[part]}}
    write_json(tmp_path / "m.safetensors.index.json", index)
    found = read_weights(tmp_path / "m.safetensors.index.json").tensors
    assert sorted(found) == ["a.weight", "count", "half"]


def test_checkpoints_go_through_pytorch_both_ways(tmp_path):
    torch = pytest.importorskip("torch")
    write_weights(tmp_path / "ours.ckpt", _tensors(), step=3)
    saved = torch.load(tmp_path / "ours.ckpt", weights_only=True)
    assert saved["global_step"] == 3
    for key, array in _tensors().items():
        tensor = saved["state_dict"][key]
        assert tensor.is_contiguous() and tuple(tensor.shape) == array.shape
    parameter = torch.nn.Parameter(saved["state_dict"]["a.weight"])
    shared = torch.arange(6.0)
    theirs = {"p": parameter, "view": shared[2:5], "all": shared.reshape(2, 3).T}
    for zipped in (True, False):
        path = tmp_path / f"{zipped}.pt"
        torch.save(theirs, path, _use_new_zipfile_serialization=zipped)
        found = read_weights(path).tensors
        np.testing.assert_array_equal(found["view"], [2, 3, 4])
        np.testing.assert_array_equal(found["all"], [[0, 3], [1, 4], [2, 5]])
        np.testing.assert_array_equal(found["p"], _tensors()["a.weight"])


def test_the_older_format_is_read(tmp_path):
    values = np.arange(6, dtype=np.float32)
    write_legacy(tmp_path / "m.ckpt", {"w": tensor_of((2, 3), (3, 1))}, [("0", values)])
    found = read_weights(tmp_path / "m.ckpt").tensors["w"]
    np.testing.assert_array_equal(found, values.reshape(2, 3))


def test_what_lightning_leaves_in_a_checkpoint_is_passed_over(tmp_path):
    callback = Name("pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint")
    score = Call(
        Name("numpy.core.multiarray", "scalar"),
        Call(Name("numpy", "dtype"), "f4", False, True),
        Call(Name("_codecs", "encode"), "\x00", "latin1"),
    )
    saved = {
        "state_dict": {"w": tensor_of((2, 3), (3, 1))},
        "callbacks": {callback: {"best_model_score": score}},
        "global_step": 12,
    }
    write_zip(tmp_path / "m.ckpt", saved, _0=np.arange(6, dtype=np.float32).tobytes())
    weights = read_weights(tmp_path / "m.ckpt")
    assert weights.step == 12 and list(weights.tensors) == ["w"]


HOSTILE = {
    "os.system": Call(Name("os", "system"), "touch HACKED"),
    "posix.system": Call(Name("posix", "system"), "touch HACKED"),
    "builtins.eval": Call(Name("builtins", "eval"), "open('HACKED', 'w')"),
    "builtins.getattr": Call(Name("builtins", "getattr"), {}, "clear"),
    "subprocess.Popen": Call(Name("subprocess", "Popen"), ["touch", "HACKED"]),
    "torch.hub.load": Call(Name("torch.hub", "load"), "x"),
    "torch.storage._load_from_bytes": Call(
        Name("torch.storage", "_load_from_bytes"), b""
    ),
    "numpy.load": Call(Name("numpy", "load"), "HACKED"),
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("write", [write_zip, write_legacy])
@pytest.mark.parametrize(
    "wrap",
    [lambda x: x, lambda x: {"state_dict": {"w": {"deep": [(x,)]}}}],
    ids=["bare", "nested"],
)
def test_hostile_pickles_are_refused_by_name(tmp_path, monkeypatch, name, write, wrap):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "m.ckpt", wrap(HOSTILE[name]))
    with pytest.raises(ConversionError, match=name.replace(".", r"\.")):
        read_weights(tmp_path / "m.ckpt")
    assert os.listdir(tmp_path) == ["m.ckpt"]


def test_a_pickle_without_a_frame_is_refused_too(tmp_path):
    (tmp_path / "m.ckpt").write_bytes(b"cos\nsystem\n(S'touch HACKED'\ntR.")
    with pytest.raises(ConversionError, match=r"os\.system"):
        read_weights(tmp_path / "m.ckpt")


@pytest.mark.parametrize("target", ["storage", "tensor"])
def test_pickles_do_not_reach_into_what_they_refer_to(tmp_path, target):
    """BUILD would set `size` and let a tensor reach beyond its storage."""
    tensor = tensor_of((2, 3), (3, 1))
    sealed = tensor.arguments[0] if target == "storage" else tensor
    write_zip(tmp_path / "m.ckpt", {"w": tensor, "x": Build(sealed)}, _0=bytes(24))
    with pytest.raises(ConversionError, match="may only refer to"):
        read_weights(tmp_path / "m.ckpt")


@pytest.mark.parametrize(
    "size, stride, offset",
    [((7,), (1,), 0), ((2, 3), (6, 1), 0), ((6,), (1,), 1), ((2,), (-1,), 3)],
)
def test_tensors_stay_inside_their_storage(tmp_path, size, stride, offset):
    tensor = tensor_of(size, stride, offset=offset)
    write_zip(tmp_path / "m.ckpt", {"w": tensor}, _0=bytes(24))
    with pytest.raises(ConversionError, match="beyond its storage"):
        read_weights(tmp_path / "m.ckpt")


def test_records_that_are_too_short_are_named(tmp_path):
    write_zip(tmp_path / "m.ckpt", {"w": tensor_of((2, 3), (3, 1))}, _0=bytes(20))
    with pytest.raises(ConversionError, match="archive/data/0 holds 20 bytes of 24"):
        read_weights(tmp_path / "m.ckpt")


@pytest.mark.parametrize("name", ["m.safetensors", "m.ckpt", "legacy.ckpt"])
@pytest.mark.parametrize("keep", [0.0, 0.1, 0.5, 0.99])
def test_truncated_files_are_named(tmp_path, name, keep):
    path = tmp_path / name
    if name.startswith("legacy"):
        values = np.arange(6, dtype=np.float32)
        write_legacy(path, {"w": tensor_of((2, 3), (3, 1))}, [("0", values)])
    else:
        write_weights(path, _tensors())
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data))])
    with pytest.raises(ConversionError, match=f"cannot read .*{name}"):
        read_weights(path)


def test_other_files_are_named(tmp_path):
    with pytest.raises(ConversionError, match="there is no file"):
        read_weights(tmp_path / "none.ckpt")
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(ConversionError, match="is not a file of weights"):
        read_weights(tmp_path / "a.txt")
    write_zip(tmp_path / "m.ckpt", {"state_dict": {"w": 3}})
    with pytest.raises(ConversionError, match="'w' is not a tensor"):
        read_weights(tmp_path / "m.ckpt")


def test_weights_on_a_disk_that_does_not_answer_are_not_damaged(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    write_weights(path, _tensors())

    def fail(*_):
        raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))

    monkeypatch.setattr("ldm_jax.weights.files.read_part", fail)
    for read in (read_weights, is_weights):
        with pytest.raises(Unreachable, match="a.safetensors: .* does not answer"):
            read(path)
    monkeypatch.setattr(os, "stat", lambda *_, **__: fail())
    with pytest.raises(Unreachable, match="a.safetensors: .* does not answer"):
        load_tower(path, TextEncoder(100, 16, 1))
