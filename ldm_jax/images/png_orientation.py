"""Reads the Exif orientation of a PNG without decoding its pixels.

Its chunk may come after the pixels, so that Pillow decodes all of these first. Here
only the heads of chunks are read.
"""

import struct
import zlib
from typing import NamedTuple

from ldm_jax.images.decoding import open_image, orientation_of
from ldm_jax.reading import Read

SIGNATURE = b"\x89PNG\r\n\x1a\n"

# Where it may be stored: in Exif data, or in text with one of the keywords of XMP and
# of Exif data as written by ImageMagick.
_TEXT = (b"iTXt", b"tEXt", b"zTXt")
_KEYWORDS = (b"XML:com.adobe.xmp\0", b"Raw profile type exif\0")

# Bytes that are read at the head of a chunk: its length, its kind and a keyword.
_HEAD = 8 + max(map(len, _KEYWORDS))

# Maximum number of heads to read, and of bytes of chunks that may contain it.
_MOST_HEADS, _MOST_BYTES = 2**16, 2**24


class _Chunk(NamedTuple):
    """A chunk: its kind, where it begins, how long it is, and its first bytes."""

    kind: bytes
    at: int
    length: int
    beginning: bytes


def orientation_of_png(read: Read, length: int) -> int | None:
    """Reads the orientation of a PNG as `orientation_of`; 1 if the data are damaged.

    Args:
      read: (first byte, number of bytes) -> bytes of the file, fewer at the end.
      length: Number of bytes of the file.

    Returns:
      Value of the Exif tag Orientation; None if there are no pixels.
    """
    before, after, animated, left = [], None, False, _MOST_BYTES
    for chunk in _chunks(read, length):
        if chunk.kind == b"IDAT":
            after = after or []
        elif chunk.kind == b"acTL":
            animated = chunk.beginning[:4] > b"\0\0\0\1"
        elif chunk.kind == b"fcTL" and animated and after is not None:
            # Pillow reads no further for the first of several images.
            break
        elif _says(chunk) and chunk.length <= left:
            left -= chunk.length
            found = before if after is None else after
            found.append(read(chunk.at, 12 + chunk.length))
    if after is None:
        return None
    return _orientation_in(before, after) if before or after else 1


def _says(chunk):
    if chunk.kind == b"eXIf":
        return True
    return chunk.kind in _TEXT and chunk.beginning.startswith(_KEYWORDS)


def _chunks(read, length):
    """Yields the chunks, but only some of those of pixels."""
    at, jumped = len(SIGNATURE), False
    for _ in range(_MOST_HEADS):
        head = read(at, _HEAD)
        if len(head) < 8:
            return
        size, kind = struct.unpack_from(">I4s", head)
        if kind == b"IEND":
            return
        yield _Chunk(kind, at, size, head[8:])
        step = 12 + size
        at += step
        # Mostly all chunks of pixels but the last have one size: jump to the last. If
        # that fails, read one by one: going back and forth is bad for streams.
        if kind == b"IDAT" and not jumped:
            jumped, last = True, at + (length - at) // step * step - step
            if last > at and read(last + 4, 4) == b"IDAT":
                at = last


def _orientation_in(before, after):
    """Reads the orientation from these chunks with Pillow, with one grey pixel."""
    head = _chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0))
    pixel = _chunk(b"IDAT", zlib.compress(b"\0\0"))
    small = [SIGNATURE, head, *before, pixel, *after, _chunk(b"IEND", b"")]
    try:
        with open_image(b"".join(small)) as image:
            return orientation_of(image)
    except Exception:
        return 1


def _chunk(kind, data):
    return (
        struct.pack(">I", len(data))
        + kind
        + data
        + struct.pack(">I", zlib.crc32(kind + data))
    )
