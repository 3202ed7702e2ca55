"""Files of weights of feature networks: reading, checking, checksums."""

import hashlib
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from ldm_jax.errors import ConversionError
from ldm_jax.store import is_file, local_copy
from ldm_jax.weights.files import read_weights


def read_tensors(path: str | os.PathLike, where: str) -> dict[str, Any]:
    """Reads a file of weights, lazily.

    Args:
      path: File of any format that `weights.files.read_weights` supports.
      where: Where the file can be found, for the error.

    Returns:
      Dict of key -> value that `np.asarray` turns into an array.

    Raises:
      ConversionError: If it is missing or unreadable.
    """
    path = local_copy(path)
    if not is_file(path):
        raise ConversionError(f"there is no file {path}: {where}")
    return read_weights(path).tensors


def checksum(tensors: Mapping[str, Any]) -> str:
    """Hashes the numbers of weights, independent of the format of their file.

    Args:
      tensors: Name -> array; hashed as float32, in the order of the names.

    Returns:
      The first 16 hexadecimal digits of the SHA-256 of names, shapes and numbers.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        array = np.ascontiguousarray(np.asarray(tensors[name]), "<f4")
        digest.update(f"{name} {array.shape}\n".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()[:16]


def check_tensors(
    path: str,
    tensors: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    expected: str,
) -> None:
    """Checks that the tensors of a file are those of a network.

    Args:
      path: The file, for the error.
      tensors: Dict of key -> array.
      shapes: Dict of key -> shape, all tensors of the network.
      expected: What the network is and where it can be found.

    Raises:
      ConversionError: If a tensor is missing, superfluous or of another shape.
    """
    missing = [key for key in shapes if key not in tensors]
    unknown = [key for key in tensors if key not in shapes]
    other = [
        f"{key} of shape {tensors[key].shape} instead of {shape}"
        for key, shape in shapes.items()
        if key in tensors and tuple(tensors[key].shape) != tuple(shape)
    ]
    for what, keys in (("lacks", missing), ("has", unknown), ("has", other)):
        if keys:
            more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
            raise ConversionError(f"{path} {what} {keys[0]}{more}; expected {expected}")
