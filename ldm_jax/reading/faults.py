"""What goes wrong with a file in one line that names it."""

import contextlib
import os
from collections.abc import Iterator

from ldm_jax.errors import Unreachable
from ldm_jax.store import explain_fault, is_fault, raise_if_silent


@contextlib.contextmanager
def answering(what: str | os.PathLike) -> Iterator[None]:
    """Turns the silence of a disk, a mount or a store, in the block, into one line.

    Args:
      what: What is read.

    Yields:
      Nothing.

    Raises:
      Unreachable: If it does not answer.
    """
    try:
        yield
    except Exception as error:
        raise_if_silent(what, error)
        if is_fault(error):
            raise Unreachable(
                f"{what}: {explain_fault(error)}; once the network and the credentials "
                "are there, the same command goes on"
            ) from error
        raise


@contextlib.contextmanager
def naming(path: str | os.PathLike) -> Iterator[None]:
    """Has what goes wrong in the block name the file: libraries in C++ do not.

    Args:
      path: The file that is read.

    Yields:
      Nothing.

    Raises:
      ValueError: If it cannot be read.
      Unreachable: If what it lies on does not answer.
    """
    try:
        with answering(path):
            yield
    except (Unreachable, MemoryError):
        raise
    # Of a damaged file libraries raise nearly anything.
    except Exception as error:
        text = getattr(error, "strerror", None) or " ".join(str(error).split())
        if os.fspath(path) in text:
            raise
        raise ValueError(f"{path}: {text or type(error).__name__}") from error
