"""Gradients and updates of an autoencoder and its discriminator.

As in CompVis the discriminator runs from the first step, with its losses times zero
before `loss.disc_start`, so that its batch statistics exist when it starts. This costs
a few per cent of a step; a branch in the compiled program cost more than it saved.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from ldm_jax.annotations import Array, Float, Int
from ldm_jax.checkpoint import TrainState
from ldm_jax.images import to_float
from ldm_jax.models.discriminator import PatchDiscriminator
from ldm_jax.models.first_stages import FirstStageKind
from ldm_jax.models.operations.parameters import initialise
from ldm_jax.training import codebook
from ldm_jax.training.first_stage_losses import (
    RECONSTRUCTION_LOSSES,
    Adversary,
    Likelihood,
    discriminator_factor,
    discriminator_loss,
    generator_loss,
    lecam_penalty,
    r1_penalty,
    update_lecam,
)
from ldm_jax.training.freeze import stop_frozen_gradients
from ldm_jax.training.loss_options import LossOptions

# Networks with a moving average: those that are used after training.
AVERAGED = ("autoencoder",)
# Random keys of a micro-batch: for latents, dropout, and the restart of dead codes.
RNG_NAMES = ("posterior", "dropout", "restart")
# Names of the networks' gradient norms in the log.
_NORMS = {"autoencoder": "grad_norm", "discriminator": "disc_grad_norm"}


@dataclasses.dataclass(frozen=True)
class Setup:
    """Networks and options for the functions below; holds no arrays.

    Attributes:
      model: Autoencoder.
      row: Its row of FIRST_STAGES.
      critic: The discriminator.
      perceptual: LPIPS, a function of (its weights, which are `frozen["lpips"]`,
        images, reconstructions) -> [B].
      options: The section `loss`.
      codes: Options of codebook updates; None without a codebook.
      freeze: Paths of the autoencoder's frozen parameters.
      parts: Micro-batches per step.
      image_shape: Shape of a batch of one image, (1, H, W, C).
    """

    model: nn.Module
    row: FirstStageKind
    critic: PatchDiscriminator
    perceptual: Callable
    options: LossOptions
    codes: codebook.CodebookOptions | None
    freeze: tuple
    parts: int
    image_shape: tuple


def draw(setup: Setup, rng: Any) -> tuple[dict, dict]:
    """Initialises the networks.

    Args:
      setup: Setup.
      rng: Typed key.

    Returns:
      (params, stats): {"autoencoder", "discriminator"} and, if learnt, {"logvar"}; and
      statistics without gradient, of {"discriminator", "codebook", "lecam"} those that
      are used.
    """
    rngs = jax.random.split(rng)
    images = jnp.zeros(setup.image_shape, jnp.float32)
    _, critic = initialise(setup.critic, rngs[1], images)
    _, autoencoder = initialise(setup.model, rngs[0], images)
    params = {
        "autoencoder": autoencoder["params"],
        "discriminator": critic["params"],
    }
    if setup.options.learn_logvar:
        params["logvar"] = jnp.float32(setup.options.logvar_init)
    stats = {"discriminator": critic.get("batch_stats")}
    if setup.codes:
        stats["codebook"] = setup.codes.init()
    if setup.options.lecam_weight:
        stats["lecam"] = {"real": jnp.float32(0), "fake": jnp.float32(0)}
    return params, {name: kept for name, kept in stats.items() if kept}


def begin(setup: Setup, state: TrainState) -> dict:
    """Makes the carry of the first micro-batch.

    Args:
      setup: Setup.
      state: State before the step.

    Returns:
      Dict of "discriminator", its batch statistics, and with a codebook "totals", its
      empty Totals.
    """
    carry = {"discriminator": state.stats.get("discriminator", {})}
    if setup.codes:
        carry["totals"] = codebook.empty_totals(*setup.codes.shape)
    return carry


def gradients(
    setup: Setup,
    state: TrainState,
    frozen: Any,
    rows: dict,
    rngs: dict,
    index: int | Int[Array, ""],
    carry: dict,
) -> tuple[tuple[dict, dict], dict]:
    """Computes the gradients of all networks on a micro-batch.

    Batch statistics are updated in the order of CompVis.

    Args:
      setup: Setup.
      state: State before the step.
      frozen: {"lpips"}: weights of the perceptual distance, {} without.
      rows: Micro-batch with "image", uint8 [B, H, W, C].
      rngs: Key of each of RNG_NAMES.
      index: Index of the micro-batch, a scalar.
      carry: See `begin`.

    Returns:
      ((gradients, metrics), carry).
    """
    images = to_float(rows["image"])
    factor = _factor(setup.options, state.step)
    learners = {k: v for k, v in state.params.items() if k != "discriminator"}
    given = setup, state, frozen, images, rngs, factor, carry["discriminator"]
    (_, (metrics, seen, decoded, regularised)), grads = jax.value_and_grad(
        _autoencoder_loss, has_aux=True
    )(learners, *given)

    given = setup, state.stats.get("lecam"), images, jax.lax.stop_gradient(decoded)
    (_, (more, seen)), grads["discriminator"] = jax.value_and_grad(
        _critic_loss, has_aux=True
    )(state.params["discriminator"], *given, factor, seen)

    zeros = jnp.mean(RECONSTRUCTION_LOSSES[setup.options.reconstruction](images))
    metrics["loss_vs_zeros"] = metrics["pixel_loss"] / zeros
    carry = carry | {"discriminator": seen}
    if setup.codes:
        given = regularised, rngs["restart"], index, setup.parts
        carry["totals"] = codebook.add_totals(carry["totals"], *given)
    return (grads, metrics | more), carry


def finish(
    setup: Setup,
    before: TrainState,
    after: TrainState,
    grads: dict,
    metrics: dict,
    carry: dict,
) -> tuple[TrainState, dict]:
    """Updates what has no gradient: batch statistics, averages of logits, the codebook.

    Args:
      setup: Setup.
      before: State before the step.
      after: State after the optimisers' updates.
      grads: Gradients, by network.
      metrics: Metrics so far.
      carry: Carry of the last micro-batch, see `begin`.

    Returns:
      (state, metrics).
    """
    options, stats = setup.options, dict(after.stats)
    if carry["discriminator"]:
        stats["discriminator"] = carry["discriminator"]
    if options.lecam_weight:
        active = _factor(options, before.step) > 0
        stats["lecam"] = update_lecam(stats["lecam"], metrics, active)
    after = after.replace(stats=stats)
    for name, tree in grads.items():
        metrics[_NORMS.get(name, f"{name}_grad_norm")] = optax.tree.norm(tree)
    if options.learn_logvar:
        metrics["logvar"] = after.params["logvar"]
    if not setup.codes:
        return after, metrics
    after, more = codebook.move_codes(setup.codes, before, after, carry["totals"])
    return after, metrics | more


def temperature(options: LossOptions, step: int | Int[Array, ""]) -> Float[Array, ""]:
    """Returns the temperature of the quantiser "gumbel": half a cosine.

    Ramesh et al. 2021 (DALL-E), App. A.2.

    Args:
      options: LossOptions.
      step: Number of updates done, a scalar.

    Returns:
      float32 scalar.
    """
    done = jnp.clip(step / max(options.gumbel_steps, 1), 0.0, 1.0)
    start, end = options.gumbel_temperature, options.gumbel_end_temperature
    return end + 0.5 * (start - end) * (1 + jnp.cos(jnp.pi * done))


def _factor(options, step):
    """Weight of the adversarial losses at a step."""
    return discriminator_factor(
        step, options.disc_start, options.disc_factor, options.disc_ramp_steps
    )


def _logits(setup, params, stats, images):
    """Returns the discriminator's logits and its statistics after these images."""
    logits, updated = setup.critic.apply(
        {"params": params, "batch_stats": stats},
        images,
        train=True,
        mutable=["batch_stats"],
    )
    return logits, updated.get("batch_stats", {})


