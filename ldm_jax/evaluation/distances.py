"""Distances between two sets of images, from streamed statistics of their features.

A set is never in memory at once: `Moments` takes the features of one batch after the
other. Statistics and distances are float64 on the host.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from ldm_jax import sharding
from ldm_jax.annotations import Array, Bool, Float, UInt8
from ldm_jax.evaluation.features import FEATURES


class Moments:
    """Mean and covariance of the rows that it is given, in float64.

    Attributes:
      count: Number of rows so far.
    """

    def __init__(self) -> None:
        """Starts without rows."""
        self.count = 0
        self._sum = self._products = 0.0

    def add(self, features: Float[Array, "rows features"]) -> None:
        """Takes the features of further images.

        Args:
          features: [N, D].
        """
        rows = np.asarray(features, np.float64)
        self.count += len(rows)
        self._sum = self._sum + rows.sum(axis=0)
        self._products = self._products + rows.T @ rows

    @property
    def mean(self) -> Float[np.ndarray, " features"]:
        """Mean of the rows, [D]."""
        return self._sum / self.count

    @property
    def covariance(self) -> Float[np.ndarray, "features features"]:
        """Unbiased covariance of the rows, [D, D]; needs two rows or more."""
        outer = np.outer(self._sum, self.mean)
        return (self._products - outer) / (self.count - 1)


class Distance(NamedTuple):
    """A row of DISTANCES.

    Attributes:
      features: Row of FEATURES.
      measure: (Moments of the images, Moments of what is compared with them) -> float.
    """

    features: str
    measure: Callable[[Moments, Moments], float]


class Comparison:
    """Compares two sets of images by a distance, batch by batch on all devices."""

    def __init__(self, name: str, mesh: Mesh) -> None:
        """Loads the network of the features.

        Args:
          name: Row of DISTANCES.
          mesh: Mesh of the batches.
        """
        self._measure = DISTANCES[name].measure
        network = FEATURES[DISTANCES[name].features]
        self.label = f"{name} ({network.label})"
        self._params = sharding.put_tree(
            params := network.load(None), sharding.tree_shardings(params, mesh)
        )
        everywhere = sharding.replicated(mesh)
        self._features = jax.jit(network.apply, out_shardings=everywhere)
        self._moments = Moments(), Moments()

    def add(
        self,
        images: UInt8[Array, "batch h w c"],
        others: UInt8[Array, "batch h w c"],
        real: Bool[Array, " batch"],
    ) -> None:
        """Takes a batch of both sets.

        Args:
          images: Global array [B, H, W, C] of the one set.
          others: Likewise of the other.
          real: Which rows count, [B].
        """
        for moments, batch in zip(self._moments, (images, others), strict=True):
            features = jax.device_get(self._features(self._params, batch))
            moments.add(features[np.asarray(real)])

    def value(self) -> float:
        """Measures the distance of what was added.

        Returns:
          The distance; NaN of fewer than two images.
        """
        if self._moments[0].count < 2:
            return float("nan")
        return self._measure(*self._moments)


def frechet(first: Moments, second: Moments) -> float:
    """Fréchet distance of two Gaussians (Heusel et al. 2017, Eq. 6).

    |m1 - m2|² + tr(C1) + tr(C2) - 2 tr((C1^½ C2 C1^½)^½), by the eigenvalues of
    symmetric matrices, so that sets of fewer images than features do no harm.

    Args:
      first: Moments of one set, of two images or more.
      second: Moments of the other one.

    Returns:
      A number >= 0.
    """
    values, vectors = np.linalg.eigh(first.covariance)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    product = np.linalg.eigvalsh(root @ second.covariance @ root)
    traces = np.trace(first.covariance) + np.trace(second.covariance)
    shift = np.sum((first.mean - second.mean) ** 2)
    return float(max(shift + traces - 2 * np.sqrt(product.clip(0)).sum(), 0.0))


# Distances by name.
DISTANCES = {"frechet": Distance("random", frechet)}
