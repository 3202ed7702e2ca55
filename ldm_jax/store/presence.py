"""What is at a path; an error of its disk is raised.

`os.path` hides all errors, and from Python 3.14 on so does `pathlib`: what lies on a
disk that does not answer would be taken for what is not there.
"""

import errno
import os
import stat

from ldm_jax.store.paths import Place, is_remote


def look(path: str | os.PathLike) -> os.stat_result | None:
    """Looks at what a path leads to.

    Args:
      path: Its path, on a disk.

    Returns:
      What the system says of it; None where nothing is there.

    Raises:
      OSError: If it may not be looked at, is damaged, or its disk does not answer.
    """
    try:
        return os.stat(path)
    # Of the last, no file can have that name.
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENAMETOOLONG):
            return None
        raise


def exists(path: Place) -> bool:
    """Says whether anything is at a path.

    Args:
      path: Path of either kind.

    Returns:
      Whether it is.

    Raises:
      OSError: If that cannot be told.
    """
    return path.exists() if is_remote(path) else look(path) is not None


def is_file(path: Place) -> bool:
    """Says whether a file is at a path.

    Args:
      path: Path of either kind.

    Returns:
      Whether one is.

    Raises:
      OSError: If that cannot be told.
    """
    return path.is_file() if is_remote(path) else stat.S_ISREG(_mode(path))


def is_dir(path: Place) -> bool:
    """Says whether a folder is at a path.

    Args:
      path: Path of either kind.

    Returns:
      Whether one is.

    Raises:
      OSError: If that cannot be told.
    """
    return path.is_dir() if is_remote(path) else stat.S_ISDIR(_mode(path))


def _mode(path):
    """The mode of what a path leads to; 0, which is of no kind, for nothing."""
    state = look(path)
    return state.st_mode if state else 0
