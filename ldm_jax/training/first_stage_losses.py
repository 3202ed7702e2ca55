"""Losses of the first stage: reconstruction, regulariser and adversarial loss.

Rombach et al. 2022, App. G, after Esser et al. 2021 (VQGAN, Sec. 3.2). One training
step differentiates `generator_loss` by the autoencoder's parameters, then
`discriminator_loss` by the discriminator's:

    def loss(params):
        reconstructions, posterior, features = model.apply(
            {"params": params}, images, rng, method="reconstruct"
        )
        loss, aux = generator_loss(
            images,
            reconstructions,
            kl_weight * jnp.mean(posterior.kl()),
            last_layer(model, params, features),
            # discriminate: reconstructions -> (logits, updated batch statistics)
            Adversary(discriminate, discriminator_factor(step, start=50_001)),
        )
        return loss, (reconstructions, aux)

CompVis updates batch statistics in this order: reconstructions (generator), images,
reconstructions (discriminator); pass them through the three calls of the discriminator.
It recomputes the reconstructions for the discriminator, after the generator's update
and with new noise; those of the same step serve as well.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ldm_jax.annotations import Array, Float, Int, Shaped

# A scalar, traced or not.
Scalar = float | Shaped[Array, ""]
Images = Float[Array, "batch height width channels"]

# Decay of the moving averages of the logits in LeCAM.
LECAM_DECAY = 0.99


class Likelihood(NamedTuple):
    """The likelihood of images given reconstructions.

    Attributes:
      kind: Row of RECONSTRUCTION_LOSSES.
      reduction: Row of REDUCTIONS.
      perceptual: None, or a function (images, reconstructions) -> distances [B], with
        their weight applied.
    """

    kind: str = "l1"
    reduction: str = "sum"
    perceptual: Callable | None = None


# The likelihood of the KL models.
LAPLACE = Likelihood()


class Adversary(NamedTuple):
    """The discriminator and the weights of the adversarial loss.

    Attributes:
      discriminate: Function of reconstructions -> (logits, aux); aux is returned as it
        is (updated batch statistics).
      factor: Weight of the adversarial loss at this step, see `discriminator_factor`.
      weight: Multiplies the adaptive weight.
      weight_cap: Maximum adaptive weight, before `weight`.
    """

    discriminate: Callable
    factor: Any
    weight: float = 0.5
    weight_cap: float = 1e4


def reconstruction_loss(
    images: Images,
    reconstructions: Images,
    *,
    kind: str = "l1",
    perceptual: Float[Array, " batch"] | None = None,
    logvar: Scalar = 0.0,
    reduction: str = "sum",
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Negative log-likelihood, Laplace or Gaussian, of images given reconstructions.

    Args:
      images: [B, H, W, C] in [-1, 1].
      reconstructions: Like `images`.
      kind: Row of RECONSTRUCTION_LOSSES, "l1" or "l2".
      perceptual: None, or a distance per example [B], with its weight applied, which is
        added to every pixel's error as in CompVis.
      logvar: Log-variance of the likelihood, a scalar.
      reduction: "sum" over pixels and mean over examples (KL autoencoders), or "mean"
        over both (VQ).

    Returns:
      (nll, metrics): the loss, and scalars without the effect of `logvar`:
      "pixel_loss", the mean error of a pixel, "perceptual_loss" if given, and
      "reconstruction_loss", their sum.
    """
    difference = images.astype(jnp.float32) - reconstructions.astype(jnp.float32)
    error = jnp.mean(RECONSTRUCTION_LOSSES[kind](difference))
    metrics = {"pixel_loss": error}
    if perceptual is not None:
        metrics["perceptual_loss"] = jnp.mean(perceptual)
        error = error + metrics["perceptual_loss"]
    metrics["reconstruction_loss"] = error
    size = REDUCTIONS[reduction](difference[0].size)
    return size * (error / jnp.exp(logvar) + logvar), metrics


def discriminator_factor(
    step: int | Int[Array, ""], start: int, factor: float = 1.0, ramp_steps: int = 0
) -> Float[Array, ""]:
    """Returns the weight of the adversarial losses at a step: 0 before the start.

    Args:
      step: Number of steps done, possibly traced.
      start: First step with adversarial losses.
      factor: Weight after the start.
      ramp_steps: Steps over which the weight rises linearly; 0 for no ramp.

    Returns:
      float32 scalar.
    """
    ramp = jnp.clip((step - start + 1) / max(ramp_steps, 1), 0.0, 1.0)
    return jnp.where(step >= start, factor * ramp, 0.0).astype(jnp.float32)


