"""Reference statistics: features of a set of images in a file, and what they are of.

The file is an npz. Where its features are those of FID's Inception it has the arrays
`mu`, `sigma`, `mu_s` and `sigma_s` of guided-diffusion, so that other evaluators read
it, too; and what others publish in that form is read here. Files of this package also
say in `record` of which images, cut in which way, by which weights they were made:
what is measured in another way is not compared with them.
"""

import dataclasses
import json
import os
import zipfile
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from ldm_jax.errors import ConfigError
from ldm_jax.files import replacing
from ldm_jax.metrics.adm_npz import keys_of, write_arrays
from ldm_jax.metrics.statistics import TapStatistics, evenly_spaced

# Tap -> guided-diffusion's names of its mean and its covariance.
_ADM = {"inception/2048": ("mu", "sigma"), "inception/spatial": ("mu_s", "sigma_s")}

# Features of a tap of `_ADM`.
_WIDTHS = {"inception/2048": 2048, "inception/spatial": 2023}

_RECORD = "record"


@dataclasses.dataclass(frozen=True)
class ReferenceStatistics:
    """Features of a set of images, and where they come from.

    Attributes:
      taps: Network and tap, as "inception/2048" -> its TapStatistics.
      record: JSON-like dict: "name" of the images, their "count", "images", a hash of
        the list of them, "preprocessing", a dict of "size" [H, W], "crop" and "resize",
        and "networks", name -> record of the network (its "checksum"). "rows" says of
        how many images features are there, by tap, and how they were chosen. Of files
        that others wrote the rest is there as far as it is known.
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
        if tap in _ADM and network.get("weights") != "random":
            return _ADM[tap]
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
        keys = keys_of(path, key)
        if not {_RECORD, "mu", "mu_s"} & keys:
            raise ConfigError(
                f"{key}: {path} holds {', '.join(sorted(keys)) or 'nothing'}, no "
                "statistics: give a file of ldm-reference, or an npz with mu and sigma"
            )
        try:
            with np.load(path, allow_pickle=False) as archive:
                return cls._read(archive, keys, path, key, rows)
        except ConfigError:
            raise
        # Of a damaged file nearly anything.
        except Exception as error:
            text = " ".join(str(error).split()) or type(error).__name__
            raise ConfigError(
                f"{key}: {path} cannot be read ({text}): make it anew"
            ) from error

    @classmethod
    def _read(cls, archive, keys, path, key, wanted):
        if _RECORD not in keys:
            return cls(*_read_foreign(archive, keys, path, key))
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


def _read_foreign(archive, keys, path, key):
    """(taps, record) of a file of guided-diffusion or pytorch-fid."""
    taps = {}
    for tap, (mean, covariance) in _ADM.items():
        if not {mean, covariance} <= keys:
            continue
        mean, covariance = archive[mean], archive[covariance]
        width = _WIDTHS[tap]
        if mean.shape != (width,) or covariance.shape != (width, width):
            raise ConfigError(
                f"{key}: {path} has statistics of {mean.shape[-1]} features, "
                f"and {tap} has {width}: they are of another network"
            )
        # How many images they are of the file does not say.
        arrays = (array.astype(np.float64) for array in (mean, covariance))
        taps[tap] = TapStatistics(0, *arrays, None)
    if not taps:
        raise ConfigError(
            f"{key}: {path} has mu without sigma, or the other way round: give "
            "an npz with both"
        )
    network = {"network": "inception", "weights": "published", "checksum": None}
    record = {"name": os.path.basename(path), "networks": {"inception": network}}
    return taps, record


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
            f"{found}: give --feature_weights={name}=FILE, the same file for both"
        )
    checksums = there.get("checksum"), here.get("checksum")
    if None not in checksums and checksums[0] != checksums[1]:
        raise ConfigError(
            f"{where} was made with other weights of {name} (checksum {checksums[0]}) "
            f"than these ({checksums[1]}): give the same --feature_weights for both"
        )


def _check_preprocessing(where, here, there):
    sizes = [tuple(each.get("size") or ()) for each in (there, here)]
    if all(sizes) and sizes[0] != sizes[1]:
        there_size, here_size = (" x ".join(map(str, size)) for size in sizes)
        raise ConfigError(
            f"{where} is of images of {there_size} pixels and these have {here_size}: "
            "make a reference of this size with ldm-reference --image_size"
        )
    for key in ("crop", "resize"):
        values = there.get(key), here.get(key)
        # Samples are as the model draws them, neither cut nor resized.
        if None not in values and values[0] != values[1]:
            raise ConfigError(
                f"{where} is of images with {key} {values[0]} and these have {key} "
                f"{values[1]}: make a reference of images that were cut like these"
            )
