"""Hash of the files of a set: samples of other models often have the same names."""

import hashlib
from collections.abc import Callable

from ldm_jax.errors import Unreachable
from ldm_jax.metrics.statistics import evenly_spaced
from ldm_jax.reading import answering

# Number of files of a folder whose contents are hashed, and bytes read of each.
_HASHED, _HASHED_BYTES = 64, 1 << 20

# Bytes of the hash; each is two hexadecimal digits.
_BYTES = 8


def contents_of(count: int, path_of: Callable[[int], str]) -> str:
    """Hashes some of the files of a set.

    Args:
      count: Number of files.
      path_of: Number of a file -> its path; paths that are not files are skipped.

    Returns:
      String of 16 hexadecimal digits.

    Raises:
      Unreachable: If the storage of the files does not answer.
    """
    digest = hashlib.blake2b(digest_size=_BYTES)
    for number in evenly_spaced(count, _HASHED).tolist():
        digest.update(_beginning(path_of(number)))
    return digest.hexdigest()


def is_older_hash(there: str, here: str) -> bool:
    """Returns whether a recorded hash is an older version's, which left out contents.

    Args:
      there: The hash that was recorded.
      here: The hash of the set now: that of its list of files, then `contents_of`.

    Returns:
      Whether the recorded hash is the first part of the present one.
    """
    return there == here[: -2 * _BYTES]


def _beginning(path):
    try:
        with answering(path), open(path, "rb") as file:
            return file.read(_HASHED_BYTES)
    except Unreachable:
        raise
    # A file that cannot be read is handled when it is measured.
    except OSError:
        return b""