def adaptive_weight(
    last_layer: tuple[Callable, Float[Array, "..."]],
    nll_gradient: Images,
    generator_gradient: Images,
    *,
    cap: float = 1e4,
    epsilon: float = 1e-4,
) -> Float[Array, ""]:
    """Computes the weight that balances adversarial and reconstruction loss.

    The ratio of the norms of their gradients by the last layer's kernel (Esser et al.
    2021, Eq. 7). These follow from the gradients by the reconstructions, through only
    that layer, so no pass through the rest of the decoder is needed.

    Args:
      last_layer: (function of its kernel -> reconstructions, that kernel).
      nll_gradient: Gradient of the nll by the reconstructions [B, H, W, C].
      generator_gradient: The same of the generator's adversarial loss.
      cap: Maximum weight.
      epsilon: Added to the denominator.

    Returns:
      Scalar in [0, cap].
    """
    _, pullback = jax.vjp(*last_layer)
    nll_norm, generator_norm = (
        jnp.linalg.norm(pullback(gradient)[0].ravel())
        for gradient in (nll_gradient, generator_gradient)
    )
    return jnp.clip(nll_norm / (generator_norm + epsilon), 0.0, cap)


def generator_loss(
    images: Images,
    reconstructions: Images,
    regularisation: Scalar,
    last_layer: tuple[Callable, Float[Array, "..."]],
    adversary: Adversary,
    likelihood: Likelihood = LAPLACE,
    logvar: Scalar = 0.0,
) -> tuple[Float[Array, ""], tuple[dict[str, Float[Array, ""]], Any]]:
    """Computes the autoencoder's whole loss, to be differentiated by its parameters.

    Value and gradient are those of nll + regularisation + weight * factor * g with the
    adaptive weight held constant, g being the adversarial loss. The gradient by the
    reconstructions is computed here, once, and passed on: this takes one backward pass
    through the discriminator and one through the autoencoder, including the adaptive
    weight.

    Args:
      images: [B, H, W, C] in [-1, 1].
      reconstructions: Like `images`; the gradient flows through them.
      regularisation: Scalar, with its weight applied: KL divergence or codebook loss.
      last_layer: (function, kernel): the decoder's last layer as a function of its
        kernel, see `models.autoencoder.last_layer`.
      adversary: Adversary.
      likelihood: Likelihood.
      logvar: Log-variance of the likelihood, a scalar; it has a gradient, too.

    Returns:
      (loss, (metrics, aux)): scalar, dict of scalars, and the aux of `discriminate`.
    """
    factor, distance = adversary.factor, likelihood.perceptual

    def nll(x, logvar):
        return reconstruction_loss(
            images,
            x,
            kind=likelihood.kind,
            perceptual=None if distance is None else distance(images, x),
            logvar=logvar,
            reduction=likelihood.reduction,
        )

    fixed = jax.lax.stop_gradient(reconstructions)
    (nll_loss, metrics), (nll_gradient, logvar_gradient) = jax.value_and_grad(
        nll, argnums=(0, 1), has_aux=True
    )(fixed, jax.lax.stop_gradient(jnp.float32(logvar)))

    def deceive(x):
        logits, aux = adversary.discriminate(x)
        return -jnp.mean(logits), aux

    (g_loss, aux), g_gradient = jax.value_and_grad(deceive, has_aux=True)(fixed)
    weight = adversary.weight * adaptive_weight(
        last_layer, nll_gradient, g_gradient, cap=adversary.weight_cap
    )
    loss = nll_loss + weight * factor * g_loss
    gradient = nll_gradient + weight * factor * g_gradient
    loss = _with_gradient(jax.lax.stop_gradient(loss), reconstructions, gradient)
    loss = _with_gradient(loss, jnp.float32(logvar), logvar_gradient)
    metrics |= {
        "loss": loss + regularisation,
        "nll_loss": nll_loss,
        "regularisation_loss": regularisation,
        "generator_loss": g_loss,
        "disc_weight": weight,
        "disc_factor": jnp.asarray(factor, jnp.float32),
    }
    return loss + regularisation, jax.lax.stop_gradient((metrics, aux))


