"""Reference statistics: features of a set of images in a file, and what they are of.

The file is an npz. Where its features are those of FID's Inception their moments have
guided-diffusion's names, `mu`, `sigma`, `mu_s` and `sigma_s`; and what others publish
in that form is read here. Files of this package also say in `record` of which images,
cut in which way, by which weights they were made: what is measured in another way is
not compared with them.
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

# How a data set's images are cut where they are not augmented, in "preprocessing".
CUT = {"crop": "center", "resize": "bicubic, antialiased"}

# Of how many images of a reference features are kept, where metrics need them: as
# many as there are samples by the protocols, 400 MB of FID's features.
MOST_ROWS = 50_000


def kept_of(count: int, most_rows: int) -> Fraction:
    """Says of which part of so many images features are kept.

    Args:
      count: Number of images.
      most_rows: Of how many images at most.

    Returns:
      The part, for `Measurement.twin`.
    """
    return Fraction(min(most_rows, count), count)


@dataclasses.dataclass(frozen=True)
class ReferenceStatistics:
    """Features of a set of images, and where they come from.

    Attributes:
      taps: Network and tap, as "inception/2048" -> its TapStatistics.
      record: JSON-like dict: "name" of the images, their "count", "images", a hash of
        the list of them, "preprocessing", a dict of "size" [H, W], "crop", "resize" and
        "values", which are black and white, None of RGB of 8 bits; and "networks", name
        -> record of the network (its "checksum"). "rows" says of how many images
        features are there, by tap, and how they were chosen. Of files that others wrote
        "images" is a hash of the file, of the rest there is what the file shows, and
        "note" is what a number must say of it.
    """

    taps: Mapping[str, TapStatistics]
    record: Mapping[str, Any]

    def save(self, path: str | os.PathLike) -> None:
        """Writes the file in one move.

        Args:
          path: Where to.

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
        """Names of the arrays of a tap; guided-diffusion's only for FID's weights."""
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
          rows: Taps whose features of each image are read; of all by default.

        Returns:
          The statistics.

        Raises:
          ConfigError: If it cannot be read or is something else.
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
        # Of a damaged file nearly anything.
        except Exception as error:
            raise_if_silent(path, error)
            text = " ".join(str(error).split()) or type(error).__name__
            raise ConfigError(
                f"{key}: {path} cannot be read ({text}): make it anew"
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
        """Tap -> of how many images features are there."""
        taps = self.taps.items()
        return {tap: len(each.rows) for tap, each in taps if each.rows is not None}

    def thinned(self, most: int) -> "ReferenceStatistics":
        """Leaves out features of images beyond a number; moments stay those of all.

        Args:
          most: Of how many images features stay; they are evenly spaced.

        Returns:
          Statistics, the record of which says of how many images features are there.
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
        """Refuses a comparison with what was made in another way.

        Args:
          record: Of what is measured: "networks" and "preprocessing" as in the
            attribute `record`, as far as they are known.
          name: What this reference is called, for messages.

        Raises:
          ConfigError: If a network, its weights, the size, the crop or the filter
            differ.
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
                    f"{tap}): make it anew"
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
        # Samples are as the model draws them, neither cut nor resized.
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
