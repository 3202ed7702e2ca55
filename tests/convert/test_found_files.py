"""Files of weights as people have them: renamed, wrapped, in variants and shards."""

import zipfile

import numpy as np
import pytest

from ldm_jax.convert.diffusers import read as diffusers_read
from ldm_jax.errors import ConversionError
from ldm_jax.files import write_json
from ldm_jax.weights import files
from ldm_jax.weights.files import read_weights, write_weights
from ldm_jax.weights.folders import find_weights, variants
from tests.convert.pickled import (
    Build,
    Call,
    Name,
    tensor_of,
    write_legacy,
    write_zip,
)

TENSORS = {"a.weight": np.arange(6, dtype=np.float32).reshape(2, 3)}


def _saved(path, obj, write=write_zip):
    values = np.arange(6, dtype=np.float32)
    if write is write_zip:
        write_zip(path, obj, _0=values.tobytes())
    else:
        write_legacy(path, obj, [("0", values)])


@pytest.mark.parametrize("name", ["m.ckpt", "m.pt", "m.bin", "m", "m.pth.tar"])
@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_a_file_is_what_it_holds(tmp_path, name, suffix):
    write_weights(tmp_path / f"real{suffix}", TENSORS)
    (tmp_path / f"real{suffix}").rename(tmp_path / name)
    assert files.is_weights(tmp_path / name)
    found = read_weights(tmp_path / name).tensors
    np.testing.assert_array_equal(found["a.weight"], TENSORS["a.weight"])


@pytest.mark.parametrize(
    "data, message",
    [
        (b"version https://git-lfs.github.com/spec/v1\noid x", "a pointer of Git LFS"),
        (b"\n<!DOCTYPE html><html>Access denied", "a web page"),
        (b'{"error": "not found"}', "JSON"),
        (b"GGUF\x03\x00\x00\x00", "a GGUF file"),
        (b"\x89HDF\r\n", "an HDF5 file"),
        (b"x" * 257 + b"ustar", "a tar archive"),
        (b"\x1f\x8b\x08", "compressed by gzip"),
    ],
)
@pytest.mark.parametrize("name", ["m.safetensors", "m.ckpt"])
def test_other_files_are_called_what_they_are(tmp_path, data, message, name):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ConversionError, match=f"cannot read .*{name}: it is {message}"):
        read_weights(tmp_path / name)


def test_an_npz_is_no_checkpoint(tmp_path):
    with open(tmp_path / "m.ckpt", "wb") as file:
        np.savez(file, a=np.zeros(3))
    with pytest.raises(ConversionError, match="holds no data.pkl"):
        read_weights(tmp_path / "m.ckpt")


WRAPPERS = {
    "twice": lambda state: {"state_dict": {"state_dict": state}, "global_step": 7},
    "a model's": lambda state: {"model": state, "optimizer": {}, "global_step": 7},
    "parallel": lambda state: {
        "state_dict": {f"module.{key}": value for key, value in state.items()},
        "global_step": 7,
    },
    "compiled": lambda state: {
        "state_dict": {f"_orig_mod.{key}": value for key, value in state.items()},
        "global_step": 7,
    },
    "parallel twice, compiled, inside": lambda state: {
        "state_dict": {
            f"module.module.{key.replace('.', '._orig_mod.', 1)}": value
            for key, value in state.items()
        },
        "global_step": 7,
    },
}


@pytest.mark.parametrize("name", WRAPPERS)
@pytest.mark.parametrize("write", [write_zip, write_legacy])
def test_state_dicts_are_unwrapped(tmp_path, name, write):
    state = {"model.a.weight": tensor_of((2, 3), (3, 1))}
    _saved(tmp_path / "m.ckpt", WRAPPERS[name](state), write)
    weights = read_weights(tmp_path / "m.ckpt")
    assert list(weights.tensors) == ["model.a.weight"] and weights.step == 7


