"""Scans a shard once: finds its examples and makes the contents of its index.

The layout is that of WebDataset: `dir/key.jpg`, `dir/key.txt`, `dir/key.depth.png` are
one example with the key "dir/key", which ends at the first dot of the name; the rest
is the suffix, in lower case. The members of an example need not be adjacent.
"""

import hashlib
import re
from typing import Any

import numpy as np

from ldm_jax.annotations import Shaped
from ldm_jax.data.filters.tables import MOST_COLUMNS, Table
from ldm_jax.data.modalities import MODALITIES
from ldm_jax.data.sidecars import ARRAY_SUFFIX, IMAGE_SUFFIXES
from ldm_jax.data.splits import place_of
from ldm_jax.data.tar.index_file import MEMBER
from ldm_jax.data.tar.members import (
    FOLDER,
    REGULAR,
    Damaged,
    read_members,
)
from ldm_jax.errors import Unreachable
from ldm_jax.images import find_size
from ldm_jax.reading import MAX_TEXT, Read, parse_json

# Maximum size of the name of a class in bytes.
_MOST_LABEL = 4096

# Maximum number of suffixes in a shard: their numbers have 16 bits.
_MOST_SUFFIXES = 2**16 - 1

# The column of `.cls`; a field of JSON of that name is ignored.
LABELS = ".cls"

# Members with metadata of a shard, which are not examples.
_ABOUT = re.compile(r"__[^.]*__(\..*)?", re.DOTALL)

# The directory, the name up to its first dot, and the suffix.
_NAME = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)", re.DOTALL)


def scan(
    read: Read, total: int
) -> tuple[dict[str, Any], dict[str, Shaped[np.ndarray, "..."]]]:
    """Makes the index of a shard; see `index_file.py`.

    Args:
      read: (offset, size) -> `size` bytes of the shard, fewer at its end.
      total: Size of the shard in bytes.

    Returns:
      (header, arrays). The header has "suffixes", their names in the order of their
      numbers, and "counts", how many examples have them;
      "problems", a list of [name of a member, what is wrong with it]; "fields", name of
      a field of `.json` -> number of examples that have it; "columns", see
      `pack_column`; "digest", a hash of keys, suffixes and sizes.
      Arrays are "starts" [N + 1], where the rows of an example begin in "members";
      "places" [N], see `splits.place_of`; "key_starts" [N + 1] and "keys", bytes of
      UTF-8; and those of the columns.
    """
    shard = _Shard(read)
    try:
        for member in read_members(read, total):
            shard.add(member)
    except Damaged as error:
        shard.problems.append(["", str(error)])
    return shard.index()