def discriminator_loss(
    logits_real: Float[Array, "..."],
    logits_fake: Float[Array, "..."],
    *,
    kind: str = "hinge",
    factor: Scalar = 1.0,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Computes the discriminator's loss.

    Args:
      logits_real: Logits of images, any shape.
      logits_fake: Logits of reconstructions; stop the gradients of the reconstructions,
        so that none reach the autoencoder.
      kind: Row of DISCRIMINATOR_LOSSES, "hinge" or "vanilla".
      factor: Weight of the adversarial losses at this step.

    Returns:
      (loss, metrics): scalar, and a dict of scalars.
    """
    loss = factor * DISCRIMINATOR_LOSSES[kind](logits_real, logits_fake)
    return loss, {
        "disc_loss": loss,
        "logits_real": jnp.mean(logits_real),
        "logits_fake": jnp.mean(logits_fake),
    }


def r1_penalty(discriminate: Callable, images: Images) -> Float[Array, ""]:
    """Computes the R1 penalty (Mescheder et al. 2018).

    It is half the squared gradient of the logits by real images.

    Args:
      discriminate: Function of images -> logits [B, h, w, 1].
      images: Real images [B, H, W, C].

    Returns:
      Scalar, the mean over images of |gradient of an image's mean logit|² / 2.
    """

    def mean_logits(images):
        return jnp.sum(jnp.mean(discriminate(images), axis=(1, 2, 3)))

    gradient = jax.grad(mean_logits)(images)
    return 0.5 * jnp.mean(jnp.sum(jnp.square(gradient), axis=(1, 2, 3)))


def lecam_penalty(
    logits_real: Float[Array, "..."],
    logits_fake: Float[Array, "..."],
    averages: Mapping[str, Scalar],
) -> Float[Array, ""]:
    """Computes the LeCAM penalty (Tseng et al. 2021, Eq. 3).

    It keeps logits of real images near the moving average of the fake ones, and vice
    versa. As in the authors' code it is one-sided: only real logits above the average
    of the fake ones count, and fake ones below that of the real.

    Args:
      logits_real: Logits of images, any shape.
      logits_fake: Logits of reconstructions, likewise.
      averages: Dict of the moving averages "real" and "fake", scalars.

    Returns:
      Scalar.
    """
    above = jax.nn.relu(logits_real - averages["fake"])
    below = jax.nn.relu(averages["real"] - logits_fake)
    return jnp.mean(jnp.square(above)) + jnp.mean(jnp.square(below))


def update_lecam(
    averages: Mapping[str, Scalar],
    metrics: Mapping[str, Scalar],
    active: bool | Shaped[Array, ""],
) -> dict[str, Scalar]:
    """Moves the averages of `lecam_penalty` towards a step's mean logits.

    Args:
      averages: Dict of "real" and "fake", scalars.
      metrics: Metrics of `discriminator_loss`.
      active: Whether the adversarial losses have started; else nothing changes.

    Returns:
      The averages after the step.
    """
    rate = jnp.where(active, 1 - LECAM_DECAY, 0.0)
    return {
        name: average + rate * (metrics[f"logits_{name}"] - average)
        for name, average in averages.items()
    }


def _hinge(real, fake):
    return 0.5 * (jnp.mean(jax.nn.relu(1 - real)) + jnp.mean(jax.nn.relu(1 + fake)))


def _vanilla(real, fake):
    return 0.5 * (jnp.mean(jax.nn.softplus(-real)) + jnp.mean(jax.nn.softplus(fake)))


@jax.custom_vjp
def _with_gradient(value, x, gradient):
    """Returns `value`, with `gradient` added to its gradient by `x`."""
    del x, gradient
    return value


def _with_gradient_forward(value, x, gradient):
    return value, (x, gradient)


def _with_gradient_backward(residuals, cotangent):
    x, gradient = residuals
    return cotangent, (cotangent * gradient).astype(x.dtype), None


_with_gradient.defvjp(_with_gradient_forward, _with_gradient_backward)

# Reductions from pixels to an image: sum (KL) or mean (VQ), as in CompVis.
REDUCTIONS = {"sum": lambda size: size, "mean": lambda size: 1}
RECONSTRUCTION_LOSSES = {"l1": jnp.abs, "l2": jnp.square}
DISCRIMINATOR_LOSSES = {"hinge": _hinge, "vanilla": _vanilla}
