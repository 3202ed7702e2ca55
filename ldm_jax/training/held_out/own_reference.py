"""Reference statistics of a run's own images, computed once, saved in its workdir."""

import json
import time

import jax

from ldm_jax import peers
from ldm_jax.errors import ConfigError
from ldm_jax.images import pixels_of
from ldm_jax.metrics.measurement import Measurement
from ldm_jax.metrics.reference import CUT, MOST_ROWS, ReferenceStatistics, kept_of
from ldm_jax.metrics.set_metrics import taps_with_rows
from ldm_jax.store import exists
from ldm_jax.training.held_out.eval_options import EvalOptions
from ldm_jax.training.start.opened import Run

_FILE = "eval_reference.npz"

# Seconds between lines of progress.
_QUIET = 60.0


def own_reference(
    run: Run, measurement: Measurement, options: EvalOptions
) -> ReferenceStatistics:
    """Loads the run's own reference statistics, or computes them if none match.

    They are of the training images; for a first stage of the held-out images that it
    reconstructs. Every process must call it.

    Args:
      run: The run.
      measurement: Measurement of the run's metrics; no images are added to it.
      options: EvalOptions.

    Returns:
      The statistics.

    Raises:
      DataError: If there are fewer than two images.
    """
    record = _record(run, measurement, options)
    path = run.checkpoints.workdir / _FILE
    # The first process decides for all.
    found = "" if jax.process_index() else _is_there(path, record)
    if peers.gather(found)[0]:
        rows = taps_with_rows(options.distances)
        return ReferenceStatistics.load(path, rows=rows)
    return _make(run, measurement, record, path, options.batch_size)


def _record(run, measurement, options):
    """The record of the reference, without the number of images that could be read."""
    side = run.config.data.image_size
    held_out = run.config.stage == "autoencoder"
    images = run.data.describe_images(held_out)
    return {
        "name": f"{images['data']}, {images['split']}",
        "images": images["fingerprint"],
        "listed": images["listed"],
        "held_out": held_out,
        "limit": options.num_samples if held_out else options.reference_images,
        "preprocessing": {"size": [side, side]} | CUT,
        "networks": measurement.record,
        "distances": list(options.distances),
        "most_rows": MOST_ROWS,
    }


def _is_there(path, record):
    """A non-empty string if the file is of the same images and networks, else ""."""
    if not exists(path):
        return ""
    try:
        theirs = ReferenceStatistics.load(path, rows=()).record
    except ConfigError:
        return ""
    return "yes" if _plain(theirs, record) == _plain(record, record) else ""


def _plain(record, like):
    """The keys of a record that another one has, as after a round trip through JSON."""
    return json.loads(json.dumps({key: record.get(key) for key in like}))


def _make(run, measurement, record, path, batch_size):
    line, spoken = run.console.line, time.monotonic()
    total = min(record["listed"], record["limit"] or record["listed"])
    line(
        f"reference statistics of {total:,} images of {record['name']} are made, once; "
        "eval.reference takes a file of ldm-reference in their place"
    )
    measurement = measurement.twin(kept_of(total, MOST_ROWS))
    images = run.data.images_alone(record["held_out"], record["limit"], batch_size)
    done = 0
    show = jax.jit(pixels_of(run.config.data).shown)
    for batch in images:
        measurement.add(show(batch["image"]), batch["mask"])
        peers.progress()
        done += len(batch["mask"])
        if time.monotonic() - spoken > _QUIET:
            line(f"reference statistics: {done:,} of {total:,} images")
            spoken = time.monotonic()
    statistics, count = measurement.statistics(), measurement.count
    reference = ReferenceStatistics(statistics, record | {"count": count})
    reference = reference.thinned(MOST_ROWS)
    if jax.process_index() == 0:
        reference.save(path)
    line(f"reference statistics of {count:,} images: {path}")
    return reference
