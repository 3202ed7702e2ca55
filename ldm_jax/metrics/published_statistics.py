"""Published reference statistics: files of guided-diffusion and pytorch-fid.

Both have `mu` and `sigma`, of Inception's 2048 features. guided-diffusion also has
`mu_s` and `sigma_s`, and resizes as TensorFlow does; pytorch-fid resizes in another
way. A file with `mu` and `sigma` only does not show which of them made it.
"""

import hashlib
import json
import os
import zipfile
from collections.abc import Set
from typing import Any

import numpy as np

from ldm_jax.errors import ConfigError
from ldm_jax.metrics.adm_npz import IMAGES, StoredImages
from ldm_jax.metrics.statistics import TapStatistics

# Tap -> guided-diffusion's names of its mean and its covariance.
ADM_NAMES = {
    "inception/2048": ("mu", "sigma"),
    "inception/spatial": ("mu_s", "sigma_s"),
}

# Numbers of features of these taps.
_WIDTHS = {"inception/2048": 2048, "inception/spatial": 2023}

# The tap of pytorch-fid's `mu` and `sigma`.
_PYTORCH_FID = "inception_pytorch_fid/2048"

# The note on results whose reference file has only `mu` and `sigma`.
_UNNAMED = (
    "the file of the reference does not say how its images were resized: fid is for "
    "TensorFlow's way, pytorch_fid for that of pytorch-fid"
)


def read_published(
    archive: np.lib.npyio.NpzFile, keys: Set[str], path: str | os.PathLike, key: str
) -> tuple[dict[str, TapStatistics], dict[str, Any]]:
    """Reads a file of guided-diffusion or pytorch-fid.

    Args:
      archive: The file, opened.
      keys: Names of its arrays.
      path: Its path.
      key: The flag or config key that names it, for messages.

    Returns:
      (taps, record) of `ReferenceStatistics`. Such a file does not record its number of
      images: the count is 0.

    Raises:
      ConfigError: If it has no statistics of these networks.
    """
    taps = {}
    for tap, names in ADM_NAMES.items():
        if set(names) <= keys:
            taps[tap] = _read_moments(archive, names, tap, path, key)
    if not taps:
        raise ConfigError(
            f"{key}: {path} has mu without sigma, or the other way round: give "
            "an npz with both"
        )
    record = {"name": os.path.basename(path), "images": _fingerprint(path)}
    if IMAGES in keys:
        size = StoredImages(path, key).shape[1:3]
        record["preprocessing"] = {"size": list(size)}
    if "mu_s" not in keys:
        taps[_PYTORCH_FID] = taps["inception/2048"]
        record["note"] = _UNNAMED
    networks = sorted({tap.split("/")[0] for tap in taps})
    record["networks"] = {
        name: {"network": name, "weights": "published", "checksum": None}
        for name in networks
    }
    return taps, record


def _read_moments(archive, names, tap, path, key):
    mean, covariance = (archive[name].astype(np.float64) for name in names)
    width = _WIDTHS[tap]
    if mean.shape != (width,) or covariance.shape != (width, width):
        raise ConfigError(
            f"{key}: {path} has statistics of {mean.shape[-1]} features, "
            f"and {tap} has {width}: they are of another network"
        )
    return TapStatistics(0, mean, covariance)


def _fingerprint(path):
    """Hash of the checksums of all arrays, as recorded in the file."""
    with zipfile.ZipFile(path) as archive:
        members = [[m.filename, m.file_size, m.CRC] for m in archive.infolist()]
    return hashlib.sha256(json.dumps(sorted(members)).encode()).hexdigest()
