"""Files that lie beside an image and say more about it, by key of the example.

Which they are, the rows of MODALITIES say: beside `x.jpg` there may be `x.txt` with its
captions, `x.json` with its boxes, `x.depth.png` and so on. Any key that no row knows is
an array in `x.<key>.npy`, such as an embedding.

All maps are cropped and mirrored with the image, whatever their size.
"""

import io
import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from ldm_jax.data.modalities import MODALITIES, modality_of, unpack


def suffix_of(key: str) -> str:
    """Says how the file beside an image is called.

    Args:
      key: Key of the example.

    Returns:
      What takes the place of the image's suffix, as ".depth.png".
    """
    name = modality_of(key)
    suffix = None if name is None else MODALITIES[name].suffix
    return suffix or f".{key}.npy"


def read_sidecar(path: str, key: str, names: Sequence[str] | None = None) -> Any:
    """Reads what lies beside an image.

    Args:
      path: The image's path.
      key: Key of the example.
      names: Names of the classes of boxes, or None.

    Returns:
      str or list of str; encoded bytes of an image; or an array.

    Raises:
      ValueError: If the file is missing or wrong.
    """
    path = os.path.splitext(path)[0] + suffix_of(key)
    try:
        with open(path, "rb") as file:
            data = file.read()
    except FileNotFoundError as error:
        raise ValueError(f"{os.path.basename(path)} is missing") from error
    try:
        return _parse(key, data, names)
    except ValueError as error:
        raise ValueError(f"{os.path.basename(path)}: {error}") from error


def _parse(key, data, names):
    name = modality_of(key)
    if name is None or MODALITIES[name].suffix is None:
        return np.load(io.BytesIO(data), allow_pickle=False)
    return unpack(name, MODALITIES[name].parse(data, names))[key]


def drop_sidecars(names: Iterable[str]) -> list[str]:
    """Leaves out the images that belong to another image of the same folder.

    Args:
      names: File names of images in one folder.

    Returns:
      Those that lie beside no other image.
    """
    names = list(names)
    stems = {os.path.splitext(name)[0] for name in names}
    suffixes = tuple(row.suffix for row in MODALITIES.values() if row.suffix)
    return [
        name
        for name in names
        if not name.endswith(suffixes)
        or not any(
            name.endswith(suffix) and name.removesuffix(suffix) in stems
            for suffix in suffixes
        )
    ]
