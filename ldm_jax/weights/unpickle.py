"""Reads PyTorch's files without PyTorch, and without running what a pickle carries.

A pickle names functions and has them called.  Here a name stands for one of three
things: a tensor's parts, which are rebuilt as NumPy arrays; a class of the libraries
that training writes into checkpoints (a Lightning callback, say), which becomes an
inert stand-in; anything else is refused by its name.  Nothing is ever imported.
"""

import collections
import os
import pickle
import struct
import zipfile
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import numpy.typing as npt

from ldm_jax.annotations import Shaped


class PickleError(ValueError):
    """A file that is damaged, hostile or not PyTorch's; the message is one line."""


class _Sealed:
    """What a pickle may refer to but not reach into."""

    def __setstate__(self, state):
        raise PickleError("its pickle alters an object that it may only refer to")


class Tensor(_Sealed):
    """An array that is looked up when it is asked for: `np.asarray(tensor)`.

    Attributes:
      shape: Tuple of sizes.
      dtype: NumPy type.
    """

    def __init__(
        self, shape: Sequence[int], dtype: npt.DTypeLike, load: Callable[[], Any]
    ) -> None:
        """Promises an array.

        Args:
          shape: Its sizes.
          dtype: Its type.
          load: Called without arguments to get it.
        """
        self.shape, self.dtype, self._load = tuple(shape), np.dtype(dtype), load

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self._load(), dtype)


def read_torch(path: str | os.PathLike) -> Any:
    """Reads a file that `torch.save` wrote, in its zip or its older format.

    Args:
      path: The file.

    Returns:
      What was saved: containers of numbers, strings and Tensors.

    Raises:
      PickleError: If it is truncated, damaged, or names what is not known as harmless.
    """
    try:
        if zipfile.is_zipfile(path):
            return _read_zip(path)
        with open(path, "rb") as file:
            if file.read(4) == b"PK\x03\x04":
                raise PickleError("it is truncated: the zip's directory is missing")
            file.seek(0)
            return _read_legacy(file, path)
    except PickleError as error:
        raise PickleError(f"cannot read {path}: {error}") from error
    except OSError as error:
        raise PickleError(f"cannot read {path}: {error.strerror or error}") from error
    except Exception as error:  # A damaged pickle raises whatever its bytes stumble on.
        raise PickleError(
            f"cannot read {path}: it is truncated or not a file of torch.save "
            f"({type(error).__name__}: {error})"
        ) from error


class _Storage(_Sealed):
    """The numbers behind tensors; `data` is None until they have been found."""

    def __init__(self, dtype, size):
        self.dtype, self.size, self.data = dtype, size, None


class _StorageType(NamedTuple):
    dtype: np.dtype


class _Call(NamedTuple):
    """A function of PyTorch that a pickle may call, and what is called in its place."""

    function: object

    def __call__(self, *arguments):
        return self.function(*arguments)


class _Inert:
    """Stands for an object of a library: takes everything, does nothing."""

    def __new__(cls, *arguments, **named):
        return super().__new__(cls)

    def __init__(self, *arguments, **named):
        pass

    def __setstate__(self, state):
        pass

    def __setitem__(self, key, value):
        pass

    def append(self, item):
        pass

    def extend(self, items):
        pass

    def add(self, item):
        pass


def _rebuild_tensor(storage, offset, size, stride, *unused):
    """A Tensor of strides over a storage; what would reach beyond it is refused."""
    del unused
    if not isinstance(storage, _Storage):
        raise PickleError("a tensor without a storage")
    size, stride = tuple(size), tuple(stride)
    numbers = (offset, *size, *stride)
    reach = sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    whole = all(type(n) is int and n >= 0 for n in numbers)
    if not whole or (0 not in size and offset + reach >= storage.size):
        raise PickleError(
            f"a tensor of shape {size} reaches beyond its storage of {storage.size} "
            "numbers"
        )

    def load():
        steps = tuple(step * storage.dtype.itemsize for step in stride)
        return np.lib.stride_tricks.as_strided(storage.data[offset:], size, steps)

    return Tensor(size, storage.dtype, load)


def _rebuild_parameter(data, *unused):
    del unused
    return data


class _Unpickler(pickle.Unpickler):
    """Python's unpickler with a closed list of names."""

    def __init__(self, file, find_storage=None):
        super().__init__(file, encoding="latin1")
        self._find_storage = find_storage

    def find_class(self, module, name):
        if module == "torch" and name in _STORAGES:
            return _StorageType(np.dtype(_STORAGES[name]))
        if (module, name) in _FUNCTIONS:
            return _FUNCTIONS[module, name]
        harmless = module.split(".")[0] in _INERT_LIBRARIES
        if harmless or (module, name) in _INERT_NAMES:
            return type(name.rpartition(".")[2], (_Inert,), {})
        raise PickleError(
            f"its pickle asks for {module}.{name}, which has no place in a file of "
            "weights; nothing of it was run. Do not trust this file"
        )

    def persistent_load(self, pid):
        if self._find_storage is None or not isinstance(pid, tuple):
            raise PickleError(f"an unexpected reference {pid!r:.80}")
        kind, storage_type, key, _, size, *view = pid
        known = kind == "storage" and isinstance(storage_type, _StorageType)
        if not known or view not in ([], [None]) or type(size) is not int or size < 0:
            raise PickleError(f"an unexpected reference {pid!r:.80}")
        return self._find_storage(str(key), storage_type.dtype, size)


