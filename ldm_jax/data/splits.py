"""Splits of a data set, trained on and held out, by names or by a hash of them.

By the hash an example keeps its side when others come or go.
"""

import hashlib
from collections.abc import Iterable

import numpy as np

from ldm_jax.annotations import Bool, Shaped

# What may be asked for, and which of them are the held-out side.
SPLITS = ("train", "validation", "test", "all")

# What folders and files of each split are called.
SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid"),
    "test": ("test",),
}

# The split that serves where there is none of that name.
_INSTEAD = {"validation": "test", "test": "validation"}


def split_of(name: str) -> str | None:
    """Finds the split that a name is one of.

    Args:
      name: Name of a folder, or the head of a file's name, in any case of letters.

    Returns:
      "train", "validation", "test" or None.
    """
    name = name.lower()
    return next((split for split, names in SPLIT_NAMES.items() if name in names), None)


def serving(split: str, there: Iterable[str | None]) -> str | None:
    """Finds the split that serves another one.

    Args:
      split: What is asked for.
      there: The splits that there are.

    Returns:
      The split itself, or of "validation" and "test" the other one; None if there is
      neither.
    """
    there = {*there} - {None}
    found = (name for name in (split, _INSTEAD.get(split)) if name in there)
    return next(found, None)


def place_of(name: bytes) -> int:
    """Gives a name its place on the way from 0 to 2**64.

    Args:
      name: Path or key of an example.

    Returns:
      A number of 64 bits that depends on the name alone.
    """
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest())


def in_split(
    places: Shaped[np.ndarray, " N"], split: str, fraction: float | None
) -> Bool[np.ndarray, " N"]:
    """Finds the examples on one side.

    Args:
      places: uint64 [N], what `place_of` gives for all examples.
      split: "train", "validation" or "test" (the same), or "all".
      fraction: Fraction that is held out, in (0, 1), of two or more examples at least
        one; None where nothing is.

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
      what: What is divided, for the message, as "a folder".

    Raises:
      ValueError: If one is out of range.
    """
    if split not in SPLITS:
        raise ValueError(
            f'{what} has the splits {", ".join(SPLITS[:-1])} and all, not "{split}"'
        )
    # None is no value of the config: `open_source` gives it where `eval_name` is set.
    if fraction is not None and not 0 < fraction < 1:
        raise ValueError(f"validation_fraction must be in (0, 1), got {fraction}")
