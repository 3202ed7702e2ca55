"""Gradient guidance: denoisers moved along the gradient of a log-density.

Guidance of this kind wraps a denoiser `predict(latents, point) -> (x0, noise)`, so it
works with every sampler, every parametrisation and with classifier-free guidance.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ldm_jax.annotations import Array, Float
from ldm_jax.diffusion.sampling_method import Denoiser
from ldm_jax.diffusion.schedule import SchedulePoint

# Maps the denoiser of a sampler to a guided one.
GradientGuidance = Callable[[Denoiser], Denoiser]


def classifier_guidance(
    log_prob: Callable[[Any, Any], Any],
    scale: Any = 1.0,
    max_shift: float | None = 1.0,
) -> GradientGuidance:
    """Makes classifier guidance, with a classifier of noisy latents.

    Dhariwal & Nichol 2021, Alg. 2: noise - scale sigma grad log p(y | z_t), with x0
    changed accordingly, so that it works with every sampler.

    Args:
      log_prob: (latents, timesteps [B]) -> log p(y | z_t) [B], of each example's class.
      scale: Power to which p(y | z_t) is raised; a number or a traced scalar.
      max_shift: See `shift_prediction`.

    Returns:
      predict -> predict, the `gradient_guidance` of `generate.sample_latents`.
    """

    def guide(predict):
        def guided(latents, point):
            timesteps = jnp.broadcast_to(point.timestep, latents.shape[:1])
            gradient = jax.grad(lambda z: jnp.sum(log_prob(z, timesteps)))(latents)
            prediction = predict(latents, point)
            return shift_prediction(prediction, scale * gradient, point, max_shift)

        return guided

    return guide


def image_guidance(
    decode: Callable[[Any], Any],
    distance: Callable[[Any], Any],
    scale: Any = 1.0,
    max_shift: float | None = 1.0,
) -> GradientGuidance:
    """Makes guidance towards images close to a target (Rombach et al. 2022, App. C).

    The density is Gaussian in the space where `distance` compares: log p(y | z_t) =
    -scale / 2 distance(decode(x0(z_t))). Its gradient also passes through the denoiser.
    (The paper adds sigma grad log p to the noise; the noise is -sigma times the score,
    so it has to be subtracted.)

    Args:
      decode: Latents -> images [B, H, W, C], with its weights bound.
      distance: Images -> squared distance [B] to each example's target:
        `low_resolution_distance(target)`, or LPIPS as a function of one image.
      scale: Inverse variance of the Gaussian; a number or a traced scalar.
      max_shift: See `shift_prediction`.

    Returns:
      predict -> predict, the `gradient_guidance` of `generate.sample_latents`.
    """

    def guide(predict):
        """Moves the prediction of a denoiser along the gradient of the log-density."""

        def log_density(latents, point):
            x0, noise = predict(latents, point)
            return -0.5 * jnp.sum(distance(decode(x0))), (x0, noise)

        def guided(latents, point):
            gradient, prediction = jax.grad(log_density, has_aux=True)(latents, point)
            return shift_prediction(prediction, scale * gradient, point, max_shift)

        return guided

    return guide


def low_resolution_distance(
    target: Float[Array, "batch height width channels"],
) -> Callable[[Any], Any]:
    """Makes the squared distance to low-resolution targets, for `image_guidance`.

    Args:
      target: Images [B, h, w, C] in [-1, 1], at most as large as those compared.

    Returns:
      Images [B, H, W, C] -> [B], the sum of squares after bicubic downsampling.
    """

    def distance(images):
        small = jax.image.resize(images, target.shape, "cubic", antialias=True)
        return jnp.sum(jnp.square(small - target), axis=(1, 2, 3))

    return distance


def shift_prediction(
    prediction: tuple[Float[Array, " batch *shape"], Float[Array, " batch *shape"]],
    gradient: Float[Array, " batch *shape"],
    point: SchedulePoint,
    max_shift: float | None = None,
) -> tuple[Float[Array, " batch *shape"], Float[Array, " batch *shape"]]:
    """Moves a denoiser's prediction along the gradient of a log-density of z_t.

    Returns noise - sigma gradient and the corresponding x0 + sigma^2 / alpha gradient
    (Dhariwal & Nichol 2021, Eq. 14).

    Args:
      prediction: (x0, noise), each [B, h, w, c].
      gradient: Gradient with respect to z_t, [B, h, w, c].
      point: SchedulePoint, scalar.
      max_shift: Maximum root mean square of the change of an example's x0; None for no
        limit. Near pure noise the factor 1 / alpha blows up even small gradients. Pixel
        models clip x0 to [-1, 1] instead; latents have unit variance.

    Returns:
      (x0, noise).
    """
    x0, noise = prediction
    shift = point.sigma**2 / jnp.maximum(point.alpha, 1e-6) * gradient
    if max_shift is not None:
        axes = tuple(range(1, shift.ndim))
        size = jnp.sqrt(jnp.mean(jnp.square(shift), axis=axes, keepdims=True))
        factor = jnp.minimum(1.0, max_shift / jnp.maximum(size, 1e-12))
        shift, gradient = factor * shift, factor * gradient
    return x0 + shift, noise - point.sigma * gradient
