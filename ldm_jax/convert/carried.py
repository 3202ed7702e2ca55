"""Files that are kept unchanged with a model, and must stay inside its folder.

Their names come from an index or a folder that may not be trustworthy.
"""

import pathlib
from collections.abc import Mapping

from ldm_jax.errors import ConversionError
from ldm_jax.store import Place


def is_plain(name: str) -> bool:
    """Whether a name is that of a file or folder, and not a path that leads elsewhere.

    Args:
      name: Any text.

    Returns:
      Whether it is one part of a path, here and on Windows.
    """
    return name not in ("", ".", "..") and pathlib.PureWindowsPath(name).name == name


def write_files(folder: Place, files: Mapping[str, bytes]) -> None:
    """Writes the files that were kept with a model.

    Args:
      folder: Folder to write into.
      files: Path inside it, with "/" -> bytes.

    Raises:
      ConversionError: If a path leads out of the folder; then nothing is written.
    """
    for name in files:
        if not all(map(is_plain, name.split("/"))):
            raise ConversionError(
                f"the model carries the file {name!r:.80}, which would lie outside of "
                f"{folder}: nothing was written; do not trust where it came from"
            )
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
