"""Files of weights: `.safetensors`, PyTorch's `.ckpt`, and folders of either.

What is read stays on disk until a tensor is used, and what is written goes out tensor
by tensor, so that a model is never in memory twice. `unpickle` reads PyTorch's files;
here they are recognised and written.
"""

import functools
import json
import os
import pathlib
import struct
import zipfile
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from ldm_jax.errors import ConversionError
from ldm_jax.weights.state_dict import StateDict
from ldm_jax.weights.unpickle import PickleError, Tensor, map_file, read_torch

TORCH_SUFFIXES = (".ckpt", ".pt", ".pth", ".bin")


class Weights(NamedTuple):
    """What a file of weights holds.

    Attributes:
      tensors: Dict of key -> array, or Tensor that is read when it is used.
      step: The training step it was saved at; None where the file does not say.
    """

    tensors: dict[str, Any]
    step: int | None = None


# Reading.


def read_weights(path: str | os.PathLike) -> Weights:
    """Reads a file of weights, lazily.

    Args:
      path: `.safetensors`, an index `.safetensors.index.json` of several, or a file of
        `torch.save` (`.ckpt`, `.pt`, `.pth`, `.bin`).

    Returns:
      Weights.

    Raises:
      ConversionError: If it is missing, damaged, hostile or of another kind.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise ConversionError(f"there is no file {path}")
    if path.suffix == ".safetensors":
        return Weights(_read_safetensors(path))
    if path.name.endswith(".safetensors.index.json"):
        parts = sorted(set(read_json(path)["weight_map"].values()))
        tensors = {}
        for part in parts:
            # The name alone: an index does not reach outside of its folder.
            tensors |= _read_safetensors(path.parent / pathlib.Path(part).name)
        return Weights(tensors)
    if path.suffix in TORCH_SUFFIXES:
        return _read_checkpoint(path)
    raise ConversionError(
        f"{path} is not a file of weights: give .safetensors, "
        + ", ".join(TORCH_SUFFIXES)
    )


def find_weights(folder: str | os.PathLike) -> pathlib.Path:
    """Finds the file of weights in a folder of diffusers, transformers or OpenCLIP.

    Args:
      folder: Path of the folder.

    Returns:
      Path that `read_weights` takes.

    Raises:
      ConversionError: If there is none.
    """
    for name in _NAMES:
        for suffix in _NAME_SUFFIXES:
            path = pathlib.Path(folder, f"{name}{suffix}")
            if path.is_file():
                return path
    raise ConversionError(
        f"{folder} holds no weights: there is no {_NAMES[0]}.safetensors, "
        f"{_NAMES[1]}.safetensors or the like"
    )


def _read_safetensors(path):
    """Views of the file's tensors, which are read page by page when they are used."""
    try:
        with safe_open(path, "numpy"):
            pass  # The library checks the header and the file's size against it.
        with open(path, "rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        return {key: _view(path, 8 + length, entry) for key, entry in header.items()}
    except (SafetensorError, OSError) as error:
        raise ConversionError(
            f"cannot read {path}: truncated or not a safetensors file ({error})"
        ) from error


def _view(path, start, entry):
    if entry["dtype"] not in _SAFETENSORS:
        raise SafetensorError(f"numbers of the type {entry['dtype']} are not supported")
    dtype = np.dtype(_SAFETENSORS[entry["dtype"]])
    first, last = entry["data_offsets"]
    size = (last - first) // dtype.itemsize
    load = functools.partial(map_file, path, start + first, dtype, size)
    return Tensor(entry["shape"], dtype, lambda: load().reshape(entry["shape"]))


def _read_checkpoint(path):
    try:
        saved = read_torch(path)
    except PickleError as error:
        raise ConversionError(str(error)) from error
    step, tensors = None, saved
    if isinstance(saved, dict) and isinstance(saved.get("state_dict"), dict):
        tensors, step = saved["state_dict"], saved.get("global_step")
    if not isinstance(tensors, dict) or not tensors:
        raise ConversionError(f"{path} holds no state dict")
    wrong = [key for key, value in tensors.items() if not isinstance(value, Tensor)]
    if wrong:
        raise ConversionError(
            f"{path} holds no state dict: {wrong[0]!r} is not a tensor"
        )
    return Weights(tensors, step if type(step) is int else None)


# Writing.


def write_weights(
    path: str | os.PathLike, tensors: StateDict, step: int | None = None
) -> None:
    """Writes a file of weights; it appears under its name once it is whole.

    Args:
      path: File ending in `.safetensors`, or for PyTorch in `.ckpt`, `.pt`, `.pth` or
        `.bin`.
      tensors: Key -> array.
      step: For `.ckpt`, the training step to record.

    Raises:
      ConversionError: If the suffix is none of these.
    """
    path = pathlib.Path(path)
    if path.suffix not in (".safetensors", *TORCH_SUFFIXES):
        raise ConversionError(
            f"{path} has no known suffix: use .safetensors or "
            + ", ".join(TORCH_SUFFIXES)
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    if path.suffix == ".safetensors":
        _write_safetensors(temporary, tensors)
    else:
        _write_checkpoint(temporary, tensors, step)
    os.replace(temporary, path)


def _bytes(array):
    """The bytes of an array in C order."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _size(array):
    return int(np.prod(array.shape, dtype=np.int64)) * array.dtype.itemsize


def _write_safetensors(path, tensors):
    names = {np.dtype(dtype): name for name, dtype in _SAFETENSORS.items()}
    header, end = {}, 0
    for key, array in tensors.items():
        start, end = end, end + _size(array)
        header[key] = {
            "dtype": names[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for array in tensors.values():
            file.write(_bytes(array))


def _write_checkpoint(path, tensors, step):
    """PyTorch's zip format, byte for byte the same for the same weights."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:

        def record(name, *parts, size=0):
            info = zipfile.ZipInfo(f"archive/{name}")
            info.file_size = size
            with archive.open(info, "w") as file:
                for part in parts:
                    file.write(part)

        record("data.pkl", _pickle(tensors, step))
        record("byteorder", b"little")
        for index, array in enumerate(tensors.values()):
            record(f"data/{index}", _bytes(array), size=_size(array))
        record("version", b"3\n")


def _pickle(tensors, step):
    """The pickle of {"state_dict": tensors, "global_step": step}, opcode by opcode."""
    out = [b"\x80\x02}(", _text("state_dict"), b"}("]
    for index, (key, array) in enumerate(tensors.items()):
        out += [_text(key), _pickled_tensor(str(index), array)]
    out.append(b"u")
    if step is not None:
        out += [_text("global_step"), _number(step)]
    return b"".join([*out, b"u."])


def _pickled_tensor(storage, array):
    """A call of torch._utils._rebuild_tensor_v2 on a storage of its own."""
    strides = np.cumprod((1, *array.shape[:0:-1]), dtype=np.int64)[::-1]
    strides = strides if array.shape else ()
    return b"".join(
        [
            b"ctorch._utils\n_rebuild_tensor_v2\n((",
            _text("storage"),
            f"ctorch\n{_STORAGE_NAMES[array.dtype]}\n".encode(),
            _text(storage),
            _text("cpu"),
            _number(int(np.prod(array.shape, dtype=np.int64))),
            b"tQK\x00",
            _numbers(array.shape),
            _numbers(strides),
            b"\x89ccollections\nOrderedDict\n)RtR",
        ]
    )


def _text(text):
    data = text.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def _number(value):
    value = int(value)
    if value < 2**31:
        return b"J" + struct.pack("<i", value)
    return b"\x8a\x08" + struct.pack("<q", value)


def _numbers(values):
    return b"(" + b"".join(map(_number, values)) + b"t"


# Configs beside weights.


def read_json(path: str | os.PathLike) -> Any:
    """Reads a JSON file.

    Args:
      path: The file.

    Returns:
      What it holds.

    Raises:
      ConversionError: If it is missing or not JSON.
    """
    try:
        return json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConversionError(f"cannot read {path}: {error}") from error


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Writes a JSON file, indented, and the folders that it lies in.

    Args:
      path: The file.
      value: What it is to hold.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


# Names that weights have in folders of diffusers, transformers and OpenCLIP.
_NAMES = (
    "diffusion_pytorch_model",
    "model",
    "pytorch_model",
    "open_clip_model",
    "open_clip_pytorch_model",
)
_NAME_SUFFIXES = (".safetensors", ".safetensors.index.json", ".bin")

# Types of numbers by their names in safetensors.
_SAFETENSORS = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}

# Names of PyTorch's storages by the type of their numbers.
_STORAGE_NAMES = {
    np.dtype(np.float64): "DoubleStorage",
    np.dtype(np.float32): "FloatStorage",
    np.dtype(np.float16): "HalfStorage",
    np.dtype(ml_dtypes.bfloat16): "BFloat16Storage",
    np.dtype(np.int64): "LongStorage",
    np.dtype(np.int32): "IntStorage",
    np.dtype(np.int16): "ShortStorage",
    np.dtype(np.int8): "CharStorage",
    np.dtype(np.uint8): "ByteStorage",
    np.dtype(np.bool_): "BoolStorage",
}
