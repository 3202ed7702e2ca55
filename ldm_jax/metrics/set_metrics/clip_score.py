"""CLIP score: how well images fit the captions that they were drawn from."""

import jax.numpy as jnp
import numpy as np

from ldm_jax.annotations import Array, Float
from ldm_jax.metrics.set_metrics.results import Result
from ldm_jax.metrics.statistics import TapStatistics

# Used as a tap: the cosine of the embeddings of an image and its caption.
COSINE = "caption_cosine"


def caption_cosine(
    images: Float[Array, "batch features"], captions: Float[Array, "batch features"]
) -> Float[Array, "batch 1"]:
    """Cosine of the angle between each image and its caption.

    Args:
      images: Embeddings [B, D].
      captions: Embeddings [B, D].

    Returns:
      float32 [B, 1], from -1 to 1.
    """
    lengths = (jnp.linalg.norm(each, axis=-1) for each in (images, captions))
    cosines = jnp.sum(images * captions, axis=-1) / jnp.prod(jnp.stack([*lengths]), 0)
    return cosines[:, None]


def clip_score(
    images: TapStatistics, reference: TapStatistics | None, seed: int = 0
) -> Result:
    """CLIP score: the mean of 100 max(cos, 0) over images and their captions.

    Hessel et al. 2021 have 2.5 max(cos, 0); usually the factor is 100 instead of 2.5.
    MLPerf's number is this one divided by 100.

    Args:
      images: Statistics of `caption_cosine`, with rows [N, 1].
      reference: Not used.
      seed: Not used.

    Returns:
      The score, from 0 to 100, and the standard error of the mean.
    """
    del reference, seed
    scores = 100.0 * images.rows[:, 0].astype(np.float64).clip(0)
    error = np.std(scores, ddof=1) / np.sqrt(len(scores))
    return Result(float(scores.mean()), float(error))
