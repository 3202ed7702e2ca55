"""Reads PyTorch's files without PyTorch, and without running what a pickle carries.

A pickle names functions and has them called.  Here a name stands for one of three
things: a tensor's parts, which are rebuilt as NumPy arrays; a value or a class that
training writes into checkpoints (a path, a Lightning callback, say), which becomes an
inert stand-in; anything else is refused by its name.  Of a program of TorchScript, as
OpenAI publishes CLIP, the tensors are read and the code is not.  Nothing is ever
imported, and what would take more memory or time than a file of weights has need of is
refused before it does.
"""

import os
import struct
import sys
import zipfile
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import numpy.typing as npt

from ldm_jax.annotations import Shaped
from ldm_jax.store import raise_if_silent
from ldm_jax.weights import pickles
from ldm_jax.weights.pickles import Inert, Known, PickleError, describe

# What compressed records of a zip, or tensors that view the same numbers, may take in
# memory: PyTorch compresses none, and weights that someone has compressed since take
# hardly less space by it; tied weights are there twice.
_MAX_INFLATED, _MAX_RATIO = 256 << 20, 4
# The list of a zip's records, which takes some ten times of that in memory.
_MAX_DIRECTORY = 32 << 20
# A view of a few numbers as many, such as a row that is repeated.
_MAX_EXPANDED = 1 << 20
# Attributes of a TorchScript program's modules, and how deep they nest.
_MAX_SCRIPTED, _MAX_DEPTH = 50_000, 32


class Tensor:
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
            saved = _read_zip(path)
            return _named(saved) if isinstance(saved, _Scripted) else saved
        with open(path, "rb") as file:
            if file.read(4) == b"PK\x03\x04":
                raise PickleError("it is truncated: the zip's directory is missing")
            file.seek(0)
            return _read_legacy(file, path)
    except PickleError as error:
        raise PickleError(f"cannot read {path}: {error}") from error
    except OSError as error:
        raise_if_silent(path, error)
        raise PickleError(f"cannot read {path}: {error.strerror or error}") from error
    except Exception as error:  # A damaged pickle raises whatever its bytes stumble on.
        raise PickleError(
            f"cannot read {path}: it is truncated or not a file of torch.save "
            f"({type(error).__name__}: {error})"
        ) from error


class _Storage:
    """The numbers behind tensors; `data` is None until they have been found.

    What is compressed is unpacked when it is used, by `load`.
    """

    def __init__(self, dtype, size, load=None):
        self.dtype, self.size, self.data, self._load = dtype, size, None, load

    def numbers(self):
        """All of them, a flat array [size]; None until they have been found."""
        return self.data if self._load is None else self._load()


class _StorageType(NamedTuple):
    """A class of PyTorch's storages, as `FloatStorage`: the type of its numbers."""

    dtype: np.dtype


class _Scripted(Inert):
    """A module of TorchScript, of which only the attributes are kept."""

    def __init__(self):
        self.attributes = {}

    def take(self, attributes):
        """Takes the state that the pickle gives it; what is no dict is passed over."""
        if isinstance(attributes, dict):
            self.attributes = attributes


def _named(module):
    """The tensors of a module and of those in it: what its state dict would be."""
    tensors, modules, seen = {}, [("", module, 0)], 0
    while modules:
        prefix, module, depth = modules.pop()
        # One that is in several others counts in each.
        seen += 1 + len(module.attributes)
        if seen > _MAX_SCRIPTED or depth > _MAX_DEPTH:
            raise PickleError("its modules are more, or nest deeper, than any model's")
        for name, value in module.attributes.items():
            if isinstance(value, Tensor):
                tensors[f"{prefix}{name}"] = value
            elif isinstance(value, _Scripted):
                modules.append((f"{prefix}{name}.", value, depth + 1))
    return tensors


def _rebuild_tensor(machine, arguments):
    """A Tensor of strides over a storage; what would reach beyond it is refused."""
    storage, offset, size, stride, *_ = arguments
    if not isinstance(storage, _Storage):
        raise PickleError("a tensor without a storage")
    if not isinstance(size, tuple | list) or not isinstance(stride, tuple | list):
        raise PickleError(f"a tensor whose shape is {describe(size)}")
    machine.count(len(size))
    numbers = (offset, *size, *stride)
    whole = all(type(n) is int and n >= 0 for n in numbers)
    if not whole or len(size) != len(stride) or len(size) > 32:
        raise PickleError(
            "a tensor whose shape and strides are not natural numbers, or too many, or "
            "reach beyond its storage"
        )
    size, stride = tuple(size), tuple(stride)
    reach = sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if 0 not in size and offset + reach >= storage.size:
        raise PickleError(
            f"a tensor of shape {size} reaches beyond its storage of {storage.size} "
            "numbers"
        )
    count = int(np.prod(size, dtype=object))
    if count > max(storage.size, _MAX_EXPANDED):
        raise PickleError(
            f"a tensor of shape {size} repeats the {storage.size} numbers of its "
            "storage: save it contiguous"
        )

    def load():
        steps = tuple(step * storage.dtype.itemsize for step in stride)
        return np.lib.stride_tricks.as_strided(storage.numbers()[offset:], size, steps)

    return Tensor(size, storage.dtype, load)


