"""Files of weights: `.safetensors`, PyTorch's `.ckpt`, and folders of either.

Tensors are read when they are used, and written one by one, so that a model is never in
memory twice. `unpickle` reads PyTorch's files; this module recognises and writes them.
"""

import functools
import json
import math
import os
import pathlib
import struct
import zipfile
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from ldm_jax.errors import ConversionError
from ldm_jax.files import replacing
from ldm_jax.reading import answering, parse_json, read_file
from ldm_jax.store import as_path, is_file, local_copy, raise_if_silent, read_part
from ldm_jax.weights.pickles import PickleError, describe
from ldm_jax.weights.state_dict import StateDict
from ldm_jax.weights.unpickle import Tensor, check_memory, map_file, read_torch

TORCH_SUFFIXES = (".ckpt", ".pt", ".pth", ".bin")

# The largest published files have headers and indices of less than a megabyte; parsed
# they take about ten times as much memory.
_MAX_HEADER = _MAX_JSON = 32 << 20
# Whole models have some thousands, with their averages.
_MAX_TENSORS = 50_000


class Weights(NamedTuple):
    """The contents of a weights file.

    Attributes:
      tensors: Dict of key -> array, or Tensor that is read when it is used.
      step: The training step it was saved at; None if the file does not record it.
    """

    tensors: dict[str, Any]
    step: int | None = None


# Reading.


def read_weights(path: str | os.PathLike) -> Weights:
    """Reads a weights file lazily; its format is recognised by content, not by name.

    Args:
      path: A safetensors file, a file of `torch.save`, or an index
        (`.safetensors.index.json`, `.bin.index.json`) of several.

    Returns:
      Weights.

    Raises:
      ConversionError: If it is missing, damaged, malicious or of another kind; caused
        by an OSError if it cannot be read.
      Unreachable: If the storage does not respond.
    """
    path = as_path(path)
    with answering(path):
        if not is_file(path):
            raise ConversionError(f"there is no file {path}")
        is_index = path.suffix == ".json"
        weights = _read_index(path) if is_index else _read_file(local_copy(path))
    if len(weights.tensors) > _MAX_TENSORS:
        raise ConversionError(
            f"{path} holds {len(weights.tensors):,} tensors, more than "
            f"{_MAX_TENSORS:,}, which no model has"
        )
    return weights


def _read_file(path):
    try:
        kind = _kind_of(path)
    except OSError as error:
        raise ConversionError(
            f"cannot read {path}: {error.strerror or error}"
        ) from error
    if kind == "safetensors":
        return Weights(_unprefixed(_read_safetensors(path)))
    if kind == "torch":
        return _read_checkpoint(path)
    if kind is not None:
        raise ConversionError(
            f"cannot read {path}: it is {kind}, not a file of weights"
        )
    raise ConversionError(
        f"{path} is not a file of weights: give .safetensors, "
        + ", ".join(TORCH_SUFFIXES)
    )


def is_weights(path: str | os.PathLike) -> bool:
    """Whether a file is a weights file, or is named like one.

    Args:
      path: Any path.

    Returns:
      Whether `read_weights` can read it, or explain what it is.
    """
    path = as_path(path)
    with answering(path):
        return is_file(path) and path.suffix != ".json" and _kind_of(path) is not None


def _kind_of(path):
    """The kind: "safetensors", "torch", another one in words, or None if unknown."""
    start = read_part(path, 0, 512)
    if start[8:9] == b"{" and struct.unpack("<Q", start[:8])[0] < 1 << 40:
        return "safetensors"
    for mark, kind in _MARKS.items():
        if start.lstrip().startswith(mark):
            return kind
    if start[257:262] == b"ustar":
        return "a tar archive, or a file of PyTorch before 0.1"
    named = {".safetensors": "safetensors"} | dict.fromkeys(TORCH_SUFFIXES, "torch")
    return named.get(path.suffix)


def _read_index(path):
    """Reads the shards that an index lists."""
    index = read_json(path)
    found = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(found, dict) or not all(
        isinstance(v, str) for v in found.values()
    ):
        raise ConversionError(f"{path} is no index of shards: it has no weight_map")
    tensors = {}
    # Only the name: an index must not refer to files outside its folder.
    for name in sorted({pathlib.PurePath(part).name for part in found.values()}):
        part = path.parent / name
        if part.suffix == ".json":
            raise ConversionError(
                f"{path} lists the shard {name}, which would be an index again: its "
                "shards must be files of weights; download it again"
            )
        tensors |= read_weights(part).tensors
    missing = [key for key in found if key not in tensors]
    if missing:
        raise ConversionError(
            f"{path} lists {len(missing)} tensors that its shards lack, such as "
            f"{missing[0]}: download {found[missing[0]]} again"
        )
    return Weights(tensors)


