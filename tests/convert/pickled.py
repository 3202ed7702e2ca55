"""Files of PyTorch made by hand: any pickle, in the zip or the older format."""

import collections
import io
import pickle
import struct
import zipfile

from ldm_jax.weights import unpickle


class Name:
    """Pickles as a call of module.name, without that being imported."""

    def __init__(self, module, name):
        self.module, self.name = module, name


class Storage:
    """Pickles as a reference to a storage."""

    def __init__(self, key, size):
        self.pid = ("storage", Name("torch", "FloatStorage"), key, "cpu", size)


class Call:
    """Pickles as the call of a name."""

    def __init__(self, name, *arguments):
        self.name, self.arguments = name, arguments

    def __reduce__(self):
        return self.name, self.arguments


class Build:
    """Pickles as an attempt to set an object's attributes."""

    def __init__(self, target, attributes=None):
        self.target, self.attributes = target, attributes or {"size": 1 << 40}


class Pickler(pickle._Pickler):
    """Python's own pickler, which the stand-ins above can steer."""

    def persistent_id(self, obj):
        return obj.pid if isinstance(obj, Storage) else None

    def save(self, obj, save_persistent_id=True):
        if isinstance(obj, Name):
            self.write(f"c{obj.module}\n{obj.name}\n".encode())
        elif isinstance(obj, Call):
            self.save(obj.name)
            self.save(obj.arguments)
            self.write(pickle.REDUCE)
        elif isinstance(obj, Build):
            self.save(obj.target)
            self.save(obj.attributes)
            self.write(pickle.BUILD)
        else:
            super().save(obj, save_persistent_id)


def dumps(obj):
    out = io.BytesIO()
    Pickler(out, 2).dump(obj)
    return out.getvalue()


def write_zip(path, obj, **records):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", dumps(obj))
        for name, data in records.items():
            archive.writestr(f"archive/data/{name.strip('_')}", data)


def write_legacy(path, obj, storages=()):
    with open(path, "wb") as file:
        for header in (unpickle._MAGIC, unpickle._PROTOCOL, {"little_endian": True}):
            file.write(pickle.dumps(header, 2))
        # As PyTorch wrote them: storage references with a sixth item.
        file.write(dumps(obj))
        file.write(pickle.dumps([key for key, _ in storages], 2))
        for _, values in storages:
            file.write(struct.pack("<q", len(values)) + values.tobytes())


def tensor_of(size, stride, key="0", numbers=6, offset=0):
    storage = Storage(key, numbers)
    arguments = storage, offset, size, stride, False, collections.OrderedDict()
    return Call(Name("torch._utils", "_rebuild_tensor_v2"), *arguments)
