"""Losses of the first stage: reconstruction, regulariser and adversary.

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
            *last_layer(model, params, features),
            discriminate,  # reconstructions -> (logits, updated batch statistics)
            factor=discriminator_factor(step, start=50_001),
        )
        return loss, (reconstructions, aux)

The original takes batch statistics in this order: reconstructions (generator), images,
reconstructions (discriminator); thread them through the three calls of the
discriminator. It computes the reconstructions anew for the discriminator, after the
generator's update and with new noise; those of the same step serve as well.
"""

import jax
import jax.numpy as jnp

# Of the moving averages of the logits in LeCAM.
LECAM_DECAY = 0.99


def reconstruction_loss(
    images,
    reconstructions,
    *,
    kind="l1",
    perceptual=None,
    logvar=0.0,
    reduction="sum",
):
    """Negative log-likelihood of images under a Laplace or Gaussian around the decoded.

    Args:
      images: [B, H, W, C] in [-1, 1].
      reconstructions: Like `images`.
      kind: Row of RECONSTRUCTION_LOSSES, "l1" or "l2".
      perceptual: None, or a distance per example [B], already weighted, which is added
        to every pixel's error as in the original.
      logvar: Log-variance of the likelihood, a scalar.
      reduction: "sum" over pixels and mean over examples (KL autoencoders), or "mean"
        over both (VQ).

    Returns:
      (nll, metrics): the loss, and scalars before `logvar`: "pixel_loss", the mean
      error of a pixel, "perceptual_loss" if given, "reconstruction_loss", their sum.
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


def discriminator_factor(step, start, factor=1.0, ramp_steps=0):
    """Weight of the adversarial losses at a step: 0 before the start.

    Args:
      step: Steps taken, which may be traced.
      start: First step with adversarial losses.
      factor: Weight after the start.
      ramp_steps: Steps over which the weight rises linearly; 0 starts at once.

    Returns:
      float32 scalar.
    """
    ramp = jnp.clip((step - start + 1) / max(ramp_steps, 1), 0.0, 1.0)
    return jnp.where(step >= start, factor * ramp, 0.0).astype(jnp.float32)


def adaptive_weight(
    last_layer, kernel, nll_gradient, generator_gradient, *, cap=1e4, epsilon=1e-4
):
    """Balances the adversarial loss with the reconstruction loss at the last layer.

    The ratio of the two gradients' norms by the last kernel (Esser et al. 2021, Eq. 7).
    They follow from the gradients by the reconstructions through that layer alone, so
    no pass through the rest of the decoder is needed.

    Args:
      last_layer: Function of its kernel -> reconstructions.
      kernel: That kernel.
      nll_gradient: Gradient of the nll by the reconstructions [B, H, W, C].
      generator_gradient: The same of the generator's adversarial loss.
      cap: Largest weight.
      epsilon: Added to the denominator.

    Returns:
      Scalar in [0, cap].
    """
    _, pullback = jax.vjp(last_layer, kernel)
    nll_norm, generator_norm = (
        jnp.linalg.norm(pullback(gradient)[0].ravel())
        for gradient in (nll_gradient, generator_gradient)
    )
    return jnp.clip(nll_norm / (generator_norm + epsilon), 0.0, cap)


def generator_loss(
    images,
    reconstructions,
    regularisation,
    last_layer,
    kernel,
    discriminate,
    *,
    factor,
    reconstruction="l1",
    perceptual=None,
    logvar=0.0,
    reduction="sum",
    disc_weight=0.5,
    weight_cap=1e4,
):
    """The autoencoder's whole loss, ready to be differentiated by its parameters.

    Its value and gradient are those of nll + regularisation + weight * factor * g with
    the adaptive weight held fixed. The gradient by the reconstructions is computed
    here, once, and handed on: one pass back through the discriminator and one through
    the autoencoder, adaptive weight included.

    Args:
      images: [B, H, W, C] in [-1, 1].
      reconstructions: Like `images`; the gradient flows through them.
      regularisation: Scalar, weighted: KL divergence or codebook loss.
      last_layer: The decoder's last layer as a function of its kernel.
      kernel: That kernel; see `models.autoencoder.last_layer`.
      discriminate: Function of reconstructions -> (logits, aux); aux is handed through
        (updated batch statistics).
      factor: Weight of the adversarial loss at this step, see `discriminator_factor`.
      reconstruction: Row of RECONSTRUCTION_LOSSES.
      perceptual: None, or a function (images, reconstructions) -> [B], weighted.
      logvar: Log-variance of the likelihood; a gradient flows through it, too.
      reduction: "sum" or "mean", see `reconstruction_loss`.
      disc_weight: Multiplies the adaptive weight.
      weight_cap: Largest adaptive weight, before `disc_weight`.

    Returns:
      (loss, (metrics, aux)): scalar, dict of scalars, and what `discriminate` gave.
    """

    def nll(x, logvar):
        return reconstruction_loss(
            images,
            x,
            kind=reconstruction,
            perceptual=None if perceptual is None else perceptual(images, x),
            logvar=logvar,
            reduction=reduction,
        )

    fixed = jax.lax.stop_gradient(reconstructions)
    (nll_loss, metrics), (nll_gradient, logvar_gradient) = jax.value_and_grad(
        nll, argnums=(0, 1), has_aux=True
    )(fixed, jax.lax.stop_gradient(jnp.float32(logvar)))

    def adversary(x):
        logits, aux = discriminate(x)
        return -jnp.mean(logits), aux

    (g_loss, aux), g_gradient = jax.value_and_grad(adversary, has_aux=True)(fixed)
    weight = disc_weight * adaptive_weight(
        last_layer, kernel, nll_gradient, g_gradient, cap=weight_cap
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


def discriminator_loss(logits_real, logits_fake, *, kind="hinge", factor=1.0):
    """The discriminator's loss.

    Args:
      logits_real: Logits of images, any shape.
      logits_fake: Logits of reconstructions, through which no gradient may reach the
        autoencoder: stop it.
      kind: Row of DISCRIMINATOR_LOSSES, "hinge" or "vanilla".
      factor: Weight of the adversarial losses at this step.

    Returns:
      (loss, metrics).
    """
    loss = factor * DISCRIMINATOR_LOSSES[kind](logits_real, logits_fake)
    return loss, {
        "disc_loss": loss,
        "logits_real": jnp.mean(logits_real),
        "logits_fake": jnp.mean(logits_fake),
    }


def r1_penalty(discriminate, images):
    """Half the squared gradient of the logits by real images (Mescheder et al. 2018).

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


