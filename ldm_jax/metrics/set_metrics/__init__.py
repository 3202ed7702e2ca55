"""Metrics of sets of images by their features: one row of SET_METRICS each.

| module | what |
| --- | --- |
| `frechet` | Fréchet distances: FID, sFID, FD-DINOv2 |
| `kernel` | maximum mean discrepancies: KID, CMMD |
| `neighbours` | precision and recall, density and coverage |
| `inception_score` | the inception score, which needs no reference |
| `clip_score` | the CLIP score of images and their captions |
| `blocks` | pairs of rows, in blocks |
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from ldm_jax.metrics.features.clip_weights import EMBEDDING
from ldm_jax.metrics.set_metrics.clip_score import COSINE, clip_score
from ldm_jax.metrics.set_metrics.frechet import frechet
from ldm_jax.metrics.set_metrics.inception_score import inception_score
from ldm_jax.metrics.set_metrics.kernel import cmmd, kid
from ldm_jax.metrics.set_metrics.neighbours import density_coverage, precision_recall
from ldm_jax.metrics.set_metrics.results import Result
from ldm_jax.metrics.statistics import TapStatistics

__all__ = ["SET_METRICS", "SetMetric", "Result", "Value", "taps_with_rows"]


class Value(NamedTuple):
    """One number of a metric.

    Attributes:
      title: Title for reports.
      better: "lower" or "higher".
    """

    title: str
    better: str = "lower"


class SetMetric(NamedTuple):
    """A row of SET_METRICS.

    Attributes:
      values: Name -> Value, the numbers of the metric.
      network: Row of FEATURES.
      tap: Tap of that network, or COSINE, which `programs` computes with captions.
      measure: (statistics of the images, of the reference or None, seed) -> Result, or
        dict of name -> Result if there are several; with value, deviation and note.
      needs_rows: Whether it needs the features of each image, not only their moments.
      needs_reference: Whether images are compared with a reference.
      needs_captions: Whether it needs captions of the images.
      protocol: Number of images of published numbers.
    """

    values: Mapping[str, Value]
    network: str
    tap: str
    measure: Callable[
        [TapStatistics, TapStatistics | None, int], Result | dict[str, Result]
    ]
    needs_rows: bool = False
    needs_reference: bool = True
    needs_captions: bool = False
    protocol: int = 50_000


_FID = SetMetric({"fid": Value("FID")}, "inception", "2048", frechet)

# Metrics by name.
SET_METRICS = {
    "fid": _FID,
    # With the features of pytorch-fid, which resizes in another way.
    "pytorch_fid": _FID._replace(
        values={"pytorch_fid": Value("FID of pytorch-fid")},
        network="inception_pytorch_fid",
    ),
    # Of reconstructions, with their images as the reference.
    "rfid": _FID._replace(values={"rfid": Value("rFID")}),
    # Nash et al. 2021: of part of a feature map, which keeps the positions of things.
    "sfid": SetMetric({"sfid": Value("sFID")}, "inception", "spatial", frechet),
    "kid": SetMetric({"kid": Value("KID")}, "inception", "2048", kid, needs_rows=True),
    "inception_score": SetMetric(
        {"inception_score": Value("inception score", "higher")},
        network="inception",
        tap="logits",
        measure=inception_score,
        needs_rows=True,
        needs_reference=False,
    ),
    # With FID's features, as in guided-diffusion; the papers use VGG16's.
    "precision_recall": SetMetric(
        {
            "precision": Value("precision", "higher"),
            "recall": Value("recall", "higher"),
        },
        network="inception",
        tap="2048",
        measure=precision_recall,
        needs_rows=True,
    ),
    "density_coverage": SetMetric(
        {
            "density": Value("density", "higher"),
            "coverage": Value("coverage", "higher"),
        },
        network="inception",
        tap="2048",
        measure=density_coverage,
        needs_rows=True,
    ),
    # Stein et al. 2023.
    "fd_dinov2": SetMetric(
        {"fd_dinov2": Value("FD-DINOv2")}, "dinov2", "class_token", frechet
    ),
    "cmmd": SetMetric(
        {"cmmd": Value("CMMD")},
        network="clip",
        tap=EMBEDDING,
        measure=cmmd,
        needs_rows=True,
        protocol=30_000,
    ),
    "clip_score": SetMetric(
        {"clip_score": Value("CLIP score", "higher")},
        network="clip",
        tap=COSINE,
        measure=clip_score,
        needs_rows=True,
        needs_reference=False,
        needs_captions=True,
        protocol=30_000,
    ),
    "frechet": SetMetric(
        {"frechet": Value("Fréchet distance")}, "random", "pooled", frechet
    ),
}


def taps_with_rows(names: Sequence[str]) -> list[str]:
    """Lists the taps at which metrics need the features of each reference image.

    Args:
      names: Rows of SET_METRICS.

    Returns:
      Networks and taps, such as "inception/2048", sorted.
    """
    rows = [SET_METRICS[name] for name in names]
    rows = [row for row in rows if row.needs_rows and row.needs_reference]
    return sorted({f"{row.network}/{row.tap}" for row in rows})