def _rebuild_parameter(machine, arguments):
    return arguments[0]


def _rebuild_from_type(machine, arguments):
    """A subclass of tensors: its tensor, without what the subclass adds."""
    function, _, inner, *_ = arguments
    if function not in _FUNCTIONS.values() or type(inner) is not tuple:
        raise PickleError("a tensor of an unknown type")
    return function.function(machine, inner)


def _size(machine, arguments):
    (items,) = arguments
    machine.count(len(items))
    return tuple(items)


def _find_name(module, name):
    """What a name stands for; one without a place in a file of weights is refused."""
    if module in ("torch", "torch.cuda") and name in _STORAGES:
        return _StorageType(np.dtype(_STORAGES[name]))
    if (module, name) in _FUNCTIONS:
        return _FUNCTIONS[module, name]
    root = module.split(".")[0]
    if root == "__torch__":
        return Known(lambda machine, arguments: _Scripted())
    values = _INERT_VALUES.get(module, ())
    inert = root in _INERT_LIBRARIES or module.startswith(_INERT_MODULES)
    if inert or name in values or "*" in values:
        return Inert()
    asked = f"its pickle asks for {module:.80}.{name:.80}, which "
    if root in sys.stdlib_module_names or root in _CODE:
        raise PickleError(
            f"{asked}has no place in a file of weights; nothing of it was run. Do not "
            "trust this file"
        )
    raise PickleError(
        f"{asked}is not known here; nothing of it was run. Ask who made the file for "
        "its state dict alone, or for .safetensors"
    )


def _unpickle(file, find_storage=None):
    """Reads one pickle; `find_storage` takes (key, dtype, size)."""

    def find(pid):
        if find_storage is None or type(pid) is not tuple or len(pid) not in (5, 6):
            raise PickleError(f"an unexpected reference {describe(pid)}")
        kind, storage_type, key, _, size, *view = pid
        known = kind == "storage" and isinstance(storage_type, _StorageType)
        plain = isinstance(key, str | int) and view in ([], [None])
        if not known or not plain or type(size) is not int or size < 0:
            raise PickleError(f"an unexpected reference {describe(key)}")
        return find_storage(str(key), storage_type.dtype, size)

    return pickles.load(file, _find_name, find)


def _read_zip(path):
    """The format of PyTorch 1.6 and later: a pickle and one record per storage."""
    _check_directory(path)
    with zipfile.ZipFile(path) as archive:
        names = set(archive.namelist())
        roots = [n.removesuffix("data.pkl") for n in names if _is_pickle(n)]
        if len(roots) != 1:
            raise PickleError("it is a zip that holds no data.pkl of torch.save")
        (root,) = roots
        if f"{root}byteorder" in names:
            order = archive.getinfo(f"{root}byteorder")
            if order.file_size > 16 or archive.read(order) != b"little":
                raise PickleError(
                    "its numbers are big-endian: save it again on another"
                )
        storages, inflated = {}, 0

        def find(key, dtype, size):
            nonlocal inflated
            if key not in storages:
                record = archive.getinfo(f"{root}data/{key}")
                if record.compress_type != zipfile.ZIP_STORED:
                    inflated += record.file_size
                    check_memory("compressed records", inflated, path)
                storages[key] = _record_storage(path, record, dtype, size)
            return storages[key]

        with archive.open(f"{root}data.pkl") as file:
            return _unpickle(file, find)


def _check_directory(path):
    """Refuses a zip that lists too much, by what its end says of the list."""
    with open(path, "rb") as file:
        file.seek(max(os.path.getsize(path) - (1 << 16) - 128, 0))
        end = file.read()
    sizes = [0]
    for mark, form, place in ((b"PK\x05\x06", "<L", 12), (b"PK\x06\x06", "<Q", 40)):
        start = end.rfind(mark)
        if start >= 0:
            sizes += struct.unpack_from(form, end, start + place)
    size = max(size for size in sizes if size != 0xFFFFFFFF)
    if size > _MAX_DIRECTORY:
        raise PickleError(f"it lists its records in {size:,} bytes, which no file does")


