"""Reads the sizes of images from their headers, without decoding.

They are the sizes of the results of `decode`, transposed by the Exif orientation.
"""

import io
import struct

import numpy as np
from PIL import ExifTags, Image

from ldm_jax.errors import DecodeError
from ldm_jax.images.decoding import size_of
from ldm_jax.images.png_orientation import SIGNATURE, orientation_of_png
from ldm_jax.reading import Read

# Bytes that are read first, and next if these are not enough. Pillow is tried last; it
# fails for junk.
_READ = (4096, 2**16, 2**26)

# Sides are stored in 32 signed bits.
_MOST_SIDE = 2**31 - 1

# Markers of JPEG: start of frame, those without a length, and what ends the header.
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_BARE = frozenset((0x01, *range(0xD0, 0xD8)))
_ENDS = frozenset((0xD9, 0xDA))

# Magic bytes of TIFF in either byte order, and of BigTIFF (more than 4 GB).
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

# Formats whose size or orientation may be stored anywhere in the file.
_ANYWHERE = (SIGNATURE, *_TIFF)

# Tags of TIFF: width, height and orientation; and the types of integers.
_TIFF_WIDTH, _TIFF_HEIGHT, _TIFF_TURN = 256, 257, 274
_TIFF_TYPES = {1: "B", 3: "H", 4: "I", 16: "Q"}

# Magic bytes of NumPy arrays, and the maximum size of their header.
_NPY, _MOST_NPY = b"\x93NUMPY", 2**14

# Maximum number of fields of a TIFF that are read.
_MOST_FIELDS = 1000

# Orientations that swap width and height.
_SIDEWAYS = (5, 6, 7, 8)

# Marks of orientations outside of Exif data, which only Pillow interprets.
_ODD = (b"tiff:Orientation", b"Raw profile type exif")

Size = tuple[int, int]


def find_size(read: Read, length: int) -> Size:
    """Finds the size of an encoded image; at most 64 MiB of it are read.

    Args:
      read: (first byte, number of bytes) -> bytes of the image.
      length: Number of bytes of the image.

    Returns:
      (width, height) in pixels, below 2^31.

    Raises:
      DecodeError: If it is not an image, or those bytes do not contain the size.
    """

    def within(at, count):
        return read(at, max(0, min(count, length - at)))

    for count in _READ:
        data = within(0, count)
        if data.startswith(_ANYWHERE):
            found = _anywhere(within, length)
        else:
            found = size_in(data)
        if found:
            return found
        if count >= length or (data.startswith(_NPY) and count > _MOST_NPY):
            break
    if data.startswith(_NPY):
        raise DecodeError("its header is not that of a NumPy array")
    return _checked(size_of(data))


def size_in(data: bytes) -> Size | None:
    """Finds the size of an encoded image in its first bytes.

    For a TIFF it is the size of all pages, as for `decode_pixels`.

    Args:
      data: The first bytes, or all; a PNG or a TIFF may store it anywhere.

    Returns:
      (width, height) in pixels; None if these bytes do not contain the size.

    Raises:
      DecodeError: If a side has 2^31 pixels or more, or an array is not an image.
    """
    if data.startswith(_ANYWHERE):
        return _anywhere(lambda at, count: data[at : at + count], len(data))
    for magic, reader in _READERS.items():
        if data.startswith(magic):
            return _by(reader, data)
    return None


def _anywhere(read, length):
    """Size of an image whose format may store it anywhere."""
    return _by(_png if read(0, 1) == SIGNATURE[:1] else _tiff, read, length)


def _by(reader, *data):
    try:
        found = reader(*data)
    except (struct.error, IndexError):
        return None
    return _checked(found) if found and min(found) > 0 else None


def _checked(size):
    if max(size) > _MOST_SIDE:
        raise DecodeError(f"{size[0]} x {size[1]} pixels: no image has so many")
    return size


def _jpeg(data):
    at, turned = 2, False
    while data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF or marker in _BARE:
            at += 1 if marker == 0xFF else 2
            continue
        if marker in _ENDS:
            return None
        (length,) = struct.unpack_from(">H", data, at + 2)
        if marker in _FRAMES:
            height, width = struct.unpack_from(">HH", data, at + 5)
            return (height, width) if turned else (width, height)
        if marker == 0xE1:
            part = data[at + 4 : at + 2 + length]
            if len(part) < length - 2 or any(word in part for word in _ODD):
                return None
            if part.startswith(b"Exif\0\0"):
                turned = _is_turned(part)
        at += 2 + length
    return None


def _png(read, length):
    size = struct.unpack(">II", read(16, 8))
    orientation = orientation_of_png(read, length)
    if orientation is None:
        return None
    return size[::-1] if orientation in _SIDEWAYS else size


def _webp(data):
    kind = data[8:16]
    if kind == b"WEBPVP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return width & 0x3FFF, height & 0x3FFF
    if kind == b"WEBPVP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    # Exif data and XMP are at the end of the file.
    if kind == b"WEBPVP8X" and not data[20] & 0x0C and len(data) >= 30:
        width, height = data[24:27], data[27:30]
        return int.from_bytes(width, "little") + 1, int.from_bytes(height, "little") + 1
    return None


def _npy(data):
    with io.BytesIO(data) as file:
        version = np.lib.format.read_magic(file)
        read = getattr(np.lib.format, f"read_array_header_{version[0]}_0", None)
        # The header is a Python literal: a malicious one may raise nearly anything.
        try:
            shape, *_ = read(file)
        except Exception:
            return None
    if len(shape) not in (2, 3):
        # Reading more would not help, and it may be large: an embedding, or a latent.
        raise DecodeError(f"an array of {len(shape)} dimensions is no image")
    return shape[1::-1]


def _tiff(read, length):
    """Size of the first page; pages that are decoded with it have the same size."""
    del length
    head = read(0, 16)
    order = "<" if head[:1] == b"I" else ">"
    # Files of more than 4 GB have 64-bit offsets.
    large = head[2:4] in (b"+\0", b"\0+")
    number, first = ("Q", 8) if large else ("I", 4)
    (at,) = struct.unpack_from(order + number, head, first)
    counts, entry = ("Q", 20) if large else ("H", 12)
    (count,) = struct.unpack(f"{order}{counts}", read(at, struct.calcsize(counts)))
    count = min(count, _MOST_FIELDS)
    rows = read(at + struct.calcsize(counts), count * entry)
    found = {}
    for start in range(0, count * entry, entry):
        tag, kind = struct.unpack_from(f"{order}HH", rows, start)
        if tag in (_TIFF_WIDTH, _TIFF_HEIGHT, _TIFF_TURN) and kind in _TIFF_TYPES:
            at = start + 4 + struct.calcsize(number)
            (found[tag],) = struct.unpack_from(order + _TIFF_TYPES[kind], rows, at)
    if not found.keys() >= {_TIFF_WIDTH, _TIFF_HEIGHT}:
        return None
    size = found[_TIFF_WIDTH], found[_TIFF_HEIGHT]
    return size[::-1] if found.get(_TIFF_TURN) in _SIDEWAYS else size


def _gif(data):
    return struct.unpack_from("<HH", data, 6)


def _is_turned(exif):
    """Whether Exif data swap width and height; False if they are damaged."""
    try:
        found = Image.Exif()
        found.load(exif)
        return found.get(ExifTags.Base.Orientation, 1) in _SIDEWAYS
    except Exception:
        return False


# First bytes -> function that reads the size.
_READERS = {
    b"\xff\xd8\xff": _jpeg,
    b"RIFF": _webp,
    b"GIF8": _gif,
    _NPY: _npy,
}