def _read_safetensors(path):
    """Views of the file's tensors, memory-mapped and read when they are used."""
    try:
        with open(path, "rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > _MAX_HEADER:
                raise SafetensorError(
                    f"its header has {length:,} bytes, more than {_MAX_HEADER:,}"
                )
        with safe_open(path, "numpy"):
            pass  # The library checks the header, and the file's size against it.
        with open(path, "rb") as file:
            file.seek(8)
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        return {key: _view(path, 8 + length, entry) for key, entry in header.items()}
    except (SafetensorError, OSError, ValueError, struct.error) as error:
        raise_if_silent(path, error)
        raise ConversionError(
            f"cannot read {path}: truncated or not a safetensors file ({error})"
        ) from error


def _view(path, start, entry):
    if entry["dtype"] not in _SAFETENSORS:
        raise SafetensorError(f"numbers of the type {entry['dtype']} are not supported")
    dtype = np.dtype(_SAFETENSORS[entry["dtype"]])
    first, last = entry["data_offsets"]
    size = (last - first) // dtype.itemsize
    if len(entry["shape"]) > 32:
        raise SafetensorError(f"a tensor has {len(entry['shape'])} dimensions")
    load = functools.partial(map_file, path, start + first, dtype, size)
    return Tensor(entry["shape"], dtype, lambda: load().reshape(entry["shape"]))


def _read_checkpoint(path):
    try:
        saved = read_torch(path)
    except PickleError as error:
        raise ConversionError(str(error)) from error
    tensors, step = _unwrapped(saved)
    if not isinstance(tensors, dict) or not tensors:
        raise ConversionError(f"{path} holds no state dict")
    for key, value in tensors.items():
        if not isinstance(value, Tensor) or not isinstance(key, str):
            raise ConversionError(
                f"{path} holds no state dict: {describe(key)} is not a tensor"
            )
    try:
        # Each tensor is bounded by its storage, but all may be views of the same one.
        check_memory("tensors", sum(map(_size, tensors.values())), path)
    except PickleError as error:
        raise ConversionError(f"cannot read {path}: {error}") from error
    return Weights(_unprefixed(tensors), step)


def _unwrapped(saved):
    """(state dict, step) of a saved object, unwrapped from enclosing dicts."""
    step = None
    for _ in range(_MAX_WRAPPERS):
        if not isinstance(saved, dict):
            break
        found = saved.get("global_step")
        step = found if type(found) is int else step
        bare = any(isinstance(value, Tensor) for value in saved.values())
        names = _WRAPPERS[:1] if bare else _WRAPPERS
        inner = [saved[name] for name in names if isinstance(saved.get(name), dict)]
        if not inner:
            break
        saved = inner[0]
    return saved, step


def _unprefixed(tensors):
    """Removes the parts of names that data parallelism and compilation add."""
    for mark in _PREFIXES:
        while tensors and all(key.startswith(mark) for key in tensors):
            tensors = {key[len(mark) :]: value for key, value in tensors.items()}
    if any(_COMPILED in key for key in tensors):
        tensors = {key.replace(_COMPILED, "."): value for key, value in tensors.items()}
    return tensors


# Writing.


def write_weights(
    path: str | os.PathLike, tensors: StateDict, step: int | None = None
) -> None:
    """Writes a weights file atomically.

    Args:
      path: File ending in `.safetensors`, or for PyTorch in `.ckpt`, `.pt`, `.pth` or
        `.bin`.
      tensors: Key -> array.
      step: For `.ckpt`, the training step to record.

    Raises:
      ConversionError: If the suffix is not one of these.
      DiskError: If it cannot be written.
    """
    path = as_path(path)
    if path.suffix not in (".safetensors", *TORCH_SUFFIXES):
        raise ConversionError(
            f"{path} has no known suffix: use .safetensors or "
            + ", ".join(TORCH_SUFFIXES)
        )
    with replacing(path) as temporary:
        if path.suffix == ".safetensors":
            _write_safetensors(temporary, tensors)
        else:
            _write_checkpoint(temporary, tensors, step)


def _bytes(array):
    """The bytes of an array in C order."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _size(array):
    return math.prod(array.shape) * array.dtype.itemsize


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
    """Writes PyTorch's zip format, with the same bytes for the same weights."""
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
    """A call of torch._utils._rebuild_tensor_v2 with a storage of its own."""
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
      Its contents.

    Raises:
      ConversionError: If it is missing, too large or not JSON.
    """
    try:
        return parse_json(read_file(path, _MAX_JSON))
    except (OSError, ValueError) as error:
        raise_if_silent(path, error)
        raise ConversionError(f"cannot read {path}: {error}") from error


# First bytes of files other than safetensors -> their kind.
_MARKS = {
    b"PK\x03\x04": "torch",
    b"\x80": "torch",
    b"version https://git-lfs": "a pointer of Git LFS (get the file: git lfs pull)",
    b"<": "a web page",
    b"{": "JSON",
    b"GGUF": "a GGUF file",
    b"\x89HDF": "an HDF5 file",
    b"\x93NUMPY": "an array of NumPy",
    b"\x1f\x8b": "compressed by gzip (unpack it first)",
    b"7z\xbc\xaf": "compressed by 7-Zip (unpack it first)",
    b"Rar!": "compressed by RAR (unpack it first)",
}

# Keys under which training programs save the state dict, and the maximum nesting.
_WRAPPERS = ("state_dict", "model_state_dict", "model", "module")
_MAX_WRAPPERS = 8
_PREFIXES = ("module.", "_orig_mod.", "module.")
_COMPILED = "._orig_mod."

# Name of a dtype in safetensors -> NumPy type.
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

# NumPy's names of these types.
NUMBER_TYPES = tuple(str(np.dtype(dtype)) for dtype in _SAFETENSORS.values())

# NumPy type -> name of PyTorch's storage class.
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
