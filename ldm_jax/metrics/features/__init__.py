"""Feature networks, by which sets of images are compared: one row each in FEATURES.

A feature network maps a batch of 8-bit images to vectors after one or several of its
layers, its taps, in one compiled program on all devices.

| module | what |
| --- | --- |
| `network` | the types of a row and of a loaded network |
| `random_features` | untrained convolutions, cheap, without a file |
| `inception` | the Inception-v3 of FID |
| `inception_weights` | its row, and its file of weights |
| `tensorflow_resize` | the resize that it was published with |
| `dinov2`, `dinov2_weights` | DINOv2 ViT-L/14, its row and its files of weights |
| `clip_features`, `clip_weights` | CLIP, of images and captions |
| `weight_files` | files of weights: reading, checking, checksums |

Without a file of weights, those of `random` and `inception` are seeded random numbers.
Metrics with random weights rank models of one data set, but are not the published ones,
and reports give them another name.
"""

from collections.abc import Mapping

from ldm_jax.config import choose
from ldm_jax.errors import ConfigError
from ldm_jax.metrics.features.clip_weights import CLIP
from ldm_jax.metrics.features.dinov2_weights import DINOV2
from ldm_jax.metrics.features.inception_weights import (
    INCEPTION,
    INCEPTION_PYTORCH_FID,
)
from ldm_jax.metrics.features.network import (
    FeatureNetwork,
    Loaded,
    Network,
    missing_file,
)
from ldm_jax.metrics.features.random_features import RANDOM
from ldm_jax.store import as_path

__all__ = [
    "FEATURES",
    "FeatureNetwork",
    "Loaded",
    "Network",
    "load_network",
    "missing_file",
    "weights_of",
]

# Feature networks by name.
FEATURES = {
    "random": RANDOM,
    "inception": INCEPTION,
    "inception_pytorch_fid": INCEPTION_PYTORCH_FID,
    "dinov2": DINOV2,
    "clip": CLIP,
}


def weights_of(name: str, weights: Mapping[str, str | None]) -> str | None:
    """Finds the file of weights of a network.

    Args:
      name: Row of FEATURES.
      weights: Row of FEATURES -> path of its file.

    Returns:
      The path; that of the row `weights_of` if the network has none of its own.
    """
    other = FEATURES[name].weights_of if name in FEATURES else None
    return weights.get(name) or weights.get(other)


def load_network(name: str, path: str | None = None) -> Network:
    """Loads a feature network.

    Args:
      name: Row of FEATURES.
      path: Its file of weights, as published or converted; None for seeded random ones,
        if the network has them.

    Returns:
      Network.

    Raises:
      ConfigError: If the name is unknown, or a file is needed and not given.
      ConversionError: If the file is missing, unreadable or of another network.
    """
    row = choose(FEATURES, name, "feature network")
    if path is None and row.needs_file:
        raise ConfigError(missing_file(name, row.where))
    loaded = row.load(path)
    file = "random" if path is None else as_path(path).name
    record = {
        "network": name,
        "weights": file,
        "checksum": loaded.checksum,
        # In bfloat16 metrics differ by several per cent.
        "dtype": "float32",
    }
    row = row._replace(**loaded.changes)
    return Network(name, row, loaded.params, record, path is None)
