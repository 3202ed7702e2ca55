"""Log lines about the order of examples when a run starts."""

from typing import Any

import numpy as np

from ldm_jax.config import Section
from ldm_jax.data.orders.bucket_order import BucketOrder
from ldm_jax.data.orders.buckets import Buckets, assign, make_buckets
from ldm_jax.data.orders.order import Shuffled

# Number of images that are named.
_NAMED = 3


def describe_order(source: Any, data: Section, seed: int, batch_size: int) -> list[str]:
    """Describes how many images each part of a mixture and each bucket has.

    Args:
      source: Opened source.
      data: Config section `data`.
      seed: Seed of the order.
      batch_size: Global batch size.

    Returns:
      Lines for the log; none without a mixture and buckets.

    Raises:
      ConfigError: If `data.buckets` is invalid.
    """
    lines = []
    if hasattr(source, "part_of"):
        counts = zip(source.names, source.totals(1), strict=True)
        listed = ", ".join(f"{name} {count:,}" for name, count in counts)
        lines.append(f"images of an epoch by part: {listed}")
    options = make_buckets(data)
    if options is None or not hasattr(source, "sizes"):
        return lines
    buckets = assign(source.sizes(), options)
    lines += table(buckets) + _small(source, buckets)
    make = getattr(source, "make_order", None)
    base = make(seed) if make else Shuffled(len(source), seed)
    moved = BucketOrder(base, buckets, batch_size).moved(0)
    if moved:
        lines.append(
            f"{moved:,} of {base.length:,} images fill no batch of their bucket and "
            "go to a neighbouring one, in each epoch others"
        )
    return lines


def table(buckets: Buckets) -> list[str]:
    """Lists the buckets with their numbers of images.

    Args:
      buckets: Buckets.

    Returns:
      Lines: height x width and number of images, without empty ones.
    """
    counts = np.bincount(buckets.of, minlength=len(buckets.shapes))
    lines = [f"{'bucket (height x width)':>24}{'images':>12}"]
    for (height, width), count in zip(buckets.shapes, counts, strict=True):
        if count:
            lines.append(f"{f'{height} x {width}':>24}{count:>12,}")
    return lines


def _small(source, buckets):
    """Lists images that are enlarged, or whose size is unknown."""
    lines = []
    for found, what in (
        (buckets.enlarged, "smaller than their bucket and are enlarged"),
        (buckets.unknown, "of unknown size, as their headers cannot be read"),
    ):
        if len(found):
            named = ", ".join(source.describe(int(index)) for index in found[:_NAMED])
            more = ", ..." if len(found) > _NAMED else ""
            lines.append(f"{len(found):,} images are {what}: {named}{more}")
    return lines