def test_a_prefix_of_some_keys_stays(tmp_path):
    tensors = {"module.a": np.zeros(2, "f4"), "b": np.zeros(2, "f4")}
    write_weights(tmp_path / "m.safetensors", tensors)
    assert read_weights(tmp_path / "m.safetensors").tensors.keys() == tensors.keys()


VALUES = {
    "pathlib.WindowsPath": ("C:\\", "runs"),
    "pathlib._local.PosixPath": ("/", "runs"),
    "pathlib._local.WindowsPath": ("C:\\",),
    "datetime.datetime": (b"\x07\xe6",),
    "uuid.UUID": (),
    "collections.defaultdict": (),
    "collections.Counter": ({},),
    "types.SimpleNamespace": (),
    "numpy.float64": (),
    "torch.bfloat16": (),
    "torch.optim.adamw.AdamW": (),
    "easydict.EasyDict": (),
    "omegaconf.dictconfig.DictConfig": (),
}


@pytest.mark.parametrize("name", VALUES)
def test_records_of_plain_values_are_passed_over(tmp_path, name):
    module, _, last = name.rpartition(".")
    record = Call(Name(module, last), *VALUES[name])
    saved = {"state_dict": {"w": tensor_of((2, 3), (3, 1))}, "hyper": [record]}
    _saved(tmp_path / "m.ckpt", saved)
    assert list(read_weights(tmp_path / "m.ckpt").tensors) == ["w"]


@pytest.mark.parametrize(
    "name, warned",
    [
        ("os.system", True),
        ("shutil.rmtree", True),
        ("operator.attrgetter", True),
        ("functools.partial", True),
        ("torch.load", True),
        ("numpy.testing._private.utils.runstring", True),
        ("somebody.models.Thing", False),
        ("__main__.Options", False),
    ],
)
def test_the_warning_is_for_what_could_run_code(tmp_path, name, warned):
    module, _, last = name.rpartition(".")
    _saved(tmp_path / "m.ckpt", {"state_dict": {}, "x": Call(Name(module, last))})
    with pytest.raises(ConversionError, match="nothing of it was run") as raised:
        read_weights(tmp_path / "m.ckpt")
    assert name in str(raised.value)
    assert ("Do not trust" in str(raised.value)) == warned


def _touch(folder, *names):
    for name in names:
        write_weights(folder / "x.safetensors", TENSORS)
        (folder / "x.safetensors").rename(folder / name)


def test_variants_of_a_folder(tmp_path):
    _touch(
        tmp_path,
        "diffusion_pytorch_model.fp16.bin",
        "diffusion_pytorch_model.fp16.safetensors",
        "diffusion_pytorch_model.non_ema.safetensors",
        "diffusion_pytorch_model.other-00001-of-00002.safetensors",
    )
    lines = []
    assert list(variants(tmp_path)) == ["fp16", "non_ema"]
    found = find_weights(tmp_path, log=lines.append)
    assert found.name == "diffusion_pytorch_model.fp16.safetensors"
    assert len(lines) == 1 and "fp16, non_ema" in lines[0] and "--variant" in lines[0]
    found = find_weights(tmp_path, "non_ema", lines.append)
    assert found.name == "diffusion_pytorch_model.non_ema.safetensors"
    with pytest.raises(ConversionError, match="no variant 'bf16' but fp16, non_ema"):
        find_weights(tmp_path, "bf16")
    _touch(tmp_path, "diffusion_pytorch_model.safetensors")
    assert find_weights(tmp_path).name == "diffusion_pytorch_model.safetensors"
    assert len(lines) == 1


