"""Decodes maps of classes, depth or vectors that come with images.

Each is the `decode` of a row of MODALITIES in `data/modalities.py`.
"""

from typing import Any

import numpy as np

from ldm_jax.annotations import Float, Shaped
from ldm_jax.errors import DecodeError
from ldm_jax.images.decoding import decode, decode_plane

# The largest signed 32-bit integer.
_MOST = np.iinfo(np.int32).max


def decode_labels(
    data: Any, least_side: int | None = None
) -> Shaped[np.ndarray, "height width"]:
    """Decodes a map of one channel without conversion; for a row's `decode`.

    Args:
      data: Encoded bytes, a path, or an array [H, W] or [H, W, 1].
      least_side: Not used.

    Returns:
      Array [H, W] of the file's own numbers.

    Raises:
      DecodeError: If it cannot be read, has several channels, or has values other than
        whole numbers of 32 bits.
    """
    del least_side
    plane = decode_plane(data)
    if plane.dtype.kind == "b" or plane.dtype in (np.uint8, np.int16, np.uint16):
        return plane
    # NaN is not equal to itself.
    wrong = plane[(plane != np.rint(plane)) | (abs(plane) > _MOST)]
    if wrong.size:
        raise DecodeError(
            f"a map of classes holds {wrong[0]}: labels are whole numbers of 32 bits"
        )
    return plane


def decode_depth(
    data: Any, least_side: int | None = None
) -> Float[np.ndarray, "height width 1"]:
    """Decodes a map of one channel to floats; for a row's `decode`.

    Args:
      data: Encoded bytes, a path, or an array [H, W] or [H, W, 1].
      least_side: Not used.

    Returns:
      float32 [H, W, 1]; integers are divided by the largest number of their type.

    Raises:
      DecodeError: If it cannot be read, has several channels, is not finite, or has
        integers of more than 16 bits, whose range is unknown.
    """
    plane = decode_plane(data)
    if plane.dtype.kind in "iu" and plane.dtype.itemsize > 2:
        raise DecodeError(
            f"a depth map holds {8 * plane.dtype.itemsize}-bit integers, whose range "
            "is not known: make it 8 or 16 bits, or floats"
        )
    top = np.iinfo(plane.dtype).max if plane.dtype.kind in "iu" else 1
    depth = plane.astype(np.float32)
    depth /= np.float32(top)
    if not np.isfinite(depth).all():
        raise DecodeError("a depth map holds numbers that are not finite")
    return depth[..., None]


def decode_vectors(
    data: Any, least_side: int | None = None
) -> Float[np.ndarray, "height width channels"]:
    """Decodes a map of several channels, such as surface normals, to floats.

    Args:
      data: Encoded bytes or path of a colour image, whose values 0 to 255 are mapped to
        [-1, 1]; or an array: uint8 likewise, floats [H, W, C] unchanged.
      least_side: See `images.decode`.

    Returns:
      float32 [H, W, C].

    Raises:
      DecodeError: If it cannot be read.
    """
    if isinstance(data, np.ndarray) and data.dtype.kind == "f":
        return data.astype(np.float32)
    return np.asarray(decode(data, least_side), np.float32) / np.float32(127.5) - 1
