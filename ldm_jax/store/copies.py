"""Local copies of files that can only be read from a disk, such as mapped weights."""

import hashlib
import os
import pathlib
import shutil
import uuid

from ldm_jax.errors import ConfigError
from ldm_jax.store.paths import Place, as_path, fetch, for_each, is_remote, listing


def local_copy(path: str | os.PathLike) -> Place:
    """Returns a path on the local disk, after copying what is in a store, once.

    Copies are in `~/.cache/ldm_jax/store`, or below XDG_CACHE_HOME, under a name made
    from the address and the store's metadata of the contents: a changed file is copied
    again. Copies are made atomically, also if several processes make one.

    Args:
      path: Path of a file or folder, or its address.

    Returns:
      `pathlib.Path` of the same name; the given path if it does not exist.

    Raises:
      ConfigError: If its library is missing, or a file changed while it was copied.
    """
    path = as_path(path)
    if not is_remote(path):
        return path
    found = listing(path)
    if not found:
        # The caller reports that it does not exist.
        return path
    whole = hashlib.sha256(os.fspath(path).encode())
    for name, info in found:
        # The generation changes with each write; not all stores have it.
        mark = info.get("generation") or sorted(info.items())
        whole.update(f"{name} {info['size']} {mark}".encode())
    place = cache_folder() / whole.hexdigest()[:24] / path.name
    if not place.exists():
        _fetch(path, found, place)
    return place


def cache_folder() -> pathlib.Path:
    """Returns the folder of copies on the local disk.

    Returns:
      Its path; it may not exist.
    """
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return pathlib.Path(cache) / "ldm_jax" / "store"


def _fetch(path, found, place):
    draft = place.parent.with_name(f"{place.parent.name}.{uuid.uuid4().hex[:8]}.tmp")

    def copy(file):
        name, info = file
        # If `path` is a file, this is just `draft / place.name`.
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
