"""Aspect-ratio buckets: shapes of images, and the assignment of images to them.

    data=dict(buckets=dict(sizes=(512, 1024), step=64, max_ratio=2.0))

Each size S is a tier: the shapes of at most S^2 pixels whose sides are multiples of
`step` and whose ratio is at most `max_ratio` (NovelAI 2022, "Aspect Ratio Bucketing";
Podell et al. 2023, App. I, has step 64 at S = 1024). No image is dropped.
"""

import dataclasses
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from ldm_jax.annotations import Int
from ldm_jax.config import Section, build, to_dict
from ldm_jax.errors import ConfigError

# Number of images that are assigned at a time, to limit memory.
_CHUNK = 2**20


@dataclasses.dataclass(frozen=True)
class BucketOptions:
    """Options of the config section `data.buckets`.

    Attributes:
      sizes: Maximum number of pixels of each tier, as the side of a square; () for one
        tier of `data.image_size`.
      step: Unit of heights and widths, in pixels.
      max_ratio: Largest ratio of the sides, >= 1.

    Raises:
      ValueError: If no shape is possible.
    """

    sizes: Sequence[int] | int = ()
    step: int = 64
    max_ratio: float = 2.0

    def __post_init__(self):
        sizes = self.sizes
        sizes = (sizes,) if isinstance(sizes, int) else tuple(sizes)
        object.__setattr__(self, "sizes", tuple(sorted(set(sizes))))
        for size in self.sizes:
            if size < self.step:
                raise ValueError(
                    f"sizes has {size}, which is less than step={self.step}: nothing "
                    "fits in it"
                )

    def at(self, image_size: int) -> "BucketOptions":
        """Fills in the default size.

        Args:
          image_size: Size of the only tier if `sizes` is empty.

        Returns:
          BucketOptions with sizes.

        Raises:
          ValueError: If that size is less than the step.
        """
        return self if self.sizes else dataclasses.replace(self, sizes=(image_size,))


def tier_shapes(size: int, step: int, max_ratio: float) -> Int[np.ndarray, "shapes 2"]:
    """Lists the shapes of a tier.

    Args:
      size: Maximum number of pixels, as the side of a square.
      step: Unit of the sides.
      max_ratio: Largest ratio of the sides.

    Returns:
      (height, width), int32 [K, 2], from wide to tall: each side with the largest
      possible other side; of two shapes of the same ratio only the larger.
    """
    largest = {}
    for side in range(step, int(size * max_ratio**0.5) + 1, step):
        other = min(size * size // side, int(side * max_ratio)) // step * step
        if other >= step and max(side, other) <= max_ratio * min(side, other):
            for pair in ((side, other), (other, side)):
                ratio = Fraction(*pair)
                largest[ratio] = max(pair, largest.get(ratio, pair))
    return np.array([largest[ratio] for ratio in sorted(largest)], np.int32)


def bucket_shapes(options: BucketOptions) -> Int[np.ndarray, "shapes 2"]:
    """Lists the shapes of all tiers.

    Args:
      options: BucketOptions with sizes.

    Returns:
      (height, width), int32 [K, 2]: the smallest tier first, each from wide to tall.
    """
    tiers = [tier_shapes(s, options.step, options.max_ratio) for s in options.sizes]
    return np.concatenate(tiers)


def make_buckets(data: Section) -> BucketOptions | None:
    """Reads the config section `data.buckets`.

    Args:
      data: Section `data`.

    Returns:
      BucketOptions with sizes; None if the section is empty: all images are square.

    Raises:
      ConfigError: If a key is unknown or out of range, or no shape is possible.
    """
    section = to_dict(data)
    buckets = to_dict(section.get("buckets") or {})
    if not buckets:
        return None
    try:
        return build(BucketOptions, buckets, "data.buckets").at(section["image_size"])
    except ValueError as error:
        raise ConfigError(f"data.buckets: {error}") from error


def check_step(data: Section, unit: int, reason: str) -> list[int]:
    """Checks that the model can process all image shapes of a config.

    Args:
      data: Section `data`.
      unit: Number of which heights and widths must be multiples.
      reason: Why, for the message, where it follows a comma.

    Returns:
      The sides that images of a batch may have, in pixels, sorted.

    Raises:
      ConfigError: If they are not multiples of `unit`, or the section is invalid.
    """
    buckets = make_buckets(data)
    if buckets is None:
        return [data["image_size"]]
    step = buckets.step
    if step % unit:
        raise ConfigError(
            f"data.buckets.step={step} is no multiple of {unit}, {reason}; use "
            f"data.buckets.step={max(unit, round(step / unit) * unit)}"
        )
    return sorted({int(side) for side in bucket_shapes(buckets).ravel()})


class Buckets(NamedTuple):
    """Assignment of images to buckets.

    Attributes:
      shapes: (height, width) of each bucket in pixels, int32 [K, 2].
      of: Bucket of each image, int16 [N].
      enlarged: Images that are smaller than their bucket, int [n].
      unknown: Images of unknown size, int [n].
    """

    shapes: Int[np.ndarray, "shapes 2"]
    of: Int[np.ndarray, " count"]
    enlarged: Int[np.ndarray, " enlarged"]
    unknown: Int[np.ndarray, " unknown"]


def assign(sizes: Int[np.ndarray, "count 2"], options: BucketOptions) -> Buckets:
    """Assigns every image to a bucket.

    An image goes to the largest tier whose shape of the nearest ratio it covers, so
    that it is not enlarged; if it covers none, to the smallest tier.

    Args:
      sizes: (height, width) of every image in pixels, int [N, 2]; (0, 0) if unknown,
        which goes to the squarest shape of the smallest tier.
      options: BucketOptions with sizes.

    Returns:
      Buckets.
    """
    shapes = bucket_shapes(options)
    of = np.empty(len(sizes), np.int16)
    small = np.empty(len(sizes), bool)
    for start in range(0, len(sizes), _CHUNK):
        rows = slice(start, start + _CHUNK)
        of[rows], small[rows] = _assign(sizes[rows], options, shapes)
    known = np.asarray(sizes).min(axis=1, initial=2**31 - 1) > 0
    return Buckets(shapes, of, np.flatnonzero(small & known), np.flatnonzero(~known))


def _assign(sizes, options, shapes):
    """Bucket of each image, and whether the image is too small to cover it."""
    height, width = np.maximum(np.asarray(sizes).T, 1)
    ratio = np.log(height / width)
    of = np.zeros(len(ratio), np.int16)
    small = np.ones(len(ratio), bool)
    first = 0
    for tier in options.sizes:
        own = tier_shapes(tier, options.step, options.max_ratio)
        ratios = np.log(own[:, 0] / own[:, 1])
        nearest = np.searchsorted((ratios[1:] + ratios[:-1]) / 2, ratio)
        covers = (height >= own[nearest, 0]) & (width >= own[nearest, 1])
        take = covers if first else np.ones_like(covers)
        of[take] = first + nearest[take]
        small &= ~covers
        first += len(own)
    return of, small
