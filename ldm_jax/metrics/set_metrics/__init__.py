"""Metrics of sets of images by their features: one row of SET_METRICS each.

| module | what |
| --- | --- |
| `frechet` | of two Gaussians: FID, sFID, FD-DINOv2 |
| `kernel` | maximum mean discrepancies: KID, CMMD |
| `neighbours` | precision and recall, density and coverage |
| `inception_score` | of a set alone, by the classes of a classifier |
| `clip_score` | of images and their captions |
| `blocks` | pairs of rows, some at a time |
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
    """A number that a metric gives.

    Attributes:
      title: What it is called in reports.
      better: "lower" or "higher".
    """

    title: str
    better: str = "lower"


class SetMetric(NamedTuple):
    """A row of SET_METRICS.

    Attributes:
      values: Name -> the numbers that it gives.
      network: Row of FEATURES.
      tap: Tap of that network, or what `programs` makes of its taps and captions.
      measure: (statistics of the images, of the reference or None, seed) -> Result, or
        dict of name -> Result where there are several; values, deviations and notes.
      needs_rows: Whether it needs the features themselves, not their moments alone.
      needs_reference: Whether images are compared with a reference.
      needs_captions: Whether images come with their captions.
      protocol: Number of images that published numbers are of.
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
    # Of features as pytorch-fid has them, which resizes in another way.
    "pytorch_fid": _FID._replace(
        values={"pytorch_fid": Value("FID of pytorch-fid")},
        network="inception_pytorch_fid",
    ),
    # Of reconstructions to their images.
    "rfid": _FID._replace(values={"rfid": Value("rFID")}),
    # Nash et al. 2021: of a part of the map of features, where things are.
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
    # Of FID's features, as guided-diffusion measures them; the papers take VGG16's.
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
    """Lists where metrics need the features of each image of a reference.

    Args:
      names: Rows of SET_METRICS.

    Returns:
      Networks and taps, as "inception/2048", in order.
    """
    rows = [SET_METRICS[name] for name in names]
    rows = [row for row in rows if row.needs_rows and row.needs_reference]
    return sorted({f"{row.network}/{row.tap}" for row in rows})
