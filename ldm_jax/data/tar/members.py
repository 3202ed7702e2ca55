"""The members of a tar file: names, offsets and sizes, from its headers alone.

Formats are those of POSIX (ustar, pax) and of GNU tar, as Python's `tarfile` writes
and reads them. Nothing is unpacked, so names are never used as paths.
"""

from collections.abc import Iterator
from typing import NamedTuple

from ldm_jax.reading import Read

BLOCK = 512

# Kinds of members by their type flag in a header.
REGULAR, FOLDER, SPARSE = (b"0", b"\0", b"7"), b"5", b"S"

# Kinds of members without data, whatever size their header states.
_EMPTY = (b"1", b"2", b"3", b"4", FOLDER, b"6")

# Maximum size of long names and pax headers in bytes.
_MOST_NAME = 2**20

# Maximum number of digits of the length of a line in them, with the space after it.
_MOST_DIGITS = 20

# Bytes after the end mark that count as padding, up to the largest usual record size.
_PADDING = 2**20

# Magic bytes of gzip, bzip2, xz and zstd.
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")


class Damaged(ValueError):
    """The error for a tar file that cannot be read beyond some byte."""


class Member(NamedTuple):
    """A member of a tar file.

    Attributes:
      name: Its path in the archive.
      kind: Its type flag; those in REGULAR are files.
      offset: First byte of its data in the tar file.
      size: Number of bytes of its data.
    """

    name: str
    kind: bytes
    offset: int
    size: int


def read_members(read: Read, total: int) -> Iterator[Member]:
    """Lists the members of a tar file.

    Args:
      read: (offset, size) -> `size` bytes of the file, fewer at its end.
      total: Size of the file in bytes.

    Yields:
      Each Member whose data are complete, in order.

    Raises:
      Damaged: If the file cannot be read further: it is cut short or damaged there.
    """
    at, long_name, extra = 0, None, {}
    while True:
        block = read(at, BLOCK)
        if len(block) < BLOCK:
            raise Damaged(_cut(at, total))
        if at == 0 and block.startswith(_COMPRESSED):
            raise Damaged("compressed, and cannot be read by position: decompress it")
        if not block.strip(b"\0"):
            if total - at > _PADDING:
                raise Damaged(
                    f"{total - at:,} bytes after the end mark at byte {at:,} are not "
                    "read: joined tar files? give each its own file"
                )
            return
        name, kind, size = _parse(block, at)
        data = at + BLOCK
        if kind in b"LKxXg":
            at = data + _padded(size)
            if size > _MOST_NAME or at > total:
                raise Damaged(f"damaged at byte {data - BLOCK:,}: a header is too long")
            if kind == b"L":
                long_name = _text(read(data, size))
            elif kind in b"xX":
                extra = _parse_pax(read(data, size), data)
            continue
        name = extra.get("GNU.sparse.name") or extra.get("path") or long_name or name
        if any(key.startswith("GNU.sparse.") for key in extra):
            kind = SPARSE
        elif kind == SPARSE:
            data = _after_map(read, block, data)
        if "size" in extra:
            size = _number(extra["size"].encode(), 10, data)
        size = 0 if kind in _EMPTY else size
        long_name, extra = None, {}
        if data + size > total:
            raise Damaged(
                f"cut short: {name} ends at byte {data + size:,} of {total:,}"
            )
        if kind in REGULAR and name.endswith("/"):
            kind = FOLDER
        yield Member(name, kind, data, size)
        at = data + _padded(size)


def _cut(at, total):
    if total < BLOCK:
        return f"not a tar file: it has {total} bytes"
    return f"no end mark in {total:,} bytes: cut short, or still being written"


def _padded(size):
    return -(-size // BLOCK) * BLOCK


def _parse(block, at):
    """(name, kind, size) of a header."""
    stated = _number(block[148:156], 8, at)
    if stated != sum(block) - sum(block[148:156]) + 8 * ord(" "):
        # Old writers summed up signed bytes.
        signed = memoryview(block).cast("b")
        if stated != sum(signed) - sum(signed[148:156]) + 8 * ord(" "):
            raise Damaged(_damage(at))
    name = _text(block[:100])
    if block[257:263] == b"ustar\0" and block[345]:
        name = f"{_text(block[345:500])}/{name}"
    return name, block[156:157], _size(block[124:136], at)


def _damage(at):
    if at < BLOCK:
        return "not a tar file"
    return f"damaged at byte {at:,}: no header there; what follows is not read"


def _size(field, at):
    """A size: octal digits, or beyond 8 GB a binary number."""
    if field[0] != 0x80:
        return _number(field, 8, at)
    return int.from_bytes(field[1:])


def _number(field, base, at):
    try:
        number = int(field.split(b"\0")[0].strip() or b"0", base)
    except ValueError:
        number = -1
    if number < 0:
        raise Damaged(_damage(at))
    return number


def _text(data):
    return data.split(b"\0")[0].decode("utf-8", "backslashreplace")


def _parse_pax(data, at):
    """Keyword -> value of an extended header: lines "length keyword=value"."""
    found, begin = {}, 0
    end = len(data.rstrip(b"\0"))
    while begin < end:
        space = data.find(b" ", begin, begin + _MOST_DIGITS)
        length = _number(data[begin : max(begin, space)] or b"-", 10, at)
        line = data[space + 1 : begin + length]
        keyword, sign, value = line.partition(b"=")
        if not sign or not 0 < length <= len(data) - begin:
            raise Damaged(f"damaged at byte {at:,}: an extended header is wrong")
        found[_text(keyword)] = _text(value.removesuffix(b"\n"))
        begin += length
    return found


def _after_map(read, block, data):
    """First byte after the maps that follow the header of a sparse file."""
    more = block[482]
    while more:
        block = read(data, BLOCK)
        if len(block) < BLOCK:
            raise Damaged(f"cut short at byte {data:,}")
        more, data = block[504], data + BLOCK
    return data
