"""Reads a folder of image files, with one sub-folder per class or none.

Side information of an image, such as a caption, is in files beside it; see
`sidecars.py`.
"""

import hashlib
import itertools
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import logging

from ldm_jax.annotations import Int, Shaped
from ldm_jax.data.filters.surveys import survey, survey_sizes
from ldm_jax.data.filters.tables import MOST_COLUMNS, make_table, with_sizes
from ldm_jax.data.folder.listing import find_parts, list_images
from ldm_jax.data.sidecars import (
    ARRAY_SUFFIX,
    IMAGE_SUFFIXES,
    MissingFile,
    find_sidecars,
    read_sidecar,
)
from ldm_jax.data.splits import (
    check_split,
    in_split,
    place_of,
    serving,
    split_of,
)
from ldm_jax.errors import Unreachable
from ldm_jax.images import find_size, require_memory
from ldm_jax.reading import (
    MAX_TEXT,
    answering,
    is_folder,
    open_file,
    parse_json,
    parts_of,
    read_file,
    state_of,
)
from ldm_jax.store import local_only, raise_if_silent

# Number of files whose size is part of the fingerprint.
_SIZES = 1024


class FolderSource:
    """The images of a folder in the order of their paths; can be pickled.

    In a folder without image files, arrays in `.npy` are the images, for example of
    many channels.

    A folder that has sub-folders for training and for validation or test (SPLIT_NAMES
    in `splits.py`) is split that way; several of one split are merged. Any other is
    split by a hash of each file's path: "validation" (and "test") gets
    `validation_fraction` of the files, at least one, "train" the others, and "all" is
    everything. A file stays in its split when others are added or removed.

    The first-level sub-folders are the classes, in the order of their names, if every
    image is in one of them; otherwise there are no labels.

    Attributes:
      num_classes: Number of classes, or None.
      class_names: Their names, or None.
      skipped: List of (where, reason) of folders and metadata that cannot be read.
    """

    def __init__(
        self,
        name: str,
        split: str,
        data_dir: str | os.PathLike | None = None,
        label_key: str | None = None,
        validation_fraction: float | None = 0.05,
        keys: Sequence[str] = (),
        box_names: Sequence[str] = (),
        optional: Sequence[str] = (),
    ) -> None:
        """Finds the files.

        Args:
          name: Path of the folder, relative to `data_dir` if that is given.
          split: "train", "validation", "test" or "all".
          data_dir: Folder that `name` is relative to; None for the current one.
          label_key: "" ignores the classes; there is no other label to choose.
          validation_fraction: Held-out fraction of the files, in (0, 1); None to hold
            nothing out.
          keys: Keys that examples should have besides image and label; see
            `sidecars.py`.
          box_names: Names of the classes of boxes in the order of their numbers;
            without them boxes are labelled by numbers.
          optional: Those of `keys` that an example may lack.

        Raises:
          ValueError: If there is no such folder, it holds no images, or an argument is
            out of range.
        """
        _check(split, label_key, validation_fraction)
        self._root = _find_root(name, data_dir)
        # Arrays are the images if there are no others.
        for suffixes in (IMAGE_SUFFIXES, (ARRAY_SUFFIX,)):
            parts = find_parts(self._root, suffixes)
            listed, unread = {}, {}
            for part in parts:
                place = os.path.join(self._root, part)
                listed[part], unread[part] = list_images(place, suffixes)
            if any(listed.values()):
                break
        else:
            looked_for = ", ".join((*IMAGE_SUFFIXES, ARRAY_SUFFIX))
            raise ValueError(
                f"no images in {self._root} or below; looked for {looked_for}"
            )
        training = [file for part in _of_split(parts, "train") for file in listed[part]]
        names = None if label_key == "" else _class_names(training)
        if names:
            for part in _of_split(parts, "train"):
                _require_classes(os.path.join(self._root, part), unread[part])
        if len(parts) > 1 and split != "all":
            chosen = [(part, None) for part in _of_split(parts, split)]
        else:
            chosen = [(part, split) for part in parts]
        paths, labels = [], []
        for part, side in chosen:
            files = listed[part]
            if side and len(parts) == 1:
                files = _one_side(files, side, validation_fraction)
            paths += [os.fsencode(os.path.join(part, file)) for file in files]
            labels += _find_labels(self._root, part, files, names)
        if not paths:
            raise ValueError(f'no images for split "{split}" in {self._root}')
        self.class_names, self.num_classes = names, len(names) if names else None
        self._sizes, self._names, self._columns = None, None, {}
        # Only of this split: training does not need held-out folders, nor vice versa.
        self._table = None
        self.skipped = [entry for part, _ in chosen for entry in unread[part]]
        self._sidecars, self._box_names = find_sidecars(keys), tuple(box_names)
        self._optional = frozenset(optional)
        # Arrays, as they are pickled for every worker and may have millions of entries.
        self._paths, self._labels = np.array(paths), np.array(labels, np.int32)

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns {"image": the file's bytes, "label": int if known, further keys}."""
        path = self.describe(index)
        example = {"image": read_file(path, require_memory)}
        if self.class_names:
            example["label"] = int(self._labels[index])
        for sidecar in self._sidecars:
            try:
                example |= read_sidecar(path, sidecar, self._box_names)
            except MissingFile:
                if not self._optional.issuperset(sidecar.keys):
                    raise
        return example

    def fingerprint(self) -> str:
        """Identifies the folder and which files it holds.

        Returns:
          Hash of the relative paths, the classes and the sizes of some of the files.
        """
        digest = hashlib.blake2b(digest_size=16)
        # Looking up the sizes of millions of files would take too long.
        every = -(-len(self._paths) // _SIZES)
        for index, (path, label) in enumerate(
            zip(self._paths, self._labels, strict=True)
        ):
            size = self._bytes_of(index) if index % every == 0 else ""
            digest.update(b"%s\0%d %s\0" % (bytes(path), label, str(size).encode()))
        return digest.hexdigest()

    def _bytes_of(self, index):
        """Size of a file; "unknown" if it cannot be read or no longer exists."""
        path = self.describe(index)
        try:
            with answering(path):
                return os.stat(path).st_size
        except Unreachable:
            raise
        # It is logged when it is loaded.
        except OSError:
            return "unknown"

    def sizes(self) -> Int[np.ndarray, "N 2"]:
        """Reads the sizes of the images from their files' headers, once.

        Returns:
          int32 [N, 2], (height, width) in pixels; zeros where a header is damaged.
        """
        if self._sizes is None:
            self._sizes = survey_sizes(len(self), self._size_of, self._root)
        return self._sizes

    def _size_of(self, index):
        with open_file(self.describe(index), require_memory) as file:
            return find_size(*parts_of(file))

    @property
    def column_names(self) -> tuple[str, ...]:
        """Names of the columns: fields of `.json`, "width" and "height"."""
        if self._names is None:
            self._tabulate()
        return tuple(sorted({*self._names, "width", "height"}))

    def columns(self, names: Sequence[str]) -> dict[str, Shaped[np.ndarray, " N"]]:
        """Reads metadata from the `.json` beside each image.

        These are read once for the first columns requested, which are cached, and again
        for any others: all fields together may be gigabytes.

        Args:
          names: Some of `column_names`.

        Returns:
          Name -> array [N] of float64 (NaN where missing), bool, or objects.
        """
        found = with_sizes(self.sizes, self._column, names)
        self._table = None
        return found

    def _column(self, name):
        if name not in self._columns:
            if self._table is None:
                self._tabulate()
            self._columns[name] = self._table.column(name, len(self))
        return self._columns[name]

    def _tabulate(self):
        where = f"metadata of {self._root}"
        self._table = make_table(survey(len(self), self._fields_of, where))
        self._names = self._table.names
        if self._table.left_out is not None:
            logging.warning(
                "%s has more than %d fields: others are no columns, as %r",
                *(where, MOST_COLUMNS, self._table.left_out[:100]),
            )

    def _fields_of(self, index):
        """Fields of the `.json` beside an image; None if they cannot be read."""
        path = os.path.splitext(self.describe(index))[0] + ".json"
        try:
            fields = parse_json(read_file(path, MAX_TEXT))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise_if_silent(path, error)
            self.skipped.append((path, f"no JSON, its fields are missing: {error}"))
            logging.warning("%s: %s", *self.skipped[-1])
            return None
        return fields if isinstance(fields, dict) else None

    def __getstate__(self):
        # Workers do not need these.
        return self.__dict__ | {"_sizes": None, "_table": None, "_columns": {}}

    def describe(self, index: int) -> str:
        """Describes an example, for messages.

        Args:
          index: Its position.

        Returns:
          The image's path.
        """
        return os.path.join(self._root, os.fsdecode(bytes(self._paths[index])))


def _check(split, label_key, validation_fraction):
    check_split(split, validation_fraction, "a folder")
    if label_key:
        raise ValueError(
            f'label_key="{label_key}": the labels of a folder are its sub-folders; '
            'give None for them or "" for no labels'
        )


def _find_root(name, data_dir):
    if not name:
        raise ValueError("name is empty; give data.name, the path of the folder")
    root = os.path.join(os.path.expanduser(data_dir or ""), os.path.expanduser(name))
    advice = "put the images into tar shards, which are read anywhere, or copy it"
    root = os.path.abspath(local_only(root, "name", advice))
    if not is_folder(root):
        what = "is a file" if state_of(root) else "does not exist"
        raise ValueError(f"folder {root} {what}; data.name is the path of the folder")
    return root


def _of_split(parts, split):
    """The sub-folders to use for a split; all if none of them is a split."""
    found = serving(split, map(split_of, parts))
    return [part for part in parts if split_of(part) == found] if found else parts


def _class_names(files):
    """Names of the first-level sub-folders, or None if an image is in none of them."""
    tops = [file.split(os.sep, 1) for file in files]
    if not tops or any(len(top) == 1 for top in tops):
        return None
    return tuple(sorted({top[0] for top in tops}))


def _require_classes(folder, unread):
    """Raises if a class may be missing, as the labels of others would then be wrong."""
    for path, reason in unread:
        if os.path.dirname(path) == folder.rstrip(os.sep):
            raise ValueError(
                f"{path} {reason}, and folders beside it are classes, whose labels "
                "count them: see that it may be read, move it away, or give "
                'label_key="" to do without labels'
            )


def _find_labels(root, part, files, names):
    """Class index of each file; -1 if there are no classes."""
    if names is None:
        return [-1] * len(files)
    index = {name: label for label, name in enumerate(names)}
    labels = [index.get(file.split(os.sep, 1)[0], -1) for file in files]
    if -1 in labels:
        stray = os.path.join(root, part, files[labels.index(-1)])
        raise ValueError(
            f"{stray} is in none of the {len(names)} class folders of the training "
            'images; move it, or give label_key="" to do without labels'
        )
    return labels


def _one_side(files, split, fraction):
    """The files of one split by hash."""
    names = (os.fsencode(file.replace(os.sep, "/")) for file in files)
    places = np.fromiter(map(place_of, names), np.uint64, len(files))
    return list(itertools.compress(files, in_split(places, split, fraction)))
