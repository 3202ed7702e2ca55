"""How a PNG is to be turned, without its pixels.

The chunks that say so may stand behind these, so that Pillow decodes all of them first.
"""

import struct
import zlib

from ldm_jax.images.decoding import open_image, turn_of

SIGNATURE = b"\x89PNG\r\n\x1a\n"

# What the turn may be said in: Exif data, XMP, and Exif data as text of ImageMagick.
_SAYS = (b"eXIf", b"iTXt", b"tEXt", b"zTXt")


def turn_of_png(data: bytes) -> int:
    """Reads how a PNG is to be turned, as `turn_of` does; damaged data turn nothing.

    Args:
      data: The whole file.

    Returns:
      Value of the Exif tag.
    """
    before, after = [], []
    found, at = before, len(SIGNATURE)
    while at + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        if kind == b"IDAT":
            found = after
        elif kind in _SAYS:
            found.append(data[at : at + 12 + length])
        at += 12 + length
    if not before and not after:
        return 1
    # One grey pixel in place of all.
    head = _chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0))
    pixel = _chunk(b"IDAT", zlib.compress(b"\0\0"))
    small = [SIGNATURE, head, *before, pixel, *after, _chunk(b"IEND", b"")]
    try:
        with open_image(b"".join(small)) as image:
            return turn_of(image)
    except Exception:
        return 1


def _chunk(kind, data):
    return (
        struct.pack(">I", len(data))
        + kind
        + data
        + struct.pack(">I", zlib.crc32(kind + data))
    )