def lecam_penalty(logits_real, logits_fake, averages):
    """Holds logits near the other side's moving average (Tseng et al. 2021, Eq. 3).

    As in the authors' code, distances count on one side only: real logits above the
    average of the fake ones, and fake ones below that of the real.

    Args:
      logits_real: Logits of images.
      logits_fake: Logits of reconstructions.
      averages: Dict of the moving averages "real" and "fake", scalars.

    Returns:
      Scalar.
    """
    above = jax.nn.relu(logits_real - averages["fake"])
    below = jax.nn.relu(averages["real"] - logits_fake)
    return jnp.mean(jnp.square(above)) + jnp.mean(jnp.square(below))


def update_lecam(averages, metrics, active):
    """Moves the averages of `lecam_penalty` towards a step's mean logits.

    Args:
      averages: Dict of "real" and "fake".
      metrics: What `discriminator_loss` gave.
      active: Whether the discriminator was run at this step.

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
    """Returns `value`; what `gradient` says is added to its gradient by `x`."""
    del x, gradient
    return value


def _with_gradient_forward(value, x, gradient):
    return value, (x, gradient)


def _with_gradient_backward(residuals, cotangent):
    x, gradient = residuals
    return cotangent, (cotangent * gradient).astype(x.dtype), None


_with_gradient.defvjp(_with_gradient_forward, _with_gradient_backward)

# How a pixel's errors become an image's: summed (KL) or averaged (VQ), as the original.
REDUCTIONS = {"sum": lambda size: size, "mean": lambda size: 1}
RECONSTRUCTION_LOSSES = {"l1": jnp.abs, "l2": jnp.square}
DISCRIMINATOR_LOSSES = {"hinge": _hinge, "vanilla": _vanilla}
