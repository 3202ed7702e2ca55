"""A stand-in for gcsfs: objects in memory, and nothing that a store does not do."""

import io

from fsspec import AbstractFileSystem
from fsspec.spec import AbstractBufferedFile


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
        return _Upload(self, path, mode)

    def pipe_file(self, path, value, **_):
        """Writes an object by one request."""
        self.objects[self._strip_protocol(path)] = bytes(value)

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


class _Upload(AbstractBufferedFile):
    """An object that is there once all of it is, sent as gcsfs does it.

    What is small is sent when the file is closed, as it also is by its destructor.
    """

    def _initiate_upload(self):
        self.parts = bytearray()

    def _upload_chunk(self, final=False):
        self.parts += self.buffer.getvalue()
        if not final:
            return True
        objects, data = self.fs.objects, bytes(self.parts)
        if self.mode == "wb":
            objects[self.path] = data
        elif objects.setdefault(self.path, data) is not data:
            raise FileExistsError(self.path)
        return True

    def discard(self):
        """Gives up; where nothing was sent yet, nothing is done."""
        if self.offset is not None:
            self.closed = True
