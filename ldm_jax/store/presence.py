"""Checks what is at a path, raising errors of its disk.

`os.path` hides all errors, and from Python 3.14 on so does `pathlib`: files on a disk
that does not answer would be taken for missing.
"""

import errno
import os
import stat

from ldm_jax.store.paths import Place, is_remote


def look(path: str | os.PathLike) -> os.stat_result | None:
    """Returns the status of what is at a path, as `os.stat`.

    Args:
      path: Path on a disk.

    Returns:
      Its status; None if nothing is there.

    Raises:
      OSError: If access is denied, it is damaged, or its disk does not answer.
    """
    try:
        return os.stat(path)
    # ValueError: no file can have that name.
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENAMETOOLONG):
            return None
        raise


def exists(path: Place) -> bool:
    """Returns whether a path exists.

    Args:
      path: Path of either kind.

    Returns:
      Whether it exists.

    Raises:
      OSError: If that cannot be determined.
    """
    return path.exists() if is_remote(path) else look(path) is not None


def is_file(path: Place) -> bool:
    """Returns whether a path is a file.

    Args:
      path: Path of either kind.

    Returns:
      Whether it is.

    Raises:
      OSError: If that cannot be determined.
    """
    return path.is_file() if is_remote(path) else stat.S_ISREG(_mode(path))


def is_dir(path: Place) -> bool:
    """Returns whether a path is a folder.

    Args:
      path: Path of either kind.

    Returns:
      Whether it is.

    Raises:
      OSError: If that cannot be determined.
    """
    return path.is_dir() if is_remote(path) else stat.S_ISDIR(_mode(path))


def _mode(path):
    """The mode of a path; 0, which is neither a file nor a folder, if it is missing."""
    state = look(path)
    return state.st_mode if state else 0