def _read_zip(path):
    """The format of PyTorch 1.6 and later: a pickle and one record per storage."""
    with zipfile.ZipFile(path) as archive:
        names = set(archive.namelist())
        (root,) = (n.removesuffix("data.pkl") for n in names if _is_pickle(n)) or (
            None,
        )
        if f"{root}byteorder" in names:
            if archive.read(f"{root}byteorder") != b"little":
                raise PickleError(
                    "its numbers are big-endian: save it again on another"
                )
        storages = {}

        def find(key, dtype, size):
            if key not in storages:
                record = archive.getinfo(f"{root}data/{key}")
                storages[key] = _record_storage(path, archive, record, dtype, size)
            return storages[key]

        with archive.open(f"{root}data.pkl") as file:
            return _Unpickler(file, find).load()


def _is_pickle(name):
    return name == "data.pkl" or (name.endswith("/data.pkl") and name.count("/") == 1)


def _record_storage(path, archive, record, dtype, size):
    """Maps a record of the zip into memory; a compressed one is unpacked."""
    storage = _Storage(dtype, size)
    length = size * dtype.itemsize
    if record.file_size < length:
        raise PickleError(
            f"the record {record.filename} holds {record.file_size} bytes of {length}"
        )
    if record.compress_type != zipfile.ZIP_STORED:
        storage.data = np.frombuffer(archive.read(record), dtype, size)
        return storage
    with open(path, "rb") as file:
        file.seek(record.header_offset)
        header = file.read(30)
        start = record.header_offset + 30 + sum(struct.unpack("<HH", header[26:30]))
    storage.data = map_file(path, start, dtype, size)
    return storage


def map_file(
    path: str | os.PathLike, start: int, dtype: npt.DTypeLike, size: int
) -> Shaped[np.ndarray, " size"]:
    """Maps numbers of a file into memory: they are read when they are used.

    Args:
      path: The file.
      start: Where they begin, in bytes.
      dtype: Their type.
      size: How many they are.

    Returns:
      Array [size], read-only.
    """
    if not size:
        return np.zeros(0, dtype)
    data = np.memmap(path, np.uint8, "r", start, (size * dtype.itemsize,))
    return np.asarray(data).view(dtype)


def _read_legacy(file, path):
    """The format before PyTorch 1.6: five pickles, then the storages in a row."""
    for expected in (_MAGIC, _PROTOCOL):
        if _Unpickler(file).load() != expected:
            raise PickleError("it is not a file of torch.save")
    _Unpickler(file).load()  # sizes of C types on the machine that saved
    storages = {}

    def find(key, dtype, size):
        return storages.setdefault(key, _Storage(dtype, size))

    saved = _Unpickler(file, find).load()
    order = [str(key) for key in _Unpickler(file).load()]
    position = file.tell()
    for key in order:
        file.seek(position)
        (size,) = struct.unpack("<q", file.read(8))
        storage = storages[key]
        if size != storage.size:
            raise PickleError(f"storage {key} has {size} numbers, not {storage.size}")
        storage.data = map_file(path, position + 8, storage.dtype, size)
        position += 8 + size * storage.dtype.itemsize
    missing = [key for key, storage in storages.items() if storage.data is None]
    if missing:
        raise PickleError(f"the storage {missing[0]} is missing")
    return saved


_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001

_STORAGES = {
    "FloatStorage": np.float32,
    "DoubleStorage": np.float64,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}

_FUNCTIONS = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch._utils", "_rebuild_tensor"): _Call(_rebuild_tensor),
    ("torch._utils", "_rebuild_tensor_v2"): _Call(_rebuild_tensor),
    ("torch._utils", "_rebuild_parameter"): _Call(_rebuild_parameter),
    ("torch", "Size"): _Call(tuple),
    ("builtins", "set"): _Call(set),
    ("__builtin__", "set"): _Call(set),
}

# What Lightning writes beside the weights, as seen in published checkpoints.
_INERT_LIBRARIES = ("pytorch_lightning", "lightning", "lightning_fabric", "omegaconf")
_INERT_NAMES = {
    ("_codecs", "encode"),
    ("argparse", "Namespace"),
    ("builtins", "bytes"),
    ("builtins", "dict"),
    ("builtins", "float"),
    ("builtins", "int"),
    ("builtins", "list"),
    ("builtins", "str"),
    ("builtins", "tuple"),
    ("collections", "defaultdict"),
    ("copyreg", "_reconstructor"),
    ("copy_reg", "_reconstructor"),
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "scalar"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "scalar"),
    ("pathlib", "PosixPath"),
    ("torch", "device"),
    ("torch", "float16"),
    ("torch", "float32"),
    ("typing", "Any"),
}
