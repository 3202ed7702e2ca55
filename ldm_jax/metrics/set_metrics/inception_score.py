"""Inception score: how confident a classifier is, and how varied its classes are."""

import numpy as np

from ldm_jax.metrics.set_metrics.results import Result
from ldm_jax.metrics.statistics import TapStatistics

# Parts of the set; published numbers use 10 parts of 5,000 images each.
SPLITS = 10


def inception_score(
    images: TapStatistics, reference: TapStatistics | None, seed: int
) -> Result:
    """Inception score (Salimans et al. 2016, Sec. 4).

    exp of the mean KL divergence of the class distribution of an image from that of its
    part of the set, averaged over ten parts of the images in random order. With the
    same seed the parts are those of torch-fidelity.

    Args:
      images: Statistics of the logits, with rows.
      reference: Not used.
      seed: Seed of the order of the images.

    Returns:
      The score, at least 1, and its standard deviation over the parts.
    """
    del reference
    logits, count = images.rows, len(images.rows)
    splits = min(SPLITS, count)
    # Images sorted by class would make parts of few classes each. The generator is that
    # of torch-fidelity.
    order = np.random.RandomState(seed).permutation(count)  # noqa: NPY002
    edges = [i * count // splits for i in range(splits + 1)]
    scores = [
        _score(logits[order[start:end]])
        for start, end in zip(edges, edges[1:], strict=False)
    ]
    note = "" if splits == SPLITS else f"{splits} parts instead of {SPLITS}"
    return Result(float(np.mean(scores)), float(np.std(scores)), note=note)


def _score(logits):
    """Score of one part, from logits [n, classes]."""
    logs = logits.astype(np.float64)
    logs -= logs.max(axis=1, keepdims=True)
    logs -= np.log(np.exp(logs).sum(axis=1, keepdims=True))
    probabilities = np.exp(logs)
    with np.errstate(divide="ignore"):
        # A class of probability 0 in all images adds nothing to the sum below.
        whole = np.log(probabilities.mean(axis=0))
    terms = np.where(probabilities > 0, probabilities * (logs - whole), 0.0)
    return np.exp(terms.sum(axis=1).mean())
