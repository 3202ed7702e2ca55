"""A bucket in memory, `gs://bucket`."""

import pytest
from fsspec.registry import _registry

from ldm_jax.store import paths
from tests.store.stand_in import Objects


@pytest.fixture
def bucket(monkeypatch, tmp_path):
    """A path in an empty bucket; copies lie in a folder of the test."""
    for name in Objects.protocol:
        monkeypatch.setitem(_registry, name, Objects)
    monkeypatch.setattr(Objects, "objects", {})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    paths._file_system.cache_clear()
    _forget_epaths()
    Objects.clear_instance_cache()
    yield paths.as_path("gs://bucket/run")
    paths._file_system.cache_clear()
    _forget_epaths()


def _forget_epaths():
    """epath keeps the file systems that it has opened."""
    from etils.epath import backend

    backend.fsspec_backend._get_filesystem.cache_clear()
