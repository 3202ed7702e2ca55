"""Training and held-out splits of a data set, by names or by a hash of them.

With the hash, an example stays in its split when others are added or removed.
"""

import hashlib
from collections.abc import Iterable

import numpy as np

from ldm_jax.annotations import Bool, Shaped

# Splits that can be requested.
SPLITS = ("train", "validation", "test", "all")

# Names of the folders and files of each split.
SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid"),
    "test": ("test",),
}

# The split that is used if there is none of that name.
_INSTEAD = {"validation": "test", "test": "validation"}


def split_of(name: str) -> str | None:
    """Finds the split that a name stands for.

    Args:
      name: Name of a folder, or first part of a file's name, in upper or lower case.

    Returns:
      "train", "validation", "test" or None.
    """
    name = name.lower()
    return next((split for split, names in SPLIT_NAMES.items() if name in names), None)


def serving(split: str, there: Iterable[str | None]) -> str | None:
    """Finds the split to use for a requested one.

    Args:
      split: The requested split.
      there: The splits that exist.

    Returns:
      The split itself, or the other one of "validation" and "test"; None if neither
      exists.
    """
    there = {*there} - {None}
    found = (name for name in (split, _INSTEAD.get(split)) if name in there)
    return next(found, None)


def place_of(name: bytes) -> int:
    """Hashes a name to a number in [0, 2**64), which decides on its split.

    Args:
      name: Path or key of an example.

    Returns:
      A 64-bit number that depends on the name alone.
    """
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest())


def in_split(
    places: Shaped[np.ndarray, " N"], split: str, fraction: float | None
) -> Bool[np.ndarray, " N"]:
    """Finds the examples of a split.

    Args:
      places: uint64 [N], `place_of` of all examples.
      split: "train", "validation" or "test" (the same), or "all".
      fraction: Held-out fraction, in (0, 1), at least one example if there are two or
        more; None to hold nothing out.

    Returns:
      bool [N].
    """
    if split == "all":
        return np.ones(len(places), bool)
    # One at least: an empty validation set is of no use to anyone.
    limit = fraction if fraction and len(places) > 1 else -1.0
    places = np.asarray(places, np.uint64) / 2**64
    if len(places) > 1 and fraction:
        limit = max(limit, places.min())
    return (places <= limit) == (split != "train")


def check_split(split: str, fraction: float | None, what: str) -> None:
    """Checks the options of a split by hash.

    Args:
      split: See `in_split`.
      fraction: See `in_split`.
      what: What is split, for the message, e.g. "a folder".

    Raises:
      ValueError: If one is out of range.
    """
    if split not in SPLITS:
        raise ValueError(
            f'{what} has the splits {", ".join(SPLITS[:-1])} and all, not "{split}"'
        )
    # None is not a value of the config: `open_source` sets it if `eval_name` is set.
    if fraction is not None and not 0 < fraction < 1:
        raise ValueError(f"validation_fraction must be in (0, 1), got {fraction}")
