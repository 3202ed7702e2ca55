"""What the flags give, as columns: sample k takes value k modulo their number."""

import hashlib
import json
import os
import pathlib
from typing import Any, NamedTuple

import numpy as np

from ldm_jax.config import suggest
from ldm_jax.data.folder import SUFFIXES
from ldm_jax.data.layout import parse_layout
from ldm_jax.data.sidecars import SIDECARS, drop_sidecars
from ldm_jax.errors import ConfigError


class Column(NamedTuple):
    """What one flag gives.

    Attributes:
      values: Tuple of strings, numbers, paths or layouts, one at least.
      record: What stands for them in `settings.json`: contents, not names of files.
    """

    values: tuple
    record: Any

    def __getitem__(self, k):
        """The value of sample k."""
        return self.values[k % len(self.values)]


def read_columns(given, class_names=(), box_names=()):
    """Reads what the flags name.

    Args:
      given: Flag -> what it is given: a row of FLAGS, and a list of strings. Flags that
        are None or empty are left out.
      class_names: Names of the classes in the order of their numbers, if known.
      box_names: Names of the classes of boxes.

    Returns:
      Dict of flag -> Column.

    Raises:
      ConfigError: If a file is missing or holds something else.
    """
    columns = {}
    for flag, values in given.items():
        if not values:
            continue
        if isinstance(values, str):
            values = [values]
        names = {"labels": class_names, "layout": box_names}.get(flag, ())
        columns[flag] = FLAGS[flag](flag, values, names)
    return columns


def _texts(flag, values, names):
    return Column(tuple(values), list(values))


def _lines(flag, values, names):
    """One prompt per line of files, or of the `.txt` files of folders."""
    lines = []
    for path in _find(flag, values, (".txt",)):
        text = _read(flag, path).decode("utf-8-sig", errors="replace")
        lines += [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise ConfigError(
            f"--{flag}={','.join(values)} holds no prompt: write one per line"
        )
    return Column(tuple(lines), lines)


def _labels(flag, values, names):
    """Class numbers; their range is checked where the number of classes is known."""
    numbers = tuple(_label(str(value), list(names)) for value in values)
    return Column(numbers, list(numbers))


def _label(label, names):
    if label in names:
        return names.index(label)
    if label.isdecimal() and (not names or int(label) < len(names)):
        return int(label)
    known = suggest(label, names) if names else "give its number"
    raise ConfigError(f"--labels: there is no class '{label}'; {known}")


def _images(flag, values, names):
    paths = _find(flag, values, SUFFIXES)
    return Column(tuple(paths), _digest(flag, paths))


def _arrays(flag, values, names):
    """Rows of arrays in `.npy` files."""
    paths = _find(flag, values, (".npy",))
    rows = []
    for path in paths:
        try:
            rows += list(np.load(path, allow_pickle=False))
        except (OSError, ValueError, TypeError) as error:
            raise ConfigError(f"--{flag}: {path} is no NumPy array: {error}") from error
    if len({row.shape for row in rows}) != 1:
        raise ConfigError(f"--{flag}: give arrays [samples, ...] whose rows are alike")
    return Column(tuple(rows), _digest(flag, paths))


def _layouts(flag, values, names):
    """Layouts of JSON files; a file holds one, or a list of several."""
    paths, layouts = _find(flag, values, (".json",)), []
    for path in paths:
        try:
            read = json.loads(_read(flag, path))
            several = isinstance(read, list) and all(isinstance(x, list) for x in read)
            for layout in read if several and read else [read]:
                layouts.append(parse_layout(layout, names or None))
        except ValueError as error:
            raise ConfigError(f"--{flag}: {path}: {error}") from error
    return Column(tuple(layouts), _digest(flag, paths))


def _find(flag, values, suffixes):
    """The files that are named, and those of the folders, in the order of names."""
    paths = []
    for value in values:
        path = pathlib.Path(value).expanduser()
        if not path.exists():
            raise ConfigError(f"--{flag}: there is no file or folder {path}")
        found = _in_folder(flag, path, suffixes) if path.is_dir() else [str(path)]
        if not found:
            raise ConfigError(
                f"--{flag}: the folder {path} holds no {' or '.join(suffixes)}"
            )
        paths += found
    return paths


def _in_folder(flag, folder, suffixes):
    names = sorted(os.listdir(folder))
    names = [n for n in names if n.lower().endswith(suffixes) and n[0] != "."]
    # A folder that training reads has the maps beside the images.
    beside = SIDECARS.get(flag, ("",))[0]
    own = [name for name in names if beside and name.endswith(beside)]
    return [str(folder / name) for name in own or drop_sidecars(names)]


def _digest(flag, paths):
    """The number of files and a hash of their contents, whatever they are called."""
    whole = hashlib.sha256()
    for path in paths:
        whole.update(hashlib.sha256(_read(flag, path)).digest())
    return {"files": len(paths), "sha256": whole.hexdigest()[:16]}


def _read(flag, path):
    try:
        return pathlib.Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(f"--{flag}: cannot read {path}: {error.strerror}") from error


# Flags that come in columns, and what reads them.
FLAGS = {
    "labels": _labels,
    "prompt": _texts,
    "prompts_file": _lines,
    "negative_prompt": _texts,
    "layout": _layouts,
    "segmentation": _images,
    "depth": _images,
    "low_res": _images,
    "style": _images,
    "image": _images,
    "mask": _images,
    "guide_image": _images,
    "features": _arrays,
}
