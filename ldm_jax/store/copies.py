"""Local copies of what can only be read from a disk, as weights are, page by page."""

import hashlib
import os
import pathlib
import shutil
import uuid

from ldm_jax.errors import ConfigError
from ldm_jax.store.paths import Place, as_path, fetch, for_each, is_remote, listing


def local_copy(path: str | os.PathLike) -> Place:
    """Gives a path on the local disk; what lies in a store is copied there, once.

    Copies lie in `~/.cache/ldm_jax/store`, or below XDG_CACHE_HOME, under a name made
    of the address and of what the store says of the contents: what has changed is
    copied anew. A copy is there as a whole or not at all, also where several processes
    make it.

    Args:
      path: Path of a file or folder, or its address.

    Returns:
      `pathlib.Path` of the same name; of what is not there, the path that was given.

    Raises:
      ConfigError: If its library is missing, or a file changed while it was copied.
    """
    path = as_path(path)
    if not is_remote(path):
        return path
    found = listing(path)
    if not found:
        # Whoever reads it says that it is not there.
        return path
    whole = hashlib.sha256(os.fspath(path).encode())
    for name, info in found:
        # A write has a number of its own; not all stores give it.
        mark = info.get("generation") or sorted(info.items())
        whole.update(f"{name} {info['size']} {mark}".encode())
    place = cache_folder() / whole.hexdigest()[:24] / path.name
    if not place.exists():
        _fetch(path, found, place)
    return place


def cache_folder() -> pathlib.Path:
    """The folder on the local disk where copies lie.

    Returns:
      Its path; it need not be there.
    """
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return pathlib.Path(cache) / "ldm_jax" / "store"


def _fetch(path, found, place):
    draft = place.parent.with_name(f"{place.parent.name}.{uuid.uuid4().hex[:8]}.tmp")

    def copy(file):
        name, info = file
        # Of a file, not a folder, it is the only name.
        target = draft / place.name / name.relative_to(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        fetch(name, target)
        if target.stat().st_size != info["size"]:
            raise ConfigError(f"{name} changed while it was copied: try again")

    try:
        for _ in for_each(copy, found, path):
            pass
        try:
            draft.rename(place.parent)
        except OSError:
            # Another process was faster.
            if not place.exists():
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
