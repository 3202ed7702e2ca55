"""Reference statistics: features of a set of images in a file, and their origin.

The file is an npz. The moments of the features of FID's Inception have the names of
guided-diffusion, `mu`, `sigma`, `mu_s` and `sigma_s`, and published files of that form
can be read. The `record` of this package's files holds the images, their preprocessing
and the weights of the networks; images that were measured in another way are not
compared with them.
"""

import dataclasses
import json
import os
import zipfile
from collections.abc import Collection, Mapping
from fractions import Fraction
from typing import Any

import numpy as np

from ldm_jax.errors import ConfigError
from ldm_jax.files import replacing
from ldm_jax.images import same_range
from ldm_jax.metrics.adm_npz import keys_of, write_arrays
from ldm_jax.metrics.published_statistics import ADM_NAMES, read_published
from ldm_jax.metrics.statistics import TapStatistics, evenly_spaced
from ldm_jax.store import local_copy, raise_if_silent

_RECORD = "record"

# "preprocessing" of a data set's images without augmentation.
CUT = {"crop": "center", "resize": "bicubic, antialiased"}

# Most images of a reference whose features are kept, if metrics need features: as many
# as the samples of the protocols, 400 MB of FID's features.
MOST_ROWS = 50_000


def kept_of(count: int, most_rows: int) -> Fraction:
    """Returns the fraction of a set's images whose features are kept.

    Args:
      count: Number of images of the set.
      most_rows: Most images whose features are kept.

    Returns:
      The fraction, for `Measurement.twin`.
    """
    return Fraction(min(most_rows, count), count)


