"""Parses the contents of files: arrays without objects, and JSON."""

import io
import json
import os
from typing import Any

import numpy as np

from ldm_jax.annotations import Shaped
from ldm_jax.reading.faults import answering
from ldm_jax.store import local_copy

# Numbers, bools and text; no objects, which would be unpickled, and no records.
_KINDS = "biufSU"


def read_array(path: str | os.PathLike) -> Shaped[np.ndarray, "..."]:
    """Opens an array in a NumPy file as a memory map, without reading its values.

    Args:
      path: Path of a `.npy` file.

    Returns:
      Memory-mapped array [...] of numbers, bools or text.

    Raises:
      OSError: If the file cannot be opened.
      ValueError: If it holds something else, or less than its header states.
      Unreachable: If the disk does not answer.
    """
    path = local_copy(path)
    with answering(path):
        if not os.path.isfile(path):
            os.stat(path)
            raise ValueError("not a file")
        return _load_array(path, "r")


def parse_array(data: bytes) -> Shaped[np.ndarray, "..."]:
    """Parses an array from the bytes of a NumPy file.

    Args:
      data: Bytes of a `.npy` file.

    Returns:
      Array [...] of numbers, bools or text.

    Raises:
      ValueError: If they hold something else, or less than their header states.
    """
    with io.BytesIO(data) as file:
        return _load_array(file)


def _load_array(file, mmap_mode=None):
    try:
        array = np.load(file, mmap_mode=mmap_mode, allow_pickle=False)
    except OSError:
        raise
    # A header is a Python literal: a malicious one may raise nearly anything.
    except Exception as error:
        text = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"not a NumPy array: {text}") from error
    if not isinstance(array, np.ndarray):
        array.close()
        raise ValueError("not a NumPy array but an archive of several: give one .npy")
    if array.dtype.kind not in _KINDS:
        raise ValueError(f"an array of numbers is expected, got {array.dtype}")
    return array


def parse_json(data: bytes | str) -> Any:
    """Parses JSON.

    Args:
      data: Text.

    Returns:
      The decoded value.

    Raises:
      ValueError: If it is not JSON, or nested too deeply.
    """
    try:
        return json.loads(data)
    except RecursionError as error:
        raise ValueError("nested too deeply to be read") from error
