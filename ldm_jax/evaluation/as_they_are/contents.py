"""What is in the files of a set: samples of other models often have the same names."""

import hashlib
from collections.abc import Callable

from ldm_jax.errors import Unreachable
from ldm_jax.metrics.statistics import evenly_spaced
from ldm_jax.reading import answering

# Files of a folder that are told by what is in them, and how much of each is read.
_HASHED, _HASHED_BYTES = 64, 1 << 20

# Bytes of the hash, of two digits each.
_BYTES = 8


def contents_of(count: int, path_of: Callable[[int], str]) -> str:
    """Hashes some of the files of a set.

    Args:
      count: Number of files.
      path_of: Number of a file -> its path; what is no file is passed over.

    Returns:
      Text of 16 hexadecimal digits.

    Raises:
      Unreachable: If what they lie on does not answer.
    """
    digest = hashlib.blake2b(digest_size=_BYTES)
    for number in evenly_spaced(count, _HASHED).tolist():
        digest.update(_beginning(path_of(number)))
    return digest.hexdigest()


def is_older_hash(there: str, here: str) -> bool:
    """Says whether a hash of a set is that of an older version, without contents.

    Args:
      there: The hash that was recorded.
      here: That of the set now: of its list, and what `contents_of` gives.

    Returns:
      Whether it is the first part.
    """
    return there == here[: -2 * _BYTES]


def _beginning(path):
    try:
        with answering(path), open(path, "rb") as file:
            return file.read(_HASHED_BYTES)
    except Unreachable:
        raise
    # What cannot be read is dealt with where it is measured.
    except OSError:
        return b""
