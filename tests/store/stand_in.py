"""A stand-in for gcsfs: objects in memory, and nothing that a store does not do."""

import io

from fsspec import AbstractFileSystem


class Objects(AbstractFileSystem):
    """Objects by name: none is appended to, and a folder is what names begin with."""

    protocol = ("gs", "gcs")
    objects = {}

    def ls(self, path, detail=True, **_):
        """What lies in a folder, or the object itself."""
        path = self._strip_protocol(path)
        names = [path] if path in self.objects else self._inside(path)
        if not names:
            raise FileNotFoundError(path)
        return [self.info(name) for name in names] if detail else names

    def _inside(self, path):
        start = f"{path}/" if path else ""
        found = {
            start + name.removeprefix(start).partition("/")[0]
            for name in list(self.objects)
            if name.startswith(start)
        }
        return sorted(found)

    def info(self, path, **_):
        """Says what there is of a name."""
        path = self._strip_protocol(path)
        data = self.objects.get(path)
        if data is not None:
            mark = hash(data)
            return {"name": path, "size": len(data), "type": "file", "mark": mark}
        if not self._inside(path):
            raise FileNotFoundError(path)
        return {"name": path, "size": 0, "type": "directory"}

    def _open(self, path, mode="rb", **_):
        if mode == "rb":
            if path not in self.objects:
                raise FileNotFoundError(path)
            return io.BytesIO(self.objects[path])
        if mode not in ("wb", "xb"):
            raise NotImplementedError(f"a store has no mode {mode}")
        return _Upload(self.objects, path, mode)

    def cp_file(self, path1, path2, **_):
        """Copies an object."""
        names = map(self._strip_protocol, (path1, path2))
        source, target = names
        self.objects[target] = self.objects[source]

    def _rm(self, path):
        if self.objects.pop(self._strip_protocol(path), None) is None:
            raise FileNotFoundError(path)

    def mkdir(self, path, **_):
        """Folders are not made."""
        raise NotImplementedError("a store has no folders")

    makedirs = mkdir


class _Upload(io.BytesIO):
    """An object that is there once all of it is."""

    def __init__(self, objects, path, mode):
        super().__init__()
        self._objects, self._path, self._mode = objects, path, mode

    def __exit__(self, kind, *_):
        if kind is None:
            self.close()

    def discard(self):
        """Gives up."""
        super().close()

    def close(self):
        if self.closed:
            return
        data = self.getvalue()
        super().close()
        if self._mode == "wb":
            self._objects[self._path] = data
        elif self._objects.setdefault(self._path, data) is not data:
            raise FileExistsError(self._path)
