"""Files beside an image with side information about it, by key of the example.

The rows of MODALITIES define them: beside `x.jpg` there may be `x.txt` with its
captions, `x.json` with its boxes, `x.depth.png` and so on. Any key without a row is an
array in `x.<key>.npy`, such as an embedding, or captions in `x.<key>.txt`.

All maps are cropped and mirrored with the image, whatever their size.
"""

import os
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ldm_jax.data.modalities import MODALITIES, modality_of, unpack
from ldm_jax.images import require_memory
from ldm_jax.reading import MAX_TEXT, parse_array, read_array, read_file, state_of

IMAGE_SUFFIXES = tuple(".jpg .jpeg .jpe .jfif .png .webp .bmp .gif .tif .tiff".split())

# Suffix of arrays, which are taken as the images if there are no image files.
ARRAY_SUFFIX = ".npy"


class Sidecar(NamedTuple):
    """A kind of file beside an image.

    Attributes:
      suffix: Suffix in place of the image's own, e.g. ".depth.png".
      keys: Keys of the example that it holds.
      modality: Row of MODALITIES that reads it; None for an array.
    """

    suffix: str
    keys: tuple[str, ...]
    modality: str | None


class MissingFile(ValueError):
    """The error for a missing file beside an image.

    Attributes:
      sidecar: Kind of the file.
    """

    def __init__(self, name: str, sidecar: Sidecar) -> None:
        """Makes the error.

        Args:
          name: Name of the file.
          sidecar: Kind of the file.
        """
        super().__init__(name, sidecar)
        self.sidecar = sidecar

    def __str__(self) -> str:
        return f"{self.args[0]} is missing"


def find_sidecars(keys: Iterable[str]) -> list[Sidecar]:
    """Finds the files that hold some keys of an example.

    Args:
      keys: Keys of the example.

    Returns:
      One Sidecar per file.
    """
    found = {}
    for key in keys:
        name = modality_of(key)
        if name is not None and MODALITIES[name].suffix is None:
            name = None
        suffix = f".{key}.npy" if name is None else MODALITIES[name].suffix
        held = found[suffix].keys if suffix in found else ()
        found[suffix] = Sidecar(suffix, (*held, key), name)
    return list(found.values())


def read_sidecar(
    path: str, sidecar: Sidecar, names: Sequence[str] | None = None
) -> dict[str, Any]:
    """Reads a file beside an image.

    Args:
      path: The image's path.
      sidecar: Kind of the file.
      names: Names of the classes of boxes, or None.

    Returns:
      Key -> str or list of str; encoded bytes of an image; or an array.

    Raises:
      MissingFile: If the file is missing.
      ValueError: If its content is invalid.
    """
    stem = os.path.splitext(path)[0]
    path = stem + sidecar.suffix
    if sidecar.modality is None and state_of(path) is None:
        # Text under a custom key, such as a second caption.
        text = f".{sidecar.keys[0]}.txt"
        if state_of(stem + text):
            path, sidecar = stem + text, Sidecar(text, sidecar.keys, "caption")
    try:
        if sidecar.modality is None:
            return {sidecar.keys[0]: _copy(read_array(path))}
        # Rows without `decode` are text.
        is_text = MODALITIES[sidecar.modality].decode is None
        data = read_file(path, MAX_TEXT if is_text else require_memory)
    except FileNotFoundError as error:
        raise MissingFile(os.path.basename(path), sidecar) from error
    except ValueError as error:
        raise ValueError(f"{os.path.basename(path)}: {error}") from error
    return parse_sidecar(data, sidecar, names, os.path.basename(path))


def parse_sidecar(
    data: bytes, sidecar: Sidecar, names: Sequence[str] | None, what: str
) -> dict[str, Any]:
    """Parses the bytes of a file that belongs to an image.

    Args:
      data: The file's bytes.
      sidecar: Kind of the file.
      names: Names of the classes of boxes, or None.
      what: Name of the file, for messages.

    Returns:
      As `read_sidecar`.

    Raises:
      ValueError: If they are invalid.
    """
    try:
        if sidecar.modality is None:
            return {sidecar.keys[0]: parse_array(data)}
        value = MODALITIES[sidecar.modality].parse(data, names)
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from error
    part = unpack(sidecar.modality, value)
    if len(part) == 1:
        # A second caption has a key of its own.
        return {sidecar.keys[0]: value}
    return {key: part[key] for key in sidecar.keys}


def _copy(array):
    require_memory(array.nbytes, f"{array.nbytes:,} bytes of an array")
    return np.array(array)


def drop_sidecars(names: Iterable[str]) -> list[str]:
    """Removes files that are side information of another image of the same folder.

    Args:
      names: File names of images in one folder.

    Returns:
      The names of all others.
    """
    names = list(names)
    stems = {os.path.splitext(name)[0] for name in names}
    suffixes = tuple(row.suffix for row in MODALITIES.values() if row.suffix)
    names = [
        name
        for name in names
        if not name.endswith(suffixes)
        or not any(
            name.endswith(suffix) and name.removesuffix(suffix) in stems
            for suffix in suffixes
        )
    ]
    # Arrays under custom keys.
    return [name for name in names if not _is_of(name, stems)]


def _is_of(name, stems):
    stem, suffix = os.path.splitext(name)
    image = os.path.splitext(stem)[0]
    return suffix == ARRAY_SUFFIX and image != stem and image in stems
