"""Distances of sets of images by their features: one row of DISTANCES each."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from ldm_jax.metrics.distances.frechet import frechet
from ldm_jax.metrics.distances.results import Result
from ldm_jax.metrics.statistics import TapStatistics

__all__ = ["DISTANCES", "Distance", "Result", "Value"]


class Value(NamedTuple):
    """A number that a distance gives.

    Attributes:
      title: What it is called in reports.
      better: "lower" or "higher".
    """

    title: str
    better: str = "lower"


class Distance(NamedTuple):
    """A row of DISTANCES.

    Attributes:
      values: Name -> the numbers that it gives.
      network: Row of FEATURES.
      tap: Tap of that network.
      measure: (statistics of the images, of the reference or None, seed) -> Result, or
        dict of name -> Result where there are several; values, deviations and notes.
      needs_rows: Whether it needs the features themselves, not their moments alone.
      needs_reference: Whether images are compared with a reference.
      protocol: Number of images that published numbers are of.
    """

    values: Mapping[str, Value]
    network: str
    tap: str
    measure: Callable[
        [TapStatistics, TapStatistics | None, int], Result | dict[str, Result]
    ]
    needs_rows: bool = False
    needs_reference: bool = True
    protocol: int = 50_000


# Distances by name.
DISTANCES = {
    "frechet": Distance(
        {"frechet": Value("Fréchet distance")}, "random", "pooled", frechet
    ),
}
