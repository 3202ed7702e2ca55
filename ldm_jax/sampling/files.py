"""The folder of a run: its settings, pictures, grid and array."""

import hashlib
import json
import math
import os

import jax
import numpy as np

from ldm_jax.config import ConfigError
from ldm_jax.images import make_grid, read_image, write_png

_SETTINGS = "settings.json"
_MAX_GRID = 64


def path_of(outdir, k):
    """Path of sample k."""
    return outdir / f"{k:06d}.png"


def claim(outdir, settings):
    """Records the settings in a new folder, compares them in one that has some.

    Args:
      outdir: Path of the folder; made if it is not there.
      settings: Dict for JSON.

    Raises:
      ConfigError: If the folder holds samples of other settings.
    """
    path = outdir / _SETTINGS
    # As they come back from the file: without tuples.
    settings = json.loads(json.dumps(settings))
    if path.exists():
        found = json.loads(path.read_text(encoding="utf-8"))
        for key in [*settings, *(found.keys() - settings.keys())]:
            if found.get(key) != settings.get(key):
                raise ConfigError(
                    f"{outdir} holds samples of other settings ({key}: "
                    f"{found.get(key)} there, {settings.get(key)} here); use another "
                    "--outdir"
                )
        return
    outdir.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{jax.process_index()}.tmp")
    temporary.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def digest(tree):
    """Hash of a tree of arrays, to record which weights were used."""
    whole = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        whole.update(np.ascontiguousarray(leaf))
    return whole.hexdigest()[:16]


def write_grid(outdir, count, labels=None, class_names=()):
    """Writes `grid.png` of the first samples; returns its path.

    Args:
      outdir: Path of the folder.
      count: Number of samples.
      labels: Class numbers, repeated in turn, of which few make the columns; or None.
      class_names: Their names, if known.
    """
    shown = range(min(count, _MAX_GRID))
    columns = math.ceil(math.sqrt(len(shown)))
    if labels is not None and 1 < len(labels) <= 16:
        columns = min(len(labels), len(shown))
        names = [class_names[i] if class_names else str(i) for i in labels]
        print("columns: " + ", ".join(names[:columns]))
    grid = outdir / "grid.png"
    pictures = np.stack([read_image(path_of(outdir, k)) for k in shown])
    write_png(grid, make_grid(pictures, columns))
    print(f"grid: {grid}")
    return grid


def write_array(outdir, count, conditions):
    """Writes `samples.npz`.

    Args:
      outdir: Path of the folder.
      count: Number of samples.
      conditions: Further arrays by name, [count, ...].
    """
    shape = read_image(path_of(outdir, 0)).shape
    images = np.empty((count, *shape), np.uint8)
    for k in range(count):
        images[k] = read_image(path_of(outdir, k))
    temporary = outdir / "samples.tmp.npz"
    np.savez(temporary, arr_0=images, **conditions)
    os.replace(temporary, outdir / "samples.npz")
    others = f"; {', '.join(sorted(conditions))}" if conditions else ""
    print(f"array: {outdir / 'samples.npz'} {images.shape} uint8{others}")
