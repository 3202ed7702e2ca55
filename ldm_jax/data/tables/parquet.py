"""The source "parquet": Parquet files, such as those of sets on Hugging Face's hub."""

import dataclasses
import glob
import os
import re
from collections.abc import Sequence

from absl import logging

from ldm_jax.data.splits import check_split, serving, split_of
from ldm_jax.data.tables.fields import find_fields
from ldm_jax.data.tables.footers import open_files
from ldm_jax.data.tables.kinds import are_alike
from ldm_jax.data.tables.row_groups import ParquetTable, join_schemas
from ldm_jax.data.tables.table_source import TableSource, find_classes, leave_out
from ldm_jax.data.tar.byte_ranges import file_system, reach
from ldm_jax.data.tar.patterns import find_below
from ldm_jax.data.tar.shards import address, expand, find_shards
from ldm_jax.reading import is_folder
from ldm_jax.store import is_remote

SUFFIX = ".parquet"

# Bytes that a row may cost in random order without a warning.
_DEAR = 2**25


@dataclasses.dataclass(eq=False, repr=False)
class ParquetSource(TableSource):
    """Rows of Parquet files as examples; can be pickled.

    If the names or folders of the files contain their split
    (`train-00000-of-00010.parquet`, `validation/0.parquet`), that is used. Otherwise
    rows are split by a hash of the file's name and the row's number in it: "validation"
    (and "test") gets `validation_fraction` of the rows, "train" the others.

    Attributes:
      name: A file, a folder of files, a pattern with `*`, with a range {00000..00099}
        or a list {a,b} in braces, or several of these.
      split: "train", "validation", "test" or "all".
      data_dir: Folder that a relative `name` is relative to.
      image_key: Column of the images; None takes "image", or the only such column.
      label_key: Column of the classes; None takes "label" if there is one, ""
        takes none.
      validation_fraction: Held-out fraction, in (0, 1), if the names of the files
        contain no splits; None to hold nothing out.
      keys: Further columns that examples should have; dots lead into structs
        ("objects.bbox"), and rows of MODALITIES list more names (`prepared`).
      cache_gb: Memory for row groups in each process, in 10^9 bytes.
      on_error: "raise" rejects a set with a damaged file, "skip" leaves the file out.

    Raises:
      ValueError: If there is no such file, split or column, row groups are larger than
        the cache, or an option is out of range.
      Unreachable: If they are in a store that does not answer.
    """

    name: str | Sequence[str]
    split: str
    data_dir: str | None = None
    image_key: str | None = None
    label_key: str | None = None
    validation_fraction: float | None = 0.05
    keys: Sequence[str] = ()
    cache_gb: float = 1.0
    on_error: str = "skip"

    def __post_init__(self):
        check_split(self.split, self.validation_fraction, "a set of Parquet files")
        shards = find_shards(_below(self.name, self.data_dir), self.data_dir, SUFFIX)
        self.remote = any(is_remote(shard.path) for shard in shards)
        files, skipped = _usable(open_files(shards), shards, self.on_error)
        schema = join_schemas(files)
        fields = find_fields(schema, self.keys, self.image_key, self.label_key)
        files, strange = _alike(files, schema, fields.columns, self.on_error)
        chosen, training, by_name = _choose(shards, files, self.split)
        most = self.cache_gb * 1e9
        _check_cost(chosen, fields.columns, most)
        classes = find_classes(ParquetTable(training, [], 0), fields.label)
        super().__init__(
            ParquetTable(chosen, fields.columns, most),
            fields,
            classes,
            ("all" if by_name else self.split, self.validation_fraction),
            skipped + strange,
        )


def _below(name, data_dir):
    """Replaces folders by the files in them and their subfolders."""
    found = []
    names = [name] if isinstance(name, str) else list(name)
    for one in [path for given in names for path in expand(str(given))]:
        root = os.path.join(os.path.expanduser(data_dir or ""), os.path.expanduser(one))
        if is_remote(root):
            folder = not root.endswith(SUFFIX) and not glob.has_magic(root)
        else:
            folder = is_folder(root)
        if not one or not folder:
            found.append(one)
            continue
        below = (
            _list_remote(root)
            if is_remote(root)
            else find_below(os.path.abspath(root), "**", f"*{SUFFIX}")
        )
        if not below:
            raise ValueError(f"no {SUFFIX} files in {root} or below")
        found += below
    return found


