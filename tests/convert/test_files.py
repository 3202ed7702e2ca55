"""Files of weights: written and read back; what is damaged or hostile is refused."""

import collections
import io
import os
import pickle
import struct
import zipfile

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

from ldm_jax.errors import ConversionError
from ldm_jax.weights import files, unpickle
from ldm_jax.weights.files import read_weights, write_weights


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
    files.write_json(tmp_path / "m.safetensors.index.json", index)
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


class _Name:
    """Pickles as a call of module.name, without that being imported."""

    def __init__(self, module, name):
        self.module, self.name = module, name


class _Storage:
    """Pickles as a reference to a storage."""

    def __init__(self, key, size):
        self.pid = ("storage", _Name("torch", "FloatStorage"), key, "cpu", size)


class _Call:
    """Pickles as the call of a name."""

    def __init__(self, name, *arguments):
        self.name, self.arguments = name, arguments

    def __reduce__(self):
        return self.name, self.arguments


class _Build:
    """Pickles as an attempt to set an object's attributes."""

    def __init__(self, target):
        self.target = target


class _Pickler(pickle._Pickler):
    """Python's own pickler, which the stand-ins above can steer."""

    def persistent_id(self, obj):
        return obj.pid if isinstance(obj, _Storage) else None

    def save(self, obj, save_persistent_id=True):
        if isinstance(obj, _Name):
            self.write(f"c{obj.module}\n{obj.name}\n".encode())
        elif isinstance(obj, _Call):
            self.save(obj.name)
            self.save(obj.arguments)
            self.write(pickle.REDUCE)
        elif isinstance(obj, _Build):
            self.save(obj.target)
            self.save({"size": 1 << 40})
            self.write(pickle.BUILD)
        else:
            super().save(obj, save_persistent_id)


def _dumps(obj):
    out = io.BytesIO()
    _Pickler(out, 2).dump(obj)
    return out.getvalue()


def _zip(path, obj, **records):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", _dumps(obj))
        for name, data in records.items():
            archive.writestr(f"archive/data/{name.strip('_')}", data)


def _legacy(path, obj, storages=()):
    with open(path, "wb") as file:
        for header in (unpickle._MAGIC, unpickle._PROTOCOL, {"little_endian": True}):
            file.write(pickle.dumps(header, 2))
        # As PyTorch wrote them: storage references with a sixth item.
        file.write(_dumps(obj))
        file.write(pickle.dumps([key for key, _ in storages], 2))
        for _, values in storages:
            file.write(struct.pack("<q", len(values)) + values.tobytes())


def _tensor(size, stride, key="0", numbers=6, offset=0):
    storage = _Storage(key, numbers)
    arguments = storage, offset, size, stride, False, collections.OrderedDict()
    return _Call(_Name("torch._utils", "_rebuild_tensor_v2"), *arguments)


def test_the_older_format_is_read(tmp_path):
    values = np.arange(6, dtype=np.float32)
    _legacy(tmp_path / "m.ckpt", {"w": _tensor((2, 3), (3, 1))}, [("0", values)])
    found = read_weights(tmp_path / "m.ckpt").tensors["w"]
    np.testing.assert_array_equal(found, values.reshape(2, 3))


def test_what_lightning_leaves_in_a_checkpoint_is_passed_over(tmp_path):
    callback = _Name("pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint")
    score = _Call(
        _Name("numpy.core.multiarray", "scalar"),
        _Call(_Name("numpy", "dtype"), "f4", False, True),
        _Call(_Name("_codecs", "encode"), "\x00", "latin1"),
    )
    saved = {
        "state_dict": {"w": _tensor((2, 3), (3, 1))},
        "callbacks": {callback: {"best_model_score": score}},
        "global_step": 12,
    }
    _zip(tmp_path / "m.ckpt", saved, _0=np.arange(6, dtype=np.float32).tobytes())
    weights = read_weights(tmp_path / "m.ckpt")
    assert weights.step == 12 and list(weights.tensors) == ["w"]


HOSTILE = {
    "os.system": _Call(_Name("os", "system"), "touch HACKED"),
    "posix.system": _Call(_Name("posix", "system"), "touch HACKED"),
    "builtins.eval": _Call(_Name("builtins", "eval"), "open('HACKED', 'w')"),
    "builtins.getattr": _Call(_Name("builtins", "getattr"), {}, "clear"),
    "subprocess.Popen": _Call(_Name("subprocess", "Popen"), ["touch", "HACKED"]),
    "torch.hub.load": _Call(_Name("torch.hub", "load"), "x"),
    "torch.storage._load_from_bytes": _Call(
        _Name("torch.storage", "_load_from_bytes"), b""
    ),
    "numpy.load": _Call(_Name("numpy", "load"), "HACKED"),
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("write", [_zip, _legacy])
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
    tensor = _tensor((2, 3), (3, 1))
    sealed = tensor.arguments[0] if target == "storage" else tensor
    _zip(tmp_path / "m.ckpt", {"w": tensor, "x": _Build(sealed)}, _0=bytes(24))
    with pytest.raises(ConversionError, match="may only refer to"):
        read_weights(tmp_path / "m.ckpt")


@pytest.mark.parametrize(
    "size, stride, offset",
    [((7,), (1,), 0), ((2, 3), (6, 1), 0), ((6,), (1,), 1), ((2,), (-1,), 3)],
)
def test_tensors_stay_inside_their_storage(tmp_path, size, stride, offset):
    tensor = _tensor(size, stride, offset=offset)
    _zip(tmp_path / "m.ckpt", {"w": tensor}, _0=bytes(24))
    with pytest.raises(ConversionError, match="beyond its storage"):
        read_weights(tmp_path / "m.ckpt")


def test_records_that_are_too_short_are_named(tmp_path):
    _zip(tmp_path / "m.ckpt", {"w": _tensor((2, 3), (3, 1))}, _0=bytes(20))
    with pytest.raises(ConversionError, match="archive/data/0 holds 20 bytes of 24"):
        read_weights(tmp_path / "m.ckpt")


@pytest.mark.parametrize("name", ["m.safetensors", "m.ckpt", "legacy.ckpt"])
@pytest.mark.parametrize("keep", [0.0, 0.1, 0.5, 0.99])
def test_truncated_files_are_named(tmp_path, name, keep):
    path = tmp_path / name
    if name.startswith("legacy"):
        values = np.arange(6, dtype=np.float32)
        _legacy(path, {"w": _tensor((2, 3), (3, 1))}, [("0", values)])
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
    _zip(tmp_path / "m.ckpt", {"state_dict": {"w": 3}})
    with pytest.raises(ConversionError, match="'w' is not a tensor"):
        read_weights(tmp_path / "m.ckpt")
