"""What steers a model beside its conditions: a classifier, a picture to resemble."""

import functools

from ldm_jax.diffusion.gradient_guidance import (
    classifier_guidance,
    image_guiding,
    low_resolution_distance,
)
from ldm_jax.errors import ConfigError
from ldm_jax.images import to_float
from ldm_jax.models.classifier import log_prob
from ldm_jax.models.lpips import LPIPS, MIN_SIZE

# So much smaller is the version of a picture that samples are compared with.
GUIDE_FACTOR = 4

# Scales where the user gives none: the paper's for classifiers (Table 3); 40 lets a
# pixel of the small picture be 0.16 off.
_CLASSIFIER_SCALE, _GUIDE_SCALE = 10.0, 40.0


def steering_scales(trained, columns, size, classifier_scale=None, guide_scale=None):
    """Checks what is to steer.

    Args:
      trained: A Trained.
      columns: Row of `flag_values.flag_rows` -> FlagValues.
      size: (height, width) of the pictures in pixels.
      classifier_scale: Scale of classifier guidance; None for the default.
      guide_scale: Scale of image guiding; None for the default.

    Returns:
      Dict of "classifier" and "guide" -> scale, as far as they steer.

    Raises:
      ConfigError: If a scale is given for what is not there.
    """
    scales = {}
    if trained.classifier is not None:
        scales["classifier"] = _or(classifier_scale, _CLASSIFIER_SCALE)
    elif classifier_scale is not None:
        raise ConfigError("--classifier_scale needs --classifier, a trained one")
    if "guide_image" in columns:
        scales["guide"] = _or(guide_scale, _GUIDE_SCALE)
        least = MIN_SIZE if trained.lpips is not None else GUIDE_FACTOR
        if min(size) < least:
            raise ConfigError(
                f"--guide_image needs pictures of {least} pixels at least"
            )
    elif guide_scale is not None or trained.lpips is not None:
        flag = "--guide_scale" if guide_scale is not None else "--guide_lpips"
        raise ConfigError(f"{flag} needs --guide_image, the picture to resemble")
    return scales


def _or(value, default):
    return default if value is None else value


def make_steer(trained, weights, batch, scales, decode):
    """Makes the `steer` of `generate.sample_latents`.

    Args:
      trained: A Trained.
      weights: Its weights, as arguments of the program.
      batch: Dict with "classes" int32 [B] for the classifier, and for a guide "guide",
        uint8 [B, H, W, 3] at full size for LPIPS, else smaller by GUIDE_FACTOR.
      scales: Dict of `steering_scales`.
      decode: Latents -> images.

    Returns:
      predict -> predict, or None.
    """
    # The guide first: its gradient goes through the denoiser, and shall not go through
    # the classifier's gradient as well.
    steers = []
    if "guide" in scales:
        target = to_float(batch["guide"])
        distance = low_resolution_distance(target)
        if trained.lpips is not None:
            distance = functools.partial(
                LPIPS().apply, {"params": weights["lpips"]}, target
            )
        steers.append(image_guiding(decode, distance, scales["guide"]))
    if "classifier" in scales:
        network, params = trained.classifier.module, weights["classifier"]

        def log_prob_of(latents, timesteps):
            return log_prob(network, params, latents, timesteps, batch["classes"])

        steers.append(classifier_guidance(log_prob_of, scales["classifier"]))
    if not steers:
        return None
    return lambda predict: functools.reduce(lambda p, steer: steer(p), steers, predict)
