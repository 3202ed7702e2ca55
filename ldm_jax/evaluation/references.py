"""What images are compared with: statistics from a file, or of images measured now."""

import os
import pathlib

import jax
from jax.sharding import Mesh

from ldm_jax import peers
from ldm_jax.errors import ConfigError
from ldm_jax.evaluation.image_sets import ImageSet, open_images
from ldm_jax.evaluation.resuming import Saved
from ldm_jax.evaluation.scoring import measure, settings_of
from ldm_jax.metrics.adm_npz import IMAGES, keys_of
from ldm_jax.metrics.distances import DISTANCES
from ldm_jax.metrics.measurement import Measurement
from ldm_jax.metrics.reference import ReferenceStatistics
from ldm_jax.sampling.settings import first_difference

# Of how many images of a reference features are kept, where distances need them: as
# many as there are samples by the protocols, 400 MB of FID's features.
MOST_ROWS = 50_000

# What must be the same of a file that is there and of what would be made.
_COMPARED = ("images", "listed", "preprocessing", "networks")


def is_statistics(place: str | os.PathLike) -> bool:
    """Says whether a reference is a file of statistics, not images.

    Args:
      place: Path of a folder or a file.

    Returns:
      Whether it is.

    Raises:
      ConfigError: If it is a file and no npz.
    """
    path = os.path.expanduser(place)
    if os.path.isdir(path):
        return False
    return bool({"record", "mu", "mu_s"} & keys_of(path, "--reference"))


def read_reference(
    place: str | os.PathLike,
    measurement: Measurement,
    mesh: Mesh,
    outdir: str | os.PathLike,
    every: int,
    batch_size: int,
) -> ReferenceStatistics:
    """Reads a file of statistics.

    Of guided-diffusion's file, which has moments of all images and some of the images,
    the features of these images are computed where a distance needs them.

    Args:
      place: Its path.
      measurement: Empty, of the distances that need a reference.
      mesh: Mesh over the devices of all processes.
      outdir: Folder of the evaluation.
      every: Images after which the state is saved.
      batch_size: Global batch size.

    Returns:
      The statistics.

    Raises:
      ConfigError: If it cannot be read, or was made with other weights.
    """
    path = os.path.expanduser(place)
    reference = ReferenceStatistics.load(path)
    reference.check({"networks": measurement.record}, place)
    lacking = [tap for tap in _row_taps(measurement) if _lacks_rows(reference, tap)]
    if lacking and IMAGES in keys_of(path, "--reference"):
        images = open_images(path, mesh, batch_size, flag="--reference")
        file = pathlib.Path(outdir) / "reference_rows.npz"
        found = measure_reference(images, measurement, file, every)
        taps = dict(reference.taps)
        for tap in lacking:
            # The moments are those of all images, as the file has them.
            own = taps.get(tap, found.taps[tap])
            taps[tap] = own._replace(rows=found.taps[tap].rows)
        record = dict(reference.record) | {"rows_of": images.count}
        reference = ReferenceStatistics(taps, record)
    return reference


def _row_taps(measurement):
    rows = [DISTANCES[name] for name in measurement.distances]
    rows = [row for row in rows if row.needs_rows and row.needs_reference]
    return sorted({f"{row.network}/{row.tap}" for row in rows})


def _lacks_rows(reference, tap):
    return tap not in reference.taps or reference.taps[tap].rows is None


def measure_reference(
    images: ImageSet,
    measurement: Measurement,
    path: str | os.PathLike,
    every: int,
) -> ReferenceStatistics:
    """Measures a set of images as a reference, or reads it where that was done.

    Args:
      images: The set.
      measurement: What takes them; empty, of the distances that need a reference.
      path: Where the file is, or is to be; the state of a cut run lies beside it.
      every: Images after which the state is saved.

    Returns:
      The statistics, of whatever the distances need.

    Raises:
      ConfigError: If the file is of other images or of other weights.
      DataError: If images cannot be read.
    """
    path = pathlib.Path(path)
    record = {
        **images.record,
        "listed": images.count,
        "networks": measurement.record,
        "distances": list(measurement.distances),
    }
    if path.exists():
        return _same(ReferenceStatistics.load(path), record, path)
    if not jax.process_index():
        print(f"reference: {images.count:,} images, {images.name}", flush=True)
    settings = settings_of(images, measurement)
    saved = Saved(path.with_name(f"{path.stem}.partial.npz"), settings, every)
    measure(images, measurement, saved)
    count = measurement.count
    record |= {"count": count, "unreadable": images.count - count}
    reference = ReferenceStatistics(measurement.statistics(), record)
    if not jax.process_index():
        reference.save(path)
    # No process reads the file before it is whole, or the state after it is gone.
    peers.gather("the reference is written")
    saved.remove()
    return reference


def _same(found, record, path):
    """Refuses a file of statistics in the place of others."""
    there = {key: found.record.get(key) for key in _COMPARED}
    difference = first_difference(there, {key: record.get(key) for key in _COMPARED})
    if difference is not None:
        key, was, wanted = difference
        raise ConfigError(
            f"{path} has statistics of another reference ({key}: {was} there, {wanted} "
            "here): use another folder, or take it away to make it anew"
        )
    return found
