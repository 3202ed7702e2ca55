"""A store of files in memory that may stop to answer."""

import fsspec
from fsspec.implementations.memory import MemoryFileSystem


class Flaky(MemoryFileSystem):
    """Answers or fails, as `failures` says: how often it fails from now on."""

    protocol = "flaky"
    store, pseudo_dirs = {}, [""]
    failures, asked = 0, 0

    @classmethod
    def _strip_protocol(cls, path):
        return MemoryFileSystem._strip_protocol(path.replace("flaky://", "memory://"))

    @classmethod
    def _answer(cls, path):
        cls.asked += 1
        if cls.failures:
            cls.failures -= 1
            raise ConnectionResetError(104, "Connection reset by peer")

    def cat_file(self, path, start=None, end=None, **options):
        self._answer(path)
        return super().cat_file(path, start=start, end=end, **options)

    def info(self, path, **options):
        self._answer(path)
        return super().info(path, **options)


fsspec.register_implementation("flaky", Flaky, clobber=True)


def put(path, data):
    """Lays bytes at flaky://path; returns the address."""
    Flaky().pipe_file(path, data)
    return f"flaky:/{path}"