@pytest.mark.parametrize(
    "index, part",
    [
        ("model.safetensors.index.json", "model-0000{}-of-00002.safetensors"),
        ("model.safetensors.index.fp16.json", "model.fp16-0000{}-of-00002.safetensors"),
        ("pytorch_model.bin.index.json", "pytorch_model-0000{}-of-00002.bin"),
    ],
)
def test_shards(tmp_path, index, part):
    parts = {part.format(i): f"{i}.weight" for i in (1, 2)}
    for name, key in parts.items():
        write_weights(tmp_path / name, {key: np.full(2, 3, np.float32)})
    listed = {key: name for name, key in parts.items()}
    write_json(tmp_path / index, {"metadata": {}, "weight_map": listed})
    found = find_weights(tmp_path)
    assert found.name == index
    assert list(read_weights(found).tensors) == ["1.weight", "2.weight"]
    write_json(tmp_path / index, {"weight_map": listed | {"3": part.format(1)}})
    with pytest.raises(ConversionError, match="1 tensors that its shards lack"):
        read_weights(found)
    (tmp_path / part.format(2)).unlink()
    with pytest.raises(ConversionError, match="there is no file .*2-of-00002"):
        read_weights(found)
    write_json(tmp_path / index, ["x"])
    with pytest.raises(ConversionError, match="has no weight_map"):
        read_weights(found)


def test_shards_are_files_of_weights_and_read_once(tmp_path, monkeypatch):
    write_weights(tmp_path / "a.safetensors", TENSORS | {"b": np.zeros(1, "f4")})
    index = tmp_path / "model.safetensors.index.json"
    write_json(index, {"weight_map": {"a.weight": index.name}})
    with pytest.raises(ConversionError, match="would be an index again"):
        read_weights(index)
    paths = []
    read_file = files._read_file
    monkeypatch.setattr(
        files, "_read_file", lambda path: (paths.append(path), read_file(path))[1]
    )
    listed = {"a.weight": "a.safetensors", "b": "x/a.safetensors"}
    write_json(index, {"weight_map": listed})
    assert read_weights(index).tensors.keys() == listed.keys()
    assert paths == [tmp_path / "a.safetensors"]


def test_a_variant_that_some_networks_of_a_pipeline_lack(tmp_path):
    parts = {name: tmp_path / name for name in ("unet", "vae")}
    for folder in parts.values():
        folder.mkdir()
        _touch(folder, "diffusion_pytorch_model.safetensors")
    name = "diffusion_pytorch_model.fp16.safetensors"
    _touch(parts["unet"], name)
    lines = []
    found = diffusers_read._files(parts, "fp16", lines.append)
    assert found["unet"].name == name
    assert found["vae"].name == "diffusion_pytorch_model.safetensors"
    assert lines == ["vae: has no variant fp16, so the usual one is taken"]
    with pytest.raises(ConversionError, match="no variant 'bf16'"):
        diffusers_read._files(parts, "bf16", lines.append)


def test_tensors_of_a_torchscript_program_are_read_and_its_code_is_not(tmp_path):
    def module(**attributes):
        kind = Name("__torch__.torch.nn.modules.linear.___torch_mangle_5", "Linear")
        training = {"training": True, "_is_full_backward_hook": None}
        sizes = Call(Name("torch.jit._pickle", "build_intlist"), [1, 2])
        return Build(Call(kind), training | {"sizes": sizes} | attributes)

    weight = tensor_of((6,), (1,))
    program = module(visual=module(conv1=module(weight=weight)), scale=weight)
    write_zip(tmp_path / "ViT-L-14.pt", program, _0=np.arange(6, dtype="<f4").tobytes())
    tensors = read_weights(tmp_path / "ViT-L-14.pt").tensors
    assert tensors.keys() == {"visual.conv1.weight", "scale"}
    np.testing.assert_array_equal(tensors["scale"], np.arange(6))


def test_a_program_whose_modules_hold_one_another_is_refused(tmp_path):
    def level(i):
        parts = b"".join(
            b"X\x01\0\0\0" + name + b"h" + bytes([i]) for name in (b"a", b"b")
        )
        made = b"c__torch__\nM\n)\x81}(" + parts * (i > 0) + b"ub"
        return made + b"q" + bytes([i + 1])

    data = b"\x80\x02" + b"".join(map(level, range(30))) + b"."
    with zipfile.ZipFile(tmp_path / "m.pt", "w") as archive:
        archive.writestr("archive/data.pkl", data)
    with pytest.raises(ConversionError, match="nest deeper"):
        read_weights(tmp_path / "m.pt")
