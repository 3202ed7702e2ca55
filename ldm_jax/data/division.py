"""Divides a data set by a hash of each example's name: held out, or trained on.

An example keeps its side when others come or go.
"""

import hashlib

import numpy as np

from ldm_jax.annotations import Bool, Shaped

# What may be asked for, and which of them are the held-out side.
SPLITS = ("train", "validation", "test", "all")


def place_of(name: bytes) -> int:
    """Gives a name its place on the way from 0 to 2**64.

    Args:
      name: Path or key of an example.

    Returns:
      A number of 64 bits that depends on the name alone.
    """
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest())


def divide(
    places: Shaped[np.ndarray, " N"], split: str, fraction: float
) -> Bool[np.ndarray, " N"]:
    """Finds the examples on one side.

    Args:
      places: uint64 [N], what `place_of` gives for all examples.
      split: "train", "validation" or "test" (the same), or "all".
      fraction: Fraction that is held out, in (0, 1); of two or more examples at least
        one is.

    Returns:
      bool [N].
    """
    if split == "all":
        return np.ones(len(places), bool)
    # One at least: an empty validation set is of no use to anyone.
    limit = fraction if len(places) > 1 else -1.0
    places = np.asarray(places, np.uint64) / 2**64
    if len(places) > 1:
        limit = max(limit, places.min())
    return (places <= limit) == (split != "train")


def check_division(split: str, fraction: float, what: str) -> None:
    """Checks the options of a division.

    Args:
      split: See `divide`.
      fraction: See `divide`.
      what: What is divided, for the message, as "a folder".

    Raises:
      ValueError: If one is out of range.
    """
    if split not in SPLITS:
        raise ValueError(
            f'{what} has the splits {", ".join(SPLITS[:-1])} and all, not "{split}"'
        )
    if not 0 < fraction < 1:
        raise ValueError(f"validation_fraction must be in (0, 1), got {fraction}")
