"""Networks whose features sets of images are compared by: one row of FEATURES each.

A feature network maps a batch of 8-bit images to vectors, one per tap, in one compiled
program on all devices. Networks with published weights come with a file of them.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ldm_jax.annotations import Array, Float, UInt8
from ldm_jax.config import choose
from ldm_jax.metrics.features.random_features import TAP, apply_random, load_random


class FeatureNetwork(NamedTuple):
    """A row of FEATURES.

    Attributes:
      title: What the network is called in reports.
      where: Where its file of weights comes from, for messages.
      widths: Tap -> number of features.
      load: Path of a file of weights, or None -> parameters, NumPy or JAX arrays.
      apply: (parameters, uint8 [B, H, W, C], taps) -> dict of tap -> float32 [B, D].
    """

    title: str
    where: str
    widths: Mapping[str, int]
    load: Callable[[str | None], Any]
    apply: Callable[
        [Any, UInt8[Array, "batch h w c"], tuple[str, ...]],
        dict[str, Float[Array, "batch features"]],
    ]


class Network(NamedTuple):
    """A network with its weights.

    Attributes:
      name: Its name in FEATURES.
      row: Its row.
      params: Parameters.
      record: What it is, for reports: "network", "weights", "checksum", "dtype".
      is_random: Whether its weights are random, so that what is measured with it is
        comparable to nothing that is published.
    """

    name: str
    row: FeatureNetwork
    params: Any
    record: dict[str, Any]
    is_random: bool


def load_network(name: str, path: str | None = None) -> Network:
    """Loads a network.

    Args:
      name: Its name in FEATURES.
      path: Its file of weights, or None for random ones.

    Returns:
      The network.

    Raises:
      ConfigError: If there is no such network, or its weights cannot be read.
    """
    row = choose(FEATURES, name, "feature network")
    record = {"network": name, "weights": "random", "checksum": "", "dtype": "float32"}
    return Network(name, row, row.load(path), record, is_random=path is None)


# Feature networks by name.
FEATURES = {
    "random": FeatureNetwork(
        title="random features",
        where="it has no file of weights: they are drawn from a fixed seed",
        widths={TAP: 256},
        load=lambda path: load_random(),
        apply=apply_random,
    ),
}
