"""Metrics of a set of images, added batch by batch, on all devices."""

from collections.abc import Mapping, Sequence
from fractions import Fraction

import jax
import numpy as np
from jax.sharding import Mesh

from ldm_jax import peers
from ldm_jax.annotations import Array, Bool, Int, Shaped, UInt8
from ldm_jax.config import choose
from ldm_jax.errors import ConfigError, DataError
from ldm_jax.metrics.features import weights_of
from ldm_jax.metrics.programs import FeatureProgram, require_finite
from ldm_jax.metrics.reference import ReferenceStatistics
from ldm_jax.metrics.set_metrics import SET_METRICS, Result
from ldm_jax.metrics.statistics import ALL, NONE, Moments, TapStatistics


class Measurement:
    """Measures a set of images by several metrics, batch by batch.

    Each network computes the features of all its metrics in one compiled program.
    Every process must call every method, and gets all results.

    Attributes:
      metrics: Names of the metrics.
      record: Name of each network -> its record, for reports.
    """

    def __init__(
        self,
        metrics: Sequence[str],
        mesh: Mesh,
        weights: Mapping[str, str | None] | None = None,
        reference: ReferenceStatistics | None = None,
        seed: int = 2020,
        protocol: int | None = None,
    ) -> None:
        """Loads the networks.

        Args:
          metrics: Rows of SET_METRICS.
          mesh: Mesh of the batches.
          weights: Name of a network -> its file of weights, or None for random ones.
          reference: The reference statistics, if they are known already.
          seed: Seed of random choices, e.g. of the subsets of KID; the default is that
            of torch-fidelity.
          protocol: Number of images that the protocol requires; that of each metric if
            None.

        Raises:
          ConfigError: If a metric or its weights are wrong, or the reference was made
            with other networks.
        """
        self.metrics = tuple(metrics)
        self._rows = {
            name: choose(SET_METRICS, name, "metrics") for name in self.metrics
        }
        self._seed, self._protocol = seed, protocol
        networks = dict.fromkeys(row.network for row in self._rows.values())
        weights = weights or {}
        self._programs = {
            name: FeatureProgram(
                name, weights_of(name, weights), self._taps_of(name), mesh
            )
            for name in networks
        }
        self.record = {
            name: dict(program.network.record)
            for name, program in self._programs.items()
        }
        self._reference = None
        if reference is not None:
            self.compare_with(reference)
        self._kept = ALL
        self._moments = self._empty()
        self._seen = 0
        # Features that are computed while those of the batch before are added up.
        self._pending = None

    def twin(
        self, kept: Fraction = ALL, metrics: Sequence[str] | None = None
    ) -> "Measurement":
        """Makes an empty measurement of the same metrics, for another set.

        Args:
          kept: Fraction of the images whose features are kept, see `Moments`, if
            metrics need features.
          metrics: Metrics of the copy, some of these; all by default.

        Returns:
          A measurement that shares networks and compiled programs with this one.
        """
        other = object.__new__(Measurement)
        vars(other).update(vars(self))
        other._kept = kept
        if metrics is not None:
            other.metrics = tuple(metrics)
            other._rows = {name: self._rows[name] for name in other.metrics}
            networks = dict.fromkeys(row.network for row in other._rows.values())
            programs = {name: self._programs[name] for name in networks}
            other._programs = {
                name: program.of_taps(other._taps_of(name))
                for name, program in programs.items()
            }
            other.record = {name: self.record[name] for name in networks}
        other._moments, other._seen, other._pending = other._empty(), 0, None
        return other

    def _taps_of(self, network):
        rows = (row for row in self._rows.values() if row.network == network)
        return tuple(sorted({row.tap for row in rows}))

    def _empty(self):
        """Empty statistics of each tap; they keep rows only if a metric needs them."""
        needs = {}
        for row in self._rows.values():
            key = f"{row.network}/{row.tap}"
            needs[key] = needs.get(key, False) or row.needs_rows
        return {
            f"{name}/{tap}": Moments(
                width, self._kept if needs[f"{name}/{tap}"] else NONE
            )
            for name, program in self._programs.items()
            for tap, width in program.widths.items()
            if f"{name}/{tap}" in needs
        }

    @property
    def count(self) -> int:
        """Number of images so far."""
        self._settle()
        return self._seen

    def add(
        self,
        images: UInt8[Array, "batch h w c"],
        mask: Bool[Array, " batch"],
        captions: Int[Array, "batch length"] | None = None,
    ) -> None:
        """Adds a batch of images; every process must call it.

        Args:
          images: Global array, uint8 [B, H, W, C].
          mask: Global array, the rows that count, bool [B].
          captions: Global array of the token ids of their captions, [B, L], which the
            CLIP score needs.

        Raises:
          ConfigError: If captions are needed and not given.
          DataError: If features are not finite; it may be raised by the next call.
        """
        found = {
            name: program(images, mask, captions)
            for name, program in self._programs.items()
        }
        self._settle()
        self._pending = found

    def _settle(self):
        """Adds up the features that are still on the devices."""
        pending, self._pending = self._pending, None
        if pending is None:
            return
        real = np.zeros(0, bool)
        for name, (features, mask) in jax.device_get(pending).items():
            real = np.asarray(mask)
            # A twin of fewer metrics may need fewer taps than are computed.
            for tap in self._taps_of(name):
                rows = features[tap][real]
                require_finite(rows, name, tap)
                self._moments[f"{name}/{tap}"].add(rows)
        self._seen += int(real.sum())

    def statistics(self) -> dict[str, TapStatistics]:
        """Returns the statistics of the images so far.

        Returns:
          "network/tap" -> statistics.

        Raises:
          DataError: If there were fewer than two images.
        """
        self._settle()
        return {key: moments.statistics() for key, moments in self._moments.items()}

    def as_reference(self) -> ReferenceStatistics:
        """Makes the images so far the reference of other measurements.

        Returns:
          The statistics, and the networks that they were made with.

        Raises:
          DataError: If there were fewer than two images.
        """
        return ReferenceStatistics(self.statistics(), {"networks": self.record})

    def results(self) -> dict[str, Result]:
        """Computes the metrics of the images so far, against the reference.

        Returns:
          Name -> result. With random weights the name is "random-features distance
          (name)".

        Raises:
          ConfigError: If there is no reference and a metric needs one.
          DataError: If there were fewer than two images.
        """
        taps = None if self._reference is None else self._reference.taps
        own, results = self.statistics(), {}
        for name, row in self._rows.items():
            key, other = f"{row.network}/{row.tap}", None
            if row.needs_reference:
                other = _find(taps, key, name, row)
            found = row.measure(own[key], other, self._seed)
            peers.progress()
            found = {name: found} if isinstance(found, Result) else found
            for value, result in found.items():
                label, result = self._complete(row, value, result, own[key].count)
                results[label] = result
        return results

    def _complete(self, row, value, result, count):
        """Adds the label, the count and the notes to a result, and names it."""
        label, notes = row.values[value].title, [result.note] if result.note else []
        if self._programs[row.network].network.is_random:
            value = label = f"random-features distance ({value})"
        asked = self._protocol or row.protocol
        if count < asked:
            notes.append(f"fewer images than the protocol's {asked}")
        if row.needs_reference and "note" in self._reference.record:
            notes.append(self._reference.record["note"])
        note = "; ".join(notes)
        return value, result._replace(label=label, count=count, note=note)

    def state(self) -> dict[str, Shaped[np.ndarray, "..."] | np.int64]:
        """Returns all that is needed to resume and get the same digits.

        Returns:
          Dict of arrays: "seen" a scalar, and for each tap those of `Moments.state`.
        """
        self._settle()
        arrays = {
            f"{key}/{name}": array
            for key, moments in self._moments.items()
            for name, array in moments.state().items()
        }
        return arrays | {"seen": np.int64(self._seen)}

    def restore(
        self, state: Mapping[str, Shaped[np.ndarray, "..."] | np.int64]
    ) -> None:
        """Restores a state.

        Args:
          state: Dict of arrays [...], the result of `state` with the same metrics.

        Raises:
          DataError: If it is of other metrics.
        """
        self._pending = None
        for key, moments in self._moments.items():
            names = ("count", "sums", "products", "rows")
            missing = [n for n in names if f"{key}/{n}" not in state]
            if missing:
                raise DataError(
                    f"the state of the evaluation has no {key}: it is of other "
                    "metrics; remove it and start again"
                )
            moments.restore({name: state[f"{key}/{name}"] for name in names})
        self._seen = int(state["seen"])

    def compare_with(self, reference: ReferenceStatistics) -> None:
        """Sets the reference, and checks that it has what the metrics need.

        Args:
          reference: The reference statistics.

        Raises:
          ConfigError: If it lacks features of a metric, or was made with other weights.
        """
        for name, row in self._rows.items():
            if row.needs_reference:
                _find(reference.taps, f"{row.network}/{row.tap}", name, row)
        name = reference.record.get("name", "of the images")
        reference.check({"networks": self.record}, name)
        self._reference = reference


def _find(taps, key, name, row):
    """The statistics of a reference that a metric needs."""
    if taps is None:
        raise ConfigError(f"metric {name} compares with a reference: name one")
    if key not in taps:
        raise ConfigError(
            f"metric {name} needs the features {key}, which the reference lacks (it "
            f"has {', '.join(sorted(taps)) or 'none'}); make it again for {name}"
        )
    if row.needs_rows and taps[key].rows is None:
        raise ConfigError(
            f"metric {name} needs the features of each image, and the reference has "
            f"the moments of {key} alone; make it again for {name}"
        )
    return taps[key]
