"""Reads PyTorch's files without PyTorch, and without running code in their pickles.

A pickle names functions to be called.  Here a name is one of three things: a part of a
tensor, which is rebuilt as a NumPy array; a value or class that training writes into
checkpoints (e.g. a path or a Lightning callback), which becomes an inert stand-in;
anything else is an error that gives the name.  From a TorchScript program, the format
of OpenAI's CLIP, the tensors are read and the code is not.  Nothing is ever imported,
and a file that would take more memory or time than weights need raises an error first.
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

# Limit on the memory of compressed records of a zip, or of tensors that are views of
# the same numbers, in bytes and as a multiple of the file. PyTorch does not compress,
# and weights hardly compress; tied weights appear twice.
_MAX_INFLATED, _MAX_RATIO = 256 << 20, 4
# Maximum bytes of a zip's directory, which takes about ten times as much memory.
_MAX_DIRECTORY = 32 << 20
# Maximum size of a view that repeats numbers, such as a broadcast row.
_MAX_EXPANDED = 1 << 20
# Maximum attributes of a TorchScript program's modules, and maximum nesting.
_MAX_SCRIPTED, _MAX_DEPTH = 50_000, 32


class Tensor:
    """A lazy array, which is read by `np.asarray(tensor)`.

    Attributes:
      shape: Tuple of sizes.
      dtype: NumPy type.
    """

    def __init__(
        self, shape: Sequence[int], dtype: npt.DTypeLike, load: Callable[[], Any]
    ) -> None:
        """Makes a lazy array.

        Args:
          shape: Its sizes.
          dtype: Its type.
          load: Function without arguments that returns the array.
        """
        self.shape, self.dtype, self._load = tuple(shape), np.dtype(dtype), load

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self._load(), dtype)


def read_torch(path: str | os.PathLike) -> Any:
    """Reads a file written by `torch.save`, in its zip or its older format.

    Args:
      path: The file.

    Returns:
      The saved object: containers of numbers, strings and Tensors.

    Raises:
      PickleError: If it is truncated, damaged, or has names not known to be harmless.
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
    except Exception as error:  # A damaged pickle may raise any kind of error.
        raise PickleError(
            f"cannot read {path}: it is truncated or not a file of torch.save "
            f"({type(error).__name__}: {error})"
        ) from error


class _Storage:
    """The numbers of tensors; `data` is None until they have been found.

    Compressed numbers are unpacked by `load` when they are used.
    """

    def __init__(self, dtype, size, load=None):
        self.dtype, self.size, self.data, self._load = dtype, size, None, load

    def numbers(self):
        """Returns all numbers, a flat array [size]; None until they have been found."""
        return self.data if self._load is None else self._load()


class _StorageType(NamedTuple):
    """A storage class of PyTorch, e.g. `FloatStorage`: the type of its numbers."""

    dtype: np.dtype


class _Scripted(Inert):
    """A module of TorchScript, of which only the attributes are kept."""

    def __init__(self):
        self.attributes = {}

    def take(self, attributes):
        """Stores the state in the pickle; anything but a dict is ignored."""
        if isinstance(attributes, dict):
            self.attributes = attributes


def _named(module):
    """The state dict of a module: its tensors, and those of its submodules."""
    tensors, modules, seen = {}, [("", module, 0)], 0
    while modules:
        prefix, module, depth = modules.pop()
        # A module that is part of several others is counted for each.
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
    """A strided Tensor over a storage; PickleError if it would reach beyond that."""
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
    """The tensor of a tensor subclass, without the attributes of the subclass."""
    function, _, inner, *_ = arguments
    if function not in _FUNCTIONS.values() or type(inner) is not tuple:
        raise PickleError("a tensor of an unknown type")
    return function.function(machine, inner)


def _size(machine, arguments):
    (items,) = arguments
    machine.count(len(items))
    return tuple(items)


def _find_name(module, name):
    """Resolves a name; PickleError if it has no use in a weights file."""
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
    """Reads one pickle; `find_storage` is called with (key, dtype, size)."""

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
    """Reads the format of PyTorch 1.6 and later: a pickle and a record per storage."""
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
    """Raises an error if a zip's directory is too large, by its end record."""
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
    """Checks that data are not far larger in memory than their file.

    Args:
      what: What takes the memory, for the message.
      size: Bytes in memory.
      path: The file.

    Raises:
      PickleError: If it is more than weights files need.
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
    """Memory-maps a record of the zip; a compressed one is unpacked when it is used."""
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
    """Memory-maps numbers of a file, which are read when they are used.

    Args:
      path: The file.
      start: Offset of the first one, in bytes.
      dtype: Their type.
      size: Their number.

    Returns:
      Array [size], read-only.
    """
    if not size:
        return np.zeros(0, dtype)
    data = np.memmap(path, np.uint8, "r", start, (size * dtype.itemsize,))
    return np.asarray(data).view(dtype)


def _read_legacy(file, path):
    """Reads the format before PyTorch 1.6: five pickles, then the storages."""
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

# Libraries whose objects training saves beside the weights, as seen in published
# checkpoints; all their names become stand-ins.
_INERT_LIBRARIES = (
    *("pytorch_lightning", "lightning", "lightning_fabric", "lightning_utilities"),
    *("omegaconf", "antlr4", "easydict", "yacs", "ml_collections", "addict", "box"),
)
_INERT_MODULES = ("torch.nn.", "torch.optim.", "torch.jit._pickle")

# Plain values of libraries that also have unsafe functions: module -> names.
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

# Besides Python's standard library, libraries with functions that run given code.
_CODE = ("torch", "torchvision", "numpy", "nt", "cloudpickle", "dill", "joblib")