class _Shard:
    """The examples and problems found so far."""

    def __init__(self, read):
        self._read = read
        self._examples = {}
        self._suffixes = {}
        # Metadata; field -> number of examples that have it.
        self._table, self._labels, self._fields = Table(), Table(), {}
        self.problems, self._said = [], set()

    def add(self, member):
        """Adds a member."""
        name = member.name.removeprefix("./")
        parts = name.split("/")
        # Hidden files are ignored as in folders; archives of macOS have a shadow of
        # every file, and WebDataset has members about a shard, e.g. __meta__.
        hidden = parts[-1].startswith(".") or "__MACOSX" in parts
        hidden = hidden or _ABOUT.fullmatch(parts[-1])
        if member.kind == FOLDER or hidden:
            return
        if member.kind not in REGULAR:
            self.problems.append([name, "a link, a sparse file or a device: not read"])
            return
        match = _NAME.fullmatch(name)
        if not match:
            self.problems.append([name, "no example: its name has no suffix"])
            return
        key, suffix = match[1], match[2].lower()
        if suffix not in self._suffixes and len(self._suffixes) > _MOST_SUFFIXES:
            self._say_once(
                f"members of more than {_MOST_SUFFIXES:,} suffixes are left out, as "
                f".{suffix[:100]}: what names an example ends at the first dot"
            )
            return
        number = self._suffixes.setdefault(suffix, len(self._suffixes))
        example, members = self._examples.setdefault(key, (len(self._examples), {}))
        if number in members:
            self.problems.append([name, "a second member of that name: left out"])
            return
        height, width = self._size(member) if _is_image(suffix) else (0, 0)
        members[number] = (member.offset, member.size, height, width, number)
        if suffix == "json":
            self._add_fields(example, name, member)
        elif suffix == "cls":
            self._add_label(example, name, member)

    def _size(self, member):
        try:
            width, height = find_size(
                lambda at, count: self._read(member.offset + at, count), member.size
            )
        except Unreachable:
            # Otherwise the index would permanently list the image without a size.
            raise
        except (ValueError, OSError, MemoryError):
            # Loading it fails, too, and it is counted then.
            return 0, 0
        return height, width

    def _add_fields(self, example, name, member):
        if member.size > MAX_TEXT:
            self.problems.append(
                [name, f"{member.size:,} bytes: its fields are unread"]
            )
            return
        try:
            fields = parse_json(self._read(member.offset, member.size))
        except ValueError as error:
            self.problems.append([name, f"no JSON, its fields are missing: {error}"])
            return
        if isinstance(fields, dict):
            for field in fields:
                known = field in self._fields or len(self._fields) < MOST_COLUMNS
                if fields[field] is not None and known and field != LABELS:
                    self._fields[field] = self._fields.get(field, 0) + 1
            self._table.add(example, fields)
            if self._table.left_out is not None:
                self._say_once(
                    f"more than {MOST_COLUMNS:,} fields of .json: others are no "
                    f"columns, as {self._table.left_out[:100]!r}"
                )

    def _add_label(self, example, name, member):
        try:
            text = self._read(member.offset, min(member.size, _MOST_LABEL))
        except Damaged as error:
            self.problems.append([name, f"its class is missing: {error}"])
            return
        label = text.decode("utf-8", "replace").strip()
        self._labels.put(example, LABELS, label)

    def _say_once(self, problem):
        """Adds a problem of the shard unless one of the same kind was added before."""
        kind = problem.partition(", as ")[0]
        if kind not in self._said:
            self._said.add(kind)
            self.problems.append(["", problem])

    def index(self):
        """Makes (header, arrays) of the index."""
        rows = [list(members.values()) for _, members in self._examples.values()]
        starts = np.cumsum([0, *map(len, rows)])
        members = np.array([row for part in rows for row in part], MEMBER)
        keys = [key.encode("utf-8", "backslashreplace") for key in self._examples]
        blob = b"".join(keys)
        arrays = {
            "starts": starts.astype("<u4"),
            "members": members,
            "places": np.fromiter(map(place_of, keys), "<u8", len(keys)),
            "key_starts": np.cumsum([0, *map(len, keys)]).astype("<u8"),
            "keys": np.frombuffer(blob, "|u1"),
        }
        columns = {}
        # A field of that name is ignored: the name is reserved for `.cls`.
        named = [(LABELS, self._labels)] if self._labels.names else []
        named += [(n, self._table) for n in self._table.names if n != LABELS]
        for number, (name, table) in enumerate(named):
            columns[name], own = table.pack(name, len(keys))
            columns[name]["number"] = number
            arrays |= {f"{key} {number}": array for key, array in own.items()}
        header = {
            "suffixes": list(self._suffixes),
            "counts": np.bincount(
                members["suffix"], minlength=len(self._suffixes)
            ).tolist(),
            "problems": [[printable(name), why] for name, why in self.problems],
            "fields": self._fields,
            "columns": columns,
            "digest": _digest(arrays, self._suffixes),
        }
        return header, arrays


def _is_image(suffix):
    """Whether a suffix may be that of an image, and not of a map beside one."""
    return f".{suffix.rpartition('.')[2]}" in (*IMAGE_SUFFIXES, ARRAY_SUFFIX) and (
        f".{suffix}" not in {row.suffix for row in MODALITIES.values()}
    )


def _digest(arrays, suffixes):
    digest = hashlib.blake2b(" ".join(suffixes).encode(), digest_size=16)
    members = arrays["members"]
    for array in (arrays["starts"], members["size"], members["suffix"], arrays["keys"]):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def printable(name: str) -> str:
    """Escapes control characters, which could affect a terminal.

    Args:
      name: Name of a member, possibly of an untrusted archive.

    Returns:
      Text of one line.
    """
    if name.isprintable():
        return name
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in name)