def _list_remote(root):
    system, inside = file_system(root)
    found = reach(root, lambda: system.find(inside))
    scheme = root.partition("://")[0]
    return sorted(address(scheme, path) for path in found if path.endswith(SUFFIX))


def _usable(found, shards, on_error):
    """Returns (readable files, list of (path, what is wrong) of the others)."""
    files, skipped = [], []
    for file, shard in zip(found, shards, strict=True):
        if isinstance(file, str):
            skipped.append(leave_out(shard.path, file, on_error))
        elif file.starts[-1]:
            files.append(file)
    if not files:
        where, reason = skipped[0] if skipped else (shards[0].path, "it has no rows")
        raise ValueError(f"no rows in {len(shards)} files; {where}: {reason}")
    return files, skipped


def _alike(files, schema, columns, on_error):
    """Leaves out files whose columns are not compatible with those of the others."""
    alike, skipped = [], []
    types = {name: schema.field(name).type for name in columns}
    for file in files:
        there = {f.name: f.type for f in file.schema}
        wrong = [
            name
            for name, held in types.items()
            if name not in there or not are_alike(there[name], held)
        ]
        if wrong:
            name = wrong[0]
            reason = (
                f"its column {name} is {there.get(name, 'missing')}, and {types[name]} "
                f"in {_first_with(files, schema.field(name))}"
            )
            skipped.append(leave_out(file.shard.path, reason, on_error))
        else:
            alike.append(file)
    if not alike:
        where, reason = skipped[0]
        raise ValueError(f"no file has all columns that are needed; {where}: {reason}")
    return alike, skipped


def _first_with(files, field):
    return next(file.shard.path for file in files if field in list(file.schema))


def _choose(shards, files, split):
    """Returns (files of a split, training files, whether names determine the split).

    The names of unreadable files count, too: held-out data must not become training
    data.
    """
    splits = _splits_of([shard.path for shard in shards])
    if serving("train", splits) is None or serving("validation", splits) is None:
        return files, files, False
    by_path = dict(zip((shard.path for shard in shards), splits, strict=True))

    def those_of(name):
        own = [f for f in files if by_path[f.shard.path] == serving(name, splits)]
        if not own:
            raise ValueError(f"none of the Parquet files of {name} can be read")
        return own

    training = those_of("train")
    chosen = files if split == "all" else those_of(split)
    unused = [path for path, own in by_path.items() if own is None]
    if unused:
        logging.warning(
            "%d Parquet files are of no split by their names, as %s: only "
            'data.split="all" takes them',
            *(len(unused), unused[0]),
        )
    return chosen, training, True


def _splits_of(paths):
    """The split in each path: at the start of the file's name, or a folder's name.

    Besides the folder of a file, those above it count that not all files share.
    """
    shared = len(os.path.commonprefix([os.path.dirname(p).split("/") for p in paths]))
    found = []
    for path in paths:
        *folders, name = path.split("/")
        last = folders[min(shared, len(folders) - 1) :]
        words = [re.split(r"[-_.]", name)[0], *reversed(last)]
        found.append(next(filter(None, map(split_of, words)), None))
    return found


def _check_cost(files, columns, most):
    """Warns if rows are expensive in random order; raises if they exceed the cache."""
    costs = [sum(file.largest.get(c, 0) for c in columns) for file in files]
    largest = max(costs)
    if largest > most:
        raise ValueError(
            f"{files[costs.index(largest)].shard.path} has row groups of "
            f"{largest / 1e9:.2f} GB, more than data.cache_gb={most / 1e9:g}: raise "
            "that (three times as much memory is needed while one is read), write the "
            "files with a smaller row_group_size, or load the set with "
            "data.source=huggingface, whose files give single rows"
        )
    if largest > _DEAR:
        logging.warning(
            "the row groups of these Parquet files have up to %.0f MB, and each row "
            "that is not in the cache of %.1f GB costs a whole one: write them with a "
            "smaller row_group_size, or load the set with data.source=huggingface, "
            "whose files give single rows",
            largest / 1e6,
            most / 1e9,
        )