@dataclasses.dataclass(frozen=True)
class ReferenceStatistics:
    """Statistics of the features of a set of images, and their origin.

    Attributes:
      taps: Network and tap, such as "inception/2048" -> its TapStatistics.
      record: JSON-like dict: "name" of the images, their "count", "images", a hash of
        the list of them; "preprocessing", a dict of "size" [H, W], "crop", "resize" and
        "values", which values are black and white (None for 8-bit RGB); "networks",
        name -> record of the network with its "checksum"; and "rows", by tap the number
        of images whose features are kept, and how they were chosen. For files of others
        "images" is a hash of the file, "note" a remark for results with this reference,
        and of the rest there is what the file shows.
    """

    taps: Mapping[str, TapStatistics]
    record: Mapping[str, Any]

    def save(self, path: str | os.PathLike) -> None:
        """Writes the file atomically.

        Args:
          path: Path of the file.

        Raises:
          DiskError: If it cannot be written.
        """
        record = dict(self.record) | {"taps": {}}
        arrays = {}
        for tap, statistics in self.taps.items():
            mean, covariance = self._names(tap)
            record["taps"][tap] = int(statistics.count)
            arrays[mean] = np.asarray(statistics.mean, np.float64)
            arrays[covariance] = np.asarray(statistics.covariance, np.float64)
            if statistics.rows is not None:
                arrays[f"{tap}/rows"] = np.asarray(statistics.rows, np.float32)
        arrays[_RECORD] = np.array(json.dumps(record))
        with replacing(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
            write_arrays(archive, arrays)

    def _names(self, tap):
        """Names of a tap's arrays; those of guided-diffusion only for FID's weights."""
        network = self.record["networks"].get(tap.split("/")[0], {})
        if tap in ADM_NAMES and network.get("weights") != "random":
            return ADM_NAMES[tap]
        return f"{tap}/mu", f"{tap}/sigma"

    @classmethod
    def load(
        cls,
        path: str | os.PathLike,
        key: str = "--reference",
        rows: Collection[str] | None = None,
    ) -> "ReferenceStatistics":
        """Reads a file of this package or of guided-diffusion or pytorch-fid.

        Args:
          path: Path of the npz.
          key: The flag or config key that names it, for messages.
          rows: Taps whose features of single images are read; all by default.

        Returns:
          The statistics.

        Raises:
          ConfigError: If it cannot be read or is not such a file.
        """
        path = local_copy(path)
        keys = keys_of(path, key)
        if not {_RECORD, "mu", "mu_s"} & keys:
            raise ConfigError(
                f"{key}: {path} holds {', '.join(sorted(keys)) or 'nothing'}, no "
                "statistics: give a file of ldm-reference, or an npz with mu and sigma"
            )
        try:
            with np.load(path, allow_pickle=False) as archive:
                found = cls._read(archive, keys, path, key, rows)
        except ConfigError:
            raise
        # A damaged file can raise nearly anything.
        except Exception as error:
            raise_if_silent(path, error)
            text = " ".join(str(error).split()) or type(error).__name__
            raise ConfigError(
                f"{key}: {path} cannot be read ({text}): make it again"
            ) from error
        _check_finite(found.taps, path, key)
        return found

    @classmethod
    def _read(cls, archive, keys, path, key, wanted):
        if _RECORD not in keys:
            return cls(*read_published(archive, keys, path, key))
        record, taps = json.loads(str(archive[_RECORD])), {}
        counts = record.pop("taps")
        this = cls({}, record)
        for tap, count in counts.items():
            mean, covariance = (archive[name] for name in this._names(tap))
            is_wanted = wanted is None or tap in wanted
            there = is_wanted and f"{tap}/rows" in keys
            rows = archive[f"{tap}/rows"] if there else None
            taps[tap] = TapStatistics(count, mean, covariance, rows)
        return cls(taps, record)

    @property
    def rows(self) -> dict[str, int]:
        """Tap -> number of images whose features are kept."""
        taps = self.taps.items()
        return {tap: len(each.rows) for tap, each in taps if each.rows is not None}

    def thinned(self, most: int) -> "ReferenceStatistics":
        """Keeps the features of at most some images; the moments stay those of all.

        Args:
          most: Most images whose features are kept; they are evenly spaced.

        Returns:
          Statistics with the number of these images in their record, as "rows".
        """
        taps = dict(self.taps)
        for tap, count in self.rows.items():
            if count > most:
                rows = taps[tap].rows[evenly_spaced(count, most)]
                taps[tap] = taps[tap]._replace(rows=rows)
        record = {name: value for name, value in self.record.items() if name != "rows"}
        found = ReferenceStatistics(taps, record)
        if found.rows:
            record["rows"] = {"chosen": "evenly spaced", "count": found.rows}
        return found

    def check(self, record: Mapping[str, Any], name: str | os.PathLike) -> None:
        """Checks that images were measured in the same way as this reference.

        Args:
          record: Record of these images: "networks" and "preprocessing" as in the
            attribute `record`, as far as they are known.
          name: Name of this reference, for messages.

        Raises:
          ConfigError: If a network, its weights, the size, the crop, the filter or the
            range of values differ.
        """
        where = f"the reference {name}"
        for name, network in record.get("networks", {}).items():
            _check_network(where, name, self.record["networks"].get(name), network)
        here, there = record.get("preprocessing"), self.record.get("preprocessing")
        if here and there:
            _check_preprocessing(where, here, there)


def _check_finite(taps, path, key):
    for tap, statistics in taps.items():
        for what in ("mean", "covariance", "rows"):
            array = getattr(statistics, what)
            if array is not None and not np.isfinite(array).all():
                raise ConfigError(
                    f"{key}: {path} has numbers that are not finite (the {what} of "
                    f"{tap}): make it again"
                )


def _check_network(where, name, there, here):
    if there is None:
        return
    random = "random" in (there.get("weights"), here.get("weights"))
    if random and there.get("weights") != here.get("weights"):
        found, wanted = (
            "random weights"
            if network.get("weights") == "random"
            else f"the weights {network.get('weights')}"
            for network in (here, there)
        )
        raise ConfigError(
            f"{where} was made with {wanted} of {name} and this is measured with "
            f"{found}: give --feature_weights={name}=FILE (in training eval.weights), "
            "the same file for both"
        )
    checksums = there.get("checksum"), here.get("checksum")
    if None not in checksums and checksums[0] != checksums[1]:
        raise ConfigError(
            f"{where} was made with other weights of {name} (checksum {checksums[0]}) "
            f"than these ({checksums[1]}): give the same --feature_weights (in "
            "training eval.weights) for both"
        )


def _check_preprocessing(where, here, there):
    sizes = [tuple(each.get("size") or ()) for each in (there, here)]
    if all(sizes) and sizes[0] != sizes[1]:
        there_size, here_size = (" x ".join(map(str, size)) for size in sizes)
        raise ConfigError(
            f"{where} is of images of {there_size} pixels and these have {here_size}: "
            "make a reference of this size with ldm-reference --image_size"
        )
    for key in ("crop", "resize", "values"):
        values = there.get(key), here.get(key)
        # Samples are neither cropped nor resized.
        if None in values:
            continue
        if not (same_range(*values) if key == "values" else values[0] == values[1]):
            advice = "make a reference of images that were cut like these"
            if key == "values":
                advice = "ldm-reference --workdir reads images as the run does"
            raise ConfigError(
                f"{where} is of images with {key} {values[0]} and these have {key} "
                f"{values[1]}: {advice}"
            )