def _autoencoder_loss(params, setup, state, frozen, images, rngs, factor, seen):
    """Loss of autoencoder and log-variance; `seen` are the critic's statistics."""
    options, model, row = setup.options, setup.model, setup.row
    weights = stop_frozen_gradients(params["autoencoder"], setup.freeze)
    decoded, regularised, features = model.apply(
        {"params": weights},
        images,
        rngs["posterior"],
        train=True,
        temperature=temperature(options, state.step),
        rngs={"dropout": rngs["dropout"]},
        method="reconstruct",
    )
    regularisation, terms = row.regulariser.loss(regularised, options)

    def perceptual(x, y):
        distances = setup.perceptual(frozen["lpips"], x, y)
        return options.perceptual_weight * distances

    loss, (metrics, after) = generator_loss(
        images,
        decoded,
        regularisation,
        row.last_layer(model, weights, features),
        Adversary(
            lambda x: _logits(setup, state.params["discriminator"], seen, x),
            factor=factor,
            weight=options.disc_weight,
            weight_cap=options.disc_weight_cap,
        ),
        Likelihood(
            kind=options.reconstruction,
            reduction=options.reduction or row.regulariser.reduction,
            perceptual=perceptual if options.perceptual_weight else None,
        ),
        logvar=params.get("logvar", options.logvar_init),
    )
    return loss, (metrics | terms, after, decoded, regularised)


def _critic_loss(params, setup, averages, images, decoded, factor, seen):
    """Loss of the discriminator; its statistics are updated by images, then decoded."""
    options = setup.options
    real, seen = _logits(setup, params, seen, images)
    fake, seen = _logits(setup, params, seen, decoded)
    loss, metrics = discriminator_loss(
        real, fake, kind=options.disc_loss, factor=factor
    )
    if options.r1_weight:
        logits = functools.partial(_logits, setup, params, seen)
        metrics["r1_penalty"] = r1_penalty(lambda x: logits(x)[0], images)
        loss += factor * options.r1_weight * metrics["r1_penalty"]
    if options.lecam_weight:
        metrics["lecam_penalty"] = lecam_penalty(real, fake, averages)
        loss += factor * options.lecam_weight * metrics["lecam_penalty"]
    return loss, (metrics, seen)
