"""The reference of an evaluation: statistics from a file, or of images measured now."""

import math
import os
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from ldm_jax import peers
from ldm_jax.errors import ConfigError, DataError
from ldm_jax.evaluation.image_sets import ImageSet, open_images
from ldm_jax.evaluation.resuming import Saved, brought_up, is_there
from ldm_jax.evaluation.scoring import count_unreadable, measure, settings_of
from ldm_jax.metrics.adm_npz import IMAGES, keys_of
from ldm_jax.metrics.measurement import Measurement
from ldm_jax.metrics.reference import MOST_ROWS, ReferenceStatistics, kept_of
from ldm_jax.metrics.set_metrics import taps_with_rows
from ldm_jax.reading import is_folder
from ldm_jax.sampling.settings import first_difference
from ldm_jax.store import as_path, local_copy

# Entries in which an existing file must equal the one that would be made.
_COMPARED = ("images", "listed", "preprocessing", "networks")


def is_statistics(place: str | os.PathLike) -> bool:
    """Returns whether a reference is a file of statistics, not images.

    Args:
      place: Path of a folder or a file.

    Returns:
      Whether it is one.

    Raises:
      ConfigError: If it is a file but not an npz.
    """
    path = local_copy(place)
    if is_folder(path):
        return False
    return bool({"record", "mu", "mu_s"} & keys_of(path, "--reference"))


def read_reference(
    place: str | os.PathLike,
    measurement: Measurement,
    mesh: Mesh,
    outdir: str | os.PathLike,
    every: int,
    batch_size: int,
    most_rows: int,
    cut: Mapping[str, Any],
) -> ReferenceStatistics:
    """Reads a file of statistics.

    A file of guided-diffusion has the moments of all images and some of the images; the
    features of these images are computed if a metric needs them.

    Args:
      place: Path of the file.
      measurement: Of the metrics that need a reference; no images are added to it.
      mesh: Mesh over the devices of all processes.
      outdir: Folder of the evaluation.
      every: Images between two saves of the state.
      batch_size: Global batch size.
      most_rows: Most images whose features are kept, if metrics need features.
      cut: "preprocessing" of the images that are compared with it.

    Returns:
      The statistics; features are those of evenly spaced images.

    Raises:
      ConfigError: If it cannot be read, was made with other weights, or is of images
        with other preprocessing.
    """
    path = local_copy(place)
    needing = taps_with_rows(measurement.metrics)
    reference = ReferenceStatistics.load(path, rows=needing)
    # Before features are computed, so that a file that does not match fails at once.
    reference.check({"networks": measurement.record, "preprocessing": cut}, place)
    lacking = [tap for tap in needing if _lacks_rows(reference, tap)]
    if lacking and IMAGES in keys_of(path, "--reference"):
        images = open_images(path, mesh, batch_size, flag="--reference")
        file = as_path(outdir) / "reference_rows.npz"
        found = measure_reference(images, measurement, file, every, most_rows)
        taps = dict(reference.taps)
        for tap in lacking:
            # The moments stay those of all images, from the file.
            own = taps.get(tap, found.taps[tap])
            taps[tap] = own._replace(rows=found.taps[tap].rows)
        reference = ReferenceStatistics(taps, reference.record)
    return reference.thinned(most_rows)


def _lacks_rows(reference, tap):
    return tap not in reference.taps or reference.taps[tap].rows is None


def measure_reference(
    images: ImageSet,
    measurement: Measurement,
    path: str | os.PathLike,
    every: int,
    most_rows: int = MOST_ROWS,
) -> ReferenceStatistics:
    """Measures a set of images as a reference, or reads the file of an earlier run.

    Args:
      images: The set.
      measurement: Of the metrics that need a reference; no images are added to it.
      path: The file to read or write; the state of an interrupted run is beside it.
      every: Images between two saves of the state.
      most_rows: Most images whose features are kept, evenly spaced over the set, if
        metrics need features.

    Returns:
      The statistics that the metrics need.

    Raises:
      ConfigError: If the file is of other images or of other weights.
      DataError: If images cannot be read, or the file.
    """
    path = as_path(path)
    needing = taps_with_rows(measurement.metrics)
    record = {
        **images.record,
        "listed": images.count,
        "networks": measurement.record,
        "distances": list(measurement.metrics),
    }
    if is_there(path):
        return _same(_left(path, needing), record, path, most_rows)
    if not jax.process_index():
        print(f"reference: {images.count:,} images, {images.name}", flush=True)
    measurement = measurement.twin(kept_of(images.count, most_rows))
    more = {"most_rows": most_rows} if needing else None
    settings = settings_of(images, measurement, more)
    saved = Saved(path.with_name(f"{path.stem}.partial.npz"), settings, every)
    measure(images, measurement, saved)
    count = measurement.count
    record |= {"count": count, **count_unreadable(images, count)}
    reference = ReferenceStatistics(measurement.statistics(), record).thinned(most_rows)
    if not jax.process_index():
        reference.save(path)
    # No process reads the file before it is complete, or the state once it is removed.
    peers.gather("the reference is written")
    saved.remove()
    return reference


def _left(path, rows):
    """The statistics that an earlier command has left."""
    try:
        return ReferenceStatistics.load(path, "--outdir", rows)
    except ConfigError as error:
        raise DataError(
            f"{error}; remove it, and the same command measures it again"
        ) from error


def _same(found, record, path, most_rows):
    """Returns the statistics found in a file, or raises if they are of another set."""
    there, here = (
        {key: each.get(key) for key in _COMPARED}
        for each in (brought_up(found.record, record), record)
    )
    # Number of images, of those that could be read, whose features would be kept.
    rows = math.ceil(
        kept_of(record["listed"], most_rows) * found.record.get("count", 0)
    )
    for tap in taps_with_rows(record["distances"]):
        there[f"features of {tap}"] = found.rows.get(tap)
        here[f"features of {tap}"] = rows
    difference = first_difference(there, here)
    if difference is not None:
        key, was, wanted = difference
        raise ConfigError(
            f"{path} has statistics of another reference ({key}: {was} there, {wanted} "
            "here): use another folder, or remove it to make it again"
        )
    return found.thinned(most_rows)
