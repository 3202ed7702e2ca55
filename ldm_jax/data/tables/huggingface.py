"""The source "huggingface": data sets saved or cached by Hugging Face's `datasets`.

A folder is read without that library. Given the name of a set on the hub, the library
downloads it, or finds it in its cache, and the files in the cache are read.
"""

import dataclasses
import json
import os
import re
from collections.abc import Sequence

from ldm_jax.data.splits import SPLIT_NAMES, check_split, serving, split_of
from ldm_jax.data.tables.arrow_files import ArrowTable
from ldm_jax.data.tables.fields import find_fields
from ldm_jax.data.tables.table_source import TableSource, find_classes, leave_out
from ldm_jax.errors import Unreachable
from ldm_jax.reading import MAX_TEXT, is_folder, parse_json, read_file, state_of
from ldm_jax.store import local_only, raise_if_silent

# Least major version of `datasets`.
_LEAST = 4

_STATE, _SPLITS = "state.json", "dataset_dict.json"


@dataclasses.dataclass(eq=False, repr=False)
class HuggingFaceSource(TableSource):
    """Rows of a Hugging Face data set as examples; can be pickled.

    A set without splits is split like Parquet files; see `ParquetSource`.

    Attributes:
      name: Folder written by `save_to_disk`, or the name of a set on the hub, such as
        "user/set".
      split: "train", "validation", "test", "all", or another split of the set.
      data_dir: Folder that a relative `name` is relative to.
      image_key: Column of the images; None takes "image", or the only such column.
      label_key: Column of the classes; None takes "label" if there is one, ""
        takes none.
      validation_fraction: Held-out fraction, in (0, 1), if the set has no splits; None
        to hold nothing out.
      keys: See `ParquetSource`.
      subset: Configuration of a set on the hub; None for its default.
      revision: Commit, tag or branch of a set on the hub; None for the newest.
      on_error: "raise" rejects a set with a damaged file, "skip" leaves the file out.

    Raises:
      ValueError: If there is no such set, split or column, it cannot be read, or an
        option is out of range.
    """

    name: str
    split: str
    data_dir: str | None = None
    image_key: str | None = None
    label_key: str | None = None
    validation_fraction: float | None = 0.05
    keys: Sequence[str] = ()
    subset: str | None = None
    revision: str | None = None
    on_error: str = "skip"

    def __post_init__(self):
        if not self.name or not isinstance(self.name, str):
            raise ValueError(
                "name is empty; give data.name, a folder of save_to_disk or the name "
                "of a set on the hub"
            )
        folder = os.path.join(
            os.path.expanduser(self.data_dir or ""), os.path.expanduser(self.name)
        )
        local_only(folder, "name", "its files are mapped: copy it, or use Parquet")
        if is_folder(folder):
            parts = _parts_of_folder(os.path.abspath(folder))
        else:
            parts = _parts_on_hub(self.name, self.subset, self.revision)
        chosen, training, divided = _choose(parts, self.split, self.name)
        if divided:
            check_split(
                self.split, self.validation_fraction, f"{self.name} without splits"
            )
        chosen, skipped = _readable(chosen, self.on_error)
        training, _ = _readable(training, self.on_error)
        schema = ArrowTable(training[:1], []).schema
        fields = find_fields(schema, self.keys, self.image_key, self.label_key)
        super().__init__(
            ArrowTable(chosen, fields.columns),
            fields,
            find_classes(ArrowTable(training, []), fields.label),
            (self.split if divided else "all", self.validation_fraction),
            skipped,
        )


def _readable(paths, on_error):
    """Returns (readable files, list of (file, what is wrong with it))."""
    good, skipped = [], []
    for path in paths:
        try:
            ArrowTable([path], [])
            good.append(path)
        except ValueError as error:
            raise_if_silent(path, error)
            skipped.append(leave_out(path, str(error), on_error))
    if not good:
        raise ValueError(f"no file can be read; {skipped[0][0]}: {skipped[0][1]}")
    return good, skipped


def _choose(parts, split, name):
    """Returns (files of a split, training files, whether to split by rows)."""
    every = [path for paths in parts.values() for path in paths]

    def those_of(name):
        own = serving(name, map(split_of, parts))
        chosen = [paths for part, paths in parts.items() if split_of(part) == own]
        return [path for paths in chosen for path in paths] if own else []

    training = those_of("train") or every
    if split == "all":
        return every, training, False
    if len(parts) > 1:
        # Any other split is requested by its own name.
        named = those_of(split) if split in SPLIT_NAMES else parts.get(split)
        if named:
            return named, training, False
    if len(parts) == 1:
        return every, training, True
    raise ValueError(f'{name} has no split "{split}"; it has {", ".join(parts)}, all')


def _parts_of_folder(folder):
    """Split -> Arrow files, of a folder written by `save_to_disk`."""
    splits = os.path.join(folder, _SPLITS)
    if state_of(splits):
        names = _read_json(splits).get("splits")
        if not isinstance(names, list) or not names:
            raise ValueError(f"{splits} names no splits")
        return {str(n): _files_of(os.path.join(folder, str(n))) for n in names}
    if not state_of(os.path.join(folder, _STATE)):
        raise ValueError(
            f"{folder} has neither {_STATE} nor {_SPLITS}: it is no folder of "
            "save_to_disk; for Parquet files give data.source=parquet, for images "
            "data.source=folder"
        )
    return {"": _files_of(folder)}


def _files_of(folder):
    state = os.path.join(folder, _STATE)
    entries = _read_json(state).get("_data_files")
    try:
        names = [entry["filename"] for entry in entries]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{state} names no files") from error
    # A data set may come from anyone, and must not name files elsewhere.
    if not names or any(os.path.basename(str(n)) != n for n in names):
        raise ValueError(f"{state} names no files of its folder")
    return [os.path.join(folder, name) for name in names]


def _read_json(path):
    try:
        found = parse_json(read_file(path, MAX_TEXT))
    except Unreachable:
        raise
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds no object")
    return found


def _parts_on_hub(name, subset, revision):
    """Split -> Arrow files in the cache of `datasets`, downloaded if needed."""
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        raise ValueError(f"folder {name} does not exist")
    try:
        import datasets
    except ImportError as error:
        raise ValueError(
            f"{name} is no folder, and sets on the hub need the library datasets, "
            f"{_LEAST} or later: pip install 'ldm-jax[datasets]'"
        ) from error
    # Earlier versions may run code that comes with the set.
    if int(datasets.__version__.split(".")[0]) < _LEAST:
        raise ValueError(
            f"sets on the hub need the library datasets from {_LEAST} on, and "
            f"{datasets.__version__} is installed: pip install -U 'ldm-jax[datasets]'"
        )
    try:
        found = datasets.load_dataset(name, subset, revision=revision)
    # It may raise errors of networks, files and many formats.
    except Exception as error:
        text = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"{name} is no folder, and it cannot be had from the hub: {text}"
        ) from error
    parts = {
        split: [entry["filename"] for entry in part.cache_files]
        for split, part in found.items()
    }
    empty = [split for split, files in parts.items() if not files]
    if empty:
        raise ValueError(f"{name} left no files of split {empty[0]} in the cache")
    return parts
