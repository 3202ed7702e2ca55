"""Reports errors of files in one line that names the file."""

import contextlib
import os
from collections.abc import Iterator

from ldm_jax.errors import Unreachable
from ldm_jax.store import explain_fault, is_fault, raise_if_silent


@contextlib.contextmanager
def answering(what: str | os.PathLike) -> Iterator[None]:
    """Converts errors of a disk, mount or store that does not answer to Unreachable.

    Args:
      what: What is read in the block, for the message.

    Yields:
      Nothing.

    Raises:
      Unreachable: If the disk, mount or store does not answer.
    """
    try:
        yield
    except Exception as error:
        raise_if_silent(what, error)
        if is_fault(error):
            raise Unreachable(
                f"{what}: {explain_fault(error)}; once the network and the credentials "
                "are there, the same command continues"
            ) from error
        raise


@contextlib.contextmanager
def naming(path: str | os.PathLike) -> Iterator[None]:
    """Adds the file's name to errors in the block, which C++ libraries leave out.

    Args:
      path: The file that is read.

    Yields:
      Nothing.

    Raises:
      ValueError: If it cannot be read.
      Unreachable: If the storage of the file does not answer.
    """
    try:
        with answering(path):
            yield
    except (Unreachable, MemoryError):
        raise
    # Libraries raise nearly anything for a damaged file.
    except Exception as error:
        text = getattr(error, "strerror", None) or " ".join(str(error).split())
        if os.fspath(path) in text:
            raise
        raise ValueError(f"{path}: {text or type(error).__name__}") from error
