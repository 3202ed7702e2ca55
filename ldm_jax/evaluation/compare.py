"""Measures a set of images against a reference, and writes the results."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from ldm_jax import peers
from ldm_jax.annotations import Int
from ldm_jax.config import Section
from ldm_jax.errors import ConfigError
from ldm_jax.evaluation.image_sets import ImageSet, open_images, open_training_set
from ldm_jax.evaluation.published_numbers import TOLERANCE, find_published
from ldm_jax.evaluation.references import (
    is_statistics,
    measure_reference,
    read_reference,
)
from ldm_jax.evaluation.report import (
    compare_published,
    comparison_reasons,
    markdown,
    print_table,
    published_record,
    record_of_results,
)
from ldm_jax.evaluation.resuming import Saved, agree
from ldm_jax.evaluation.scoring import measure, read_finished, say, settings_of
from ldm_jax.files import write_bytes, write_json
from ldm_jax.metrics.adm_npz import LABELS, ImageFile, StoredImages
from ldm_jax.metrics.features import FEATURES
from ldm_jax.metrics.measurement import Measurement
from ldm_jax.metrics.protocols import PROTOCOLS
from ldm_jax.metrics.reference import MOST_ROWS, ReferenceStatistics
from ldm_jax.metrics.set_metrics import SET_METRICS, Result
from ldm_jax.store import Place, raise_if_silent


class Comparison(NamedTuple):
    """How a set of images is measured.

    Attributes:
      metrics: Rows of SET_METRICS.
      outdir: Folder of the results.
      weights: Row of FEATURES -> file of its weights.
      protocol: Row of PROTOCOLS, or None.
      reference: Folder of images, npz of images or file of statistics; None for the
        training images of the run, see `training`.
      training: Config section `data` of the run that is measured, or None.
      image_size: Side to which images of a reference are cropped and resized; None
        leaves them unchanged.
      batch_size: Global batch size.
      save_every: Images between two saves of the state.
      skip_unreadable: Whether images that cannot be read are left out.
      published: Row of PUBLISHED to compare with, or None.
      npz: Whether the images are also written to `samples.npz`.
    """

    metrics: Sequence[str]
    outdir: Place
    weights: Mapping[str, str]
    protocol: str | None = None
    reference: str | None = None
    training: Section | None = None
    image_size: int | None = None
    batch_size: int = 16
    save_every: int = 5_000
    skip_unreadable: bool = False
    published: str | None = None
    npz: bool = False


def compare(
    images: ImageSet,
    how: Comparison,
    mesh: Mesh,
    labels: Int[np.ndarray, " count"] | None = None,
) -> dict[str, Result]:
    """Measures a set, prints the table and writes `metrics.json` and `metrics.md`.

    Args:
      images: The set.
      how: How it is measured.
      mesh: Mesh over the devices of all processes.
      labels: Classes of the images, int32 [N], for `samples.npz`.

    Returns:
      Name -> result.

    Raises:
      ConfigError: If the settings do not fit together; before anything is measured.
      DataError: If images cannot be read.
    """
    sampling = images.record.get("sample", {})
    # Before the samples are drawn, so that a misspelt row fails at once.
    published = how.published and find_published(how.published, sampling)
    measurement, more = open_measurement(images, how, mesh)
    settings = settings_of(images, measurement, more)
    saved = Saved(how.outdir / "evaluation.partial.npz", settings, how.save_every)
    file, keep = how.outdir / "samples.npz", None
    if how.npz:
        keep = ImageFile(file, (images.count, *images.size, 3))
    results, more = _finished(how, settings)
    if results is None:
        left_out = measure(images, measurement, saved, keep)
        results, more = measurement.results(), {"samples": None}
        unreadable = [images.describe(number) for number in left_out]
        more["unreadable"] = [*images.left_out, *unreadable]
        if keep is not None and not jax.process_index():
            others = {} if labels is None else {LABELS: np.asarray(labels)}
            keep.finish(measurement.count, **others)
            more["samples"] = StoredImages(file).fingerprint
        _write(images, how, results, settings | more, published)
        # The state is removed once the results are written, for all processes.
        peers.gather("the results are written")
        saved.remove()
    else:
        say(f"measured already: {how.outdir / 'metrics.json'}")
        # --published may be given only when the command is run again.
        if published is not None:
            _write(images, how, results, settings | more, published)
    _print(images, how, results, published)
    # Without a saved state these images serve no run to resume.
    if keep is not None and not jax.process_index() and not saved.exists():
        keep.remove()
    return results


def open_measurement(
    images: ImageSet, how: Comparison, mesh: Mesh
) -> tuple[Measurement, dict[str, Any]]:
    """Loads the networks, and reads or measures the reference.

    Args:
      images: The set to measure, or another one with the same preprocessing.
      how: How it is measured.
      mesh: Mesh over the devices of all processes.

    Returns:
      (measurement, more): an empty Measurement for the set, and further settings, the
      `more` of `settings_of`.

    Raises:
      ConfigError: If the settings do not fit together.
      DataError: If images of the reference cannot be read.
    """
    _check_protocol(images, how)
    _check_reference(images, how)
    _check_captions(images, how)
    asked = how.protocol and PROTOCOLS[how.protocol].num_samples
    measurement = Measurement(how.metrics, mesh, how.weights, protocol=asked)
    if not jax.process_index():
        _name_random(measurement)
    reference = _open_reference(images, how, measurement, mesh)
    if reference is not None:
        measurement.compare_with(reference)
    record = reference and reference.record
    return measurement, {"reference": record, "protocol": how.protocol}


def _finished(how, settings):
    """(results, what else was recorded) of an earlier run, or (None, None)."""
    path = how.outdir / "metrics.json"
    found = read_finished(path, settings, ("unreadable", "samples"))
    if found is not None and how.npz and not _has_samples(how, found[1]["samples"]):
        found = None
    agree(path, "finished" if found is not None else "not finished")
    return found or (None, None)


def _has_samples(how, fingerprint):
    """Whether `samples.npz` still holds the samples that were measured."""
    path = how.outdir / "samples.npz"
    try:
        found = StoredImages(path)
    except (ConfigError, OSError) as error:
        raise_if_silent(path, error)
        return False
    return found.fingerprint == fingerprint


def _name_random(measurement):
    """Warns, before hours of work, that random weights give no published metric."""
    for name, record in measurement.record.items():
        if record["weights"] == "random" and name != "random":
            row = FEATURES[name]
            print(
                f"{row.title} has random weights: numbers are called random-features "
                f"distance. Give --feature_weights={name}=FILE; its file: {row.where}"
            )


def _check_protocol(images, how):
    if how.protocol is None:
        return
    side = PROTOCOLS[how.protocol].image_size
    if side is not None and tuple(images.size) != (side, side):
        height, width = images.size
        drawn = "sample" in images.record
        advice = f"give --image_size={side} or leave" if not drawn else "leave"
        raise ConfigError(
            f"--protocol={how.protocol} is of images of {side} x {side} pixels and "
            f"these have {height} x {width}: {advice} the protocol out"
        )


def _needing(how):
    """The metrics that compare with a reference."""
    return [name for name in how.metrics if SET_METRICS[name].needs_reference]


def _check_reference(images, how):
    if how.reference is None and how.training is None and _needing(how):
        raise ConfigError(
            f"--distances={','.join(_needing(how))}: a reference is needed; give "
            "--reference, a folder of images, an npz or a file of ldm-reference"
        )
    # Before the networks are loaded, so that what is wrong fails at once.
    as_it_is = how.reference is None or is_statistics(how.reference)
    if how.image_size is not None and as_it_is and "sample" in images.record:
        what = "the training images" if how.reference is None else "statistics"
        reason = f"what they are compared with, {what}, has a size of its own"
        if not _needing(how):
            reason = f"--distances={','.join(how.metrics)} compare with no images"
        raise ConfigError(
            f"--image_size={how.image_size}: samples are as the model draws them, and "
            f"{reason}; leave it out"
        )


def _check_captions(images, how):
    wanting = [name for name in how.metrics if SET_METRICS[name].needs_captions]
    if wanting and images.tokens is None:
        advice = "give them with --prompts_file"
        if "sample" in images.record:
            advice = "measure a model that draws from captions"
        raise ConfigError(
            f"--distances={','.join(wanting)}: images are compared with their captions "
            f"and these have none: {advice}, or leave it out"
        )


def _open_reference(images, how, measurement, mesh):
    """ReferenceStatistics, or None where no metric needs a reference."""
    needing = _needing(how)
    if not needing:
        return None
    # The reference images have no captions, and need no scores without a reference.
    if needing != list(how.metrics):
        measurement = measurement.twin(metrics=needing)
    most = (how.protocol and PROTOCOLS[how.protocol].reference_rows) or MOST_ROWS
    file, every = how.outdir / "reference.npz", how.save_every
    options = {"skip_unreadable": how.skip_unreadable, "flag": "--reference"}
    if how.reference is None:
        others = open_training_set(how.training, mesh, how.batch_size)
    elif is_statistics(how.reference):
        place, size = how.reference, how.batch_size
        return read_reference(
            place, measurement, mesh, how.outdir, every, size, most, _cut_of(images)
        )
    else:
        others = open_images(
            how.reference, mesh, how.batch_size, image_size=how.image_size, **options
        )
    check_sizes(images, others)
    return measure_reference(others, measurement, file, every, most)


def _cut_of(images):
    return images.record["preprocessing"]


def check_sizes(images: ImageSet, others: ImageSet) -> None:
    """Checks that the images of two sets are cropped and resized in the same way.

    Args:
      images: A set.
      others: The set that it is compared with.

    Raises:
      ConfigError: If their sizes or their crops differ.
    """
    reference = ReferenceStatistics({}, others.record | {"networks": {}})
    reference.check({"preprocessing": _cut_of(images)}, others.name)


def _write(images, how, results, settings, published):
    """Writes the results, on the first process."""
    if jax.process_index():
        return
    verdicts, source = [], ""
    if published is not None:
        reference = settings["reference"]
        reasons = comparison_reasons(published, images.record, reference, how.protocol)
        verdicts = compare_published(results, published, TOLERANCE, reasons)
        source = published.source
    record = settings | record_of_results(results)
    record["published"] = published and published_record(
        how.published, verdicts, source
    )
    title = images.name
    if how.published is not None:
        title = f"{how.published}: {title}"
    text = markdown(title, results, verdicts, TOLERANCE, source)
    write_bytes(how.outdir / "metrics.md", text.encode())
    # Written last: if it exists, all files are complete.
    write_json(how.outdir / "metrics.json", record)


def _print(images, how, results, published):
    """Prints the results, on the first process."""
    if jax.process_index():
        return
    count = next(iter(results.values())).count
    height, width = images.size
    print_table(f"{images.name}: {count:,} images of {height} x {width}", results)
    if published is not None:
        print((how.outdir / "metrics.md").read_text(), end="")
    print(f"numbers: {how.outdir / 'metrics.json'}")
    if how.npz:
        print(f"array: {how.outdir / 'samples.npz'}")
