"""Evaluation protocols of the field: numbers of samples, metrics and references.

A number is comparable to a published one only if it was made in the same way. A row
describes one such way, and its name sets the flags of `ldm-evaluate`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple


class Protocol(NamedTuple):
    """A row of PROTOCOLS.

    Attributes:
      title: Title for reports.
      num_samples: Number of samples.
      metrics: Rows of SET_METRICS.
      label_mode: Row of `eval_samples.LABEL_MODES`, how the classes of samples are
        chosen; None if their conditions are those of held-out examples, in order.
      image_size: Side of the images in pixels; None is that of the model.
      reference: Which images make the reference, in words.
      is_reference: Function of a `ReferenceStatistics.record` -> whether it is of these
        images, as far as the record shows.
      reference_rows: Number of images of the reference whose features are kept, for
        precision and recall; None for the default.
      source: Where the protocol is described.
    """

    title: str
    num_samples: int
    metrics: Sequence[str]
    label_mode: str | None
    image_size: int | None
    reference: str
    is_reference: Callable[[Mapping[str, Any]], bool]
    reference_rows: int | None
    source: str


def _is_training_set(record):
    return record.get("whole_training_set", False)


def _is_published(record):
    network = record.get("networks", {}).get("inception", {})
    return network.get("weights") == "published"


def _has(count):
    return lambda record: record.get("count") == count


# Protocols by name.
PROTOCOLS = {
    # Neither the paper nor its code says how classes were drawn. We draw them like ADM,
    # with whose numbers the paper compares its own.
    "paper": Protocol(
        title="latent diffusion",
        num_samples=50_000,
        metrics=("fid", "inception_score", "precision_recall"),
        label_mode="random",
        image_size=None,
        reference="the whole training set, cropped at the centre, not mirrored",
        is_reference=_is_training_set,
        reference_rows=10_000,
        source="Rombach et al. 2022, App. E; torch-fidelity",
    ),
    "adm": Protocol(
        title="guided-diffusion",
        num_samples=50_000,
        metrics=("fid", "sfid", "inception_score", "precision_recall"),
        label_mode="random",
        image_size=None,
        reference="the npz of reference statistics that guided-diffusion publishes",
        is_reference=_is_published,
        reference_rows=10_000,
        source="Dhariwal and Nichol 2021, Sec. 2.2; evaluations/evaluator.py",
    ),
    "coco30k": Protocol(
        title="COCO 30k",
        num_samples=30_000,
        metrics=("fid", "inception_score", "clip_score"),
        label_mode=None,
        image_size=256,
        reference="the 30,000 images of COCO 2014 validation that the captions are of",
        is_reference=_has(30_000),
        reference_rows=10_000,
        source="Rombach et al. 2022, Table 2 and App. E",
    ),
    "layout2048": Protocol(
        title="layouts, 2,048 images",
        num_samples=2_048,
        metrics=("fid",),
        label_mode=None,
        image_size=256,
        reference="the 2,048 held-out images that the layouts are of, cropped at the "
        "centre, not augmented",
        is_reference=_has(2_048),
        reference_rows=None,
        source="Rombach et al. 2022, Table 9 and App. E",
    ),
}
