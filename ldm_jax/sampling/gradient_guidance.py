"""Guidance by gradients, of a classifier or of the distance to a guide image."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

from ldm_jax.diffusion.gradient_guidance import (
    GradientGuidance,
    classifier_guidance,
    image_guidance,
    low_resolution_distance,
)
from ldm_jax.errors import ConfigError
from ldm_jax.images import to_float
from ldm_jax.models.classifier import log_prob
from ldm_jax.models.lpips import LPIPS, MIN_SIZE
from ldm_jax.sampling.options import RunOptions
from ldm_jax.trained import Trained

# Factor by which samples and the guide image are downsampled for comparison.
GUIDE_FACTOR = 4

# Default scales: the paper's for classifiers (Table 3); with 40 a pixel of the small
# image may be 0.16 off.
_CLASSIFIER_SCALE, _GUIDE_SCALE = 10.0, 40.0


def gradient_guidance_scales(
    trained: Trained,
    values: Mapping[str, Any],
    size: tuple[int, int],
    options: RunOptions = RunOptions(),
) -> dict[str, float]:
    """Finds which gradients guide, and their scales.

    Args:
      trained: A Trained.
      values: Row of `flag_values.flag_rows` -> FlagValues.
      size: (height, width) of the images in pixels.
      options: RunOptions with the scales.

    Returns:
      Dict of "classifier" and "guide" -> scale, for those that are used.

    Raises:
      ConfigError: If a scale or LPIPS is given without its classifier or guide image,
        or if images are too small to be compared.
    """
    scales = {}
    if trained.classifier is not None:
        scales["classifier"] = _or(options.classifier_scale, _CLASSIFIER_SCALE)
    elif options.classifier_scale is not None:
        raise ConfigError("--classifier_scale needs --classifier, a trained one")
    if "guide_image" in values:
        scales["guide"] = _or(options.guide_scale, _GUIDE_SCALE)
        least = MIN_SIZE if trained.lpips is not None else GUIDE_FACTOR
        if min(size) < least:
            raise ConfigError(f"--guide_image needs images of {least} pixels at least")
    elif options.guide_scale is not None or trained.lpips is not None:
        flag = "--guide_scale" if options.guide_scale is not None else "--lpips_weights"
        raise ConfigError(f"{flag} needs --guide_image, the image to resemble")
    return scales


def _or(value, default):
    return default if value is None else value


def make_gradient_guidance(
    trained: Trained,
    weights: Mapping[str, Any],
    batch: Mapping[str, Any],
    scales: Mapping[str, float],
    decode: Callable,
) -> GradientGuidance | None:
    """Makes the `gradient_guidance` of `generate.sample_latents`.

    Args:
      trained: A Trained.
      weights: Its weights, as arguments of the program.
      batch: Dict with "classes" int32 [B] for the classifier, and for a guide image
        "guide", [B, H, W, C] like the images of a batch, at full size for LPIPS, else
        smaller by GUIDE_FACTOR.
      scales: Result of `gradient_guidance_scales`.
      decode: Latents -> images.

    Returns:
      predict -> predict, or None.
    """
    # The guide image first: its gradient goes through the denoiser, and must not go
    # through the classifier's gradient as well.
    guides = []
    if "guide" in scales:
        target = to_float(batch["guide"])
        distance = low_resolution_distance(target)
        if trained.lpips is not None:
            lpips = functools.partial(LPIPS().apply, {"params": weights["lpips"]})
            to_rgb = trained.pixels.to_rgb

            def distance(images):
                return lpips(to_rgb(target), to_rgb(images))

        guides.append(image_guidance(decode, distance, scales["guide"]))
    if "classifier" in scales:
        network, params = trained.classifier.module, weights["classifier"]

        def log_prob_of(latents, timesteps):
            return log_prob(network, params, latents, timesteps, batch["classes"])

        guides.append(classifier_guidance(log_prob_of, scales["classifier"]))
    if not guides:
        return None
    return lambda predict: functools.reduce(lambda p, guide: guide(p), guides, predict)