def check_memory(what: str, size: int, path: str | os.PathLike) -> None:
    """Refuses what is far larger in memory than its file.

    Args:
      what: What takes it, for the message.
      size: Bytes in memory.
      path: The file.

    Raises:
      PickleError: If it is more than files of weights have need of.
    """
    limit = max(_MAX_INFLATED, _MAX_RATIO * os.path.getsize(path))
    if size > limit:
        raise PickleError(
            f"its {what} would take {size:,} bytes of memory, more than the {limit:,} "
            "that are allowed: save it again with PyTorch, uncompressed and every "
            "tensor a clone of its own"
        )


def _is_pickle(name):
    return name == "data.pkl" or (name.endswith("/data.pkl") and name.count("/") == 1)


def _record_storage(path, record, dtype, size):
    """Maps a record of the zip into memory; a compressed one is unpacked when used."""
    length = size * dtype.itemsize
    if record.file_size < length:
        raise PickleError(
            f"the record {record.filename} holds {record.file_size} bytes of {length}"
        )
    if record.compress_type != zipfile.ZIP_STORED:

        def unpack():
            with zipfile.ZipFile(path) as archive:
                return np.frombuffer(archive.read(record), dtype, size)

        return _Storage(dtype, size, unpack)
    storage = _Storage(dtype, size)
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
        if _unpickle(file) != expected:
            raise PickleError("it is not a file of torch.save")
    _unpickle(file)  # sizes of C types on the machine that saved
    storages = {}

    def find(key, dtype, size):
        return storages.setdefault(key, _Storage(dtype, size))

    saved = _unpickle(file, find)
    order = [str(key) for key in _unpickle(file)]
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

_FUNCTIONS = pickles.CONTAINERS | {
    ("torch._utils", "_rebuild_tensor"): Known(_rebuild_tensor),
    ("torch._utils", "_rebuild_tensor_v2"): Known(_rebuild_tensor),
    ("torch._utils", "_rebuild_parameter"): Known(_rebuild_parameter),
    ("torch._utils", "_rebuild_parameter_with_state"): Known(_rebuild_parameter),
    ("torch._tensor", "_rebuild_from_type_v2"): Known(_rebuild_from_type),
    ("torch", "Size"): Known(_size),
}

# Libraries whose records training writes beside the weights, as seen in published
# checkpoints; all that they name becomes a stand-in.
_INERT_LIBRARIES = (
    *("pytorch_lightning", "lightning", "lightning_fabric", "lightning_utilities"),
    *("omegaconf", "antlr4", "easydict", "yacs", "ml_collections", "addict", "box"),
)
_INERT_MODULES = ("torch.nn.", "torch.optim.", "torch.jit._pickle")

# Plain values of libraries that can do more than that: module -> names.
_INERT_VALUES = {
    "_codecs": ("encode",),
    "argparse": ("Namespace",),
    **dict.fromkeys(
        ("builtins", "__builtin__"),
        (
            *("bool", "bytearray", "bytes", "complex", "dict", "float", "frozenset"),
            *("int", "list", "object", "range", "slice", "str", "tuple", "type"),
            *("long", "unicode", "Ellipsis", "NotImplemented"),
        ),
    ),
    "collections": ("defaultdict", "Counter", "deque", "UserDict", "ChainMap"),
    **dict.fromkeys(("copyreg", "copy_reg"), ("_reconstructor",)),
    "datetime": ("*",),
    "decimal": ("Decimal",),
    "enum": ("Enum", "IntEnum", "Flag", "IntFlag"),
    "fractions": ("Fraction",),
    "numpy": (
        *("dtype", "ndarray", "bool_", "bool", "float16", "float32", "float64"),
        *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
        *("str_", "bytes_", "longlong", "ulonglong", "datetime64", "timedelta64"),
    ),
    **dict.fromkeys(
        ("numpy.core.multiarray", "numpy._core.multiarray"), ("_reconstruct", "scalar")
    ),
    **dict.fromkeys(("numpy.dtypes",), ("*",)),
    **dict.fromkeys(
        ("pathlib", "pathlib._local"),
        (
            *("Path", "PosixPath", "WindowsPath"),
            *("PurePath", "PurePosixPath", "PureWindowsPath"),
        ),
    ),
    "torch": (
        *("device", "dtype", "Generator", "memory_format", "contiguous_format"),
        *("bfloat16", "float16", "float32", "float64", "half", "float", "double"),
        *("int8", "int16", "int32", "int64", "uint8", "bool", "long", "strided"),
    ),
    "types": ("SimpleNamespace",),
    "typing": ("Any",),
    "uuid": ("UUID", "SafeUUID"),
}

# Beside Python's own, libraries whose functions load and run what they are given.
_CODE = ("torch", "torchvision", "numpy", "nt", "cloudpickle", "dill", "joblib")
