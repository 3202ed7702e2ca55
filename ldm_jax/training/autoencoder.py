"""The first stage: autoencoder and patch discriminator, updated in one program.

As in the original the discriminator runs from the first step, its losses times zero
before `loss.disc_start`: its batch statistics are known when it starts. It costs a few
per cent of a step; a branch in the compiled program cost more than it saved.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ldm_jax.build import make_first_stage
from ldm_jax.checkpoint import TrainState
from ldm_jax.config import build, to_dict
from ldm_jax.errors import ConfigError
from ldm_jax.images import to_float
from ldm_jax.models import quantizer
from ldm_jax.models.discriminator import PatchDiscriminator
from ldm_jax.models.first_stages import FirstStageKind, name_of, row_of
from ldm_jax.models.lpips import LPIPS
from ldm_jax.training import codebook
from ldm_jax.training.first_stage_losses import (
    RECONSTRUCTION_LOSSES,
    discriminator_factor,
    discriminator_loss,
    generator_loss,
    lecam_penalty,
    r1_penalty,
    update_lecam,
)
from ldm_jax.training.freeze import freeze_paths, hold, is_frozen, within
from ldm_jax.training.loss_options import (
    LossOptions,
    check_codebook,
    load_perceptual,
)
from ldm_jax.training.optimizer import make_optimizer, make_rate
from ldm_jax.training.step import Stage, accumulate, step_rngs, update_ema


def make_stage(config, mesh, data, meta):
    """Makes the first stage from its config.

    Args:
      config: ConfigDict.
      mesh: Unused; the second stage needs it.
      data: The run's `Data`.
      meta: Unused likewise.

    Returns:
      (Stage, record): `record` goes into each checkpoint's `meta`.

    Raises:
      ConfigError: If the config cannot work.
    """
    del mesh, meta
    model = make_first_stage(config.first_stage)
    row = row_of(model)
    if row.regulariser is None:
        raise ConfigError(
            f'first_stage.kind="{name_of(model)}" has nothing to train: give it to a '
            "second stage"
        )
    _check_size(model, config.data.image_size)
    _check_channels(model, data.example["image"].shape[-1])
    options = build(LossOptions, config.loss, "loss")
    check_codebook(options, model)
    options, frozen = load_perceptual(options, model, config.data.image_size)
    freeze = freeze_paths(config)
    setup = _Setup(
        model=model,
        row=row,
        critic=build(PatchDiscriminator, config.discriminator, "discriminator"),
        perceptual=LPIPS(dtype=model.dtype),
        options=options,
        train=config.train,
        seed=config.seed,
        example=data.example,
        rate=make_rate(config.train),
        freeze=within(freeze, "autoencoder"),
        optimizers=_make_optimizers(config.train, options, freeze),
    )
    functions = (_init, _train_step, _eval_step, _preview)
    bound = (functools.partial(function, setup) for function in functions)
    return Stage(*bound, frozen, row.measures.summarize), {}


def _check_size(model, image_size):
    factor = model.downsampling_factor
    if image_size % factor:
        raise ConfigError(
            f"data.image_size={image_size} is not divisible by {factor}, by which "
            "first_stage reduces images; use "
            f"data.image_size={max(factor, round(image_size / factor) * factor)}"
        )


def _check_channels(model, channels):
    if model.image_channels != channels:
        raise ConfigError(
            f"first_stage.image_channels={model.image_channels}, but images come with "
            f"{channels} channels; use first_stage.image_channels={channels}"
        )


def _make_optimizers(train, options, freeze):
    """One optimiser per network, by name."""
    section, rate, clip = to_dict(train.optimizer), make_rate(train), train.grad_clip

    def make(name, rate=rate, clip=clip):
        return make_optimizer(section, rate, clip, within(freeze, name))

    critic_rate, critic_clip = rate, options.disc_grad_clip or clip
    if options.disc_learning_rate is not None:
        factor = options.disc_learning_rate / train.learning_rate
        critic_rate = lambda step: factor * rate(step)  # noqa: E731
    optimizers = {
        "autoencoder": make("autoencoder"),
        "discriminator": make("discriminator", critic_rate, critic_clip),
    }
    return optimizers | ({"logvar": make("logvar")} if options.learn_logvar else {})


@dataclasses.dataclass(frozen=True)
class _Setup:
    """What the functions of the stage share: networks and options, no arrays."""

    model: Any
    row: FirstStageKind
    critic: PatchDiscriminator
    perceptual: LPIPS
    options: LossOptions
    train: Any
    seed: int
    example: dict
    rate: Any
    freeze: tuple
    optimizers: dict

    @property
    def has_codebook(self):
        """Whether the first stage has one."""
        return self.row.codebook is not None

    @property
    def codebook_size(self):
        """(num_codes, channels of a code)."""
        return self.row.codebook.shape(self.model)

    @property
    def codebook_updates(self):
        """Options of `update_codebook`; none for a codebook that stays as it is."""
        if is_frozen("/".join(self.row.codebook.path), self.freeze):
            return {}
        return {
            "ema_decay": self.options.codebook_ema_decay,
            "restart_threshold": self.options.restart_threshold,
        }


def _init(setup, rng):
    """Draws the state."""
    rngs = jax.random.split(rng)
    images = jnp.zeros(setup.example["image"].shape, jnp.float32)
    judged = setup.critic.init(rngs[1], images)
    params = {
        "autoencoder": setup.model.init(rngs[0], images)["params"],
        "discriminator": judged["params"],
    }
    if setup.options.learn_logvar:
        params["logvar"] = jnp.float32(setup.options.logvar_init)
    stats = {"discriminator": judged.get("batch_stats")}
    if setup.has_codebook:
        stats["codebook"] = codebook.init_codebook_stats(
            *setup.codebook_size, **setup.codebook_updates
        )
    if setup.options.lecam_weight:
        stats["lecam"] = {"real": jnp.float32(0), "fake": jnp.float32(0)}
    # A copy: donated buffers must not be shared.
    average = {"autoencoder": jax.tree.map(jnp.copy, params["autoencoder"])}
    return TrainState(
        step=jnp.int32(0),
        params=params,
        ema_params=average if setup.train.ema_decay else {},
        opt_state={n: setup.optimizers[n].init(tree) for n, tree in params.items()},
        stats={name: kept for name, kept in stats.items() if kept},
    )


def _judge(setup, params, stats, images):
    """Returns the discriminator's logits and its statistics after these images."""
    logits, updated = setup.critic.apply(
        {"params": params, "batch_stats": stats},
        images,
        train=True,
        mutable=["batch_stats"],
    )
    return logits, updated.get("batch_stats", {})


def _temperature(options, step):
    """Temperature of the quantiser "gumbel": half a cosine (Ramesh et al. 2021)."""
    done = jnp.clip(step / max(options.gumbel_steps, 1), 0.0, 1.0)
    start, end = options.gumbel_temperature, options.gumbel_end_temperature
    return end + 0.5 * (start - end) * (1 + jnp.cos(jnp.pi * done))


def _autoencoder_loss(params, setup, state, frozen, images, rngs, factor, seen):
    """Loss of autoencoder and log-variance; `seen` are the critic's statistics."""
    options, model = setup.options, setup.model
    weights = hold(params["autoencoder"], setup.freeze)
    decoded, regularised, features = model.apply(
        {"params": weights},
        images,
        rngs["posterior"],
        train=True,
        temperature=_temperature(options, state.step),
        rngs={"dropout": rngs["dropout"]},
        method="reconstruct",
    )
    regularisation, terms = setup.row.regulariser.loss(regularised, options)

    def perceptual(x, y):
        distances = setup.perceptual.apply({"params": frozen["lpips"]}, x, y)
        return options.perceptual_weight * distances

    loss, (metrics, after) = generator_loss(
        images,
        decoded,
        regularisation,
        *setup.row.last_layer(model, weights, features),
        lambda x: _judge(setup, state.params["discriminator"], seen, x),
        factor=factor,
        reconstruction=options.reconstruction,
        perceptual=perceptual if options.perceptual_weight else None,
        logvar=params.get("logvar", options.logvar_init),
        reduction=options.reduction or setup.row.regulariser.reduction,
        disc_weight=options.disc_weight,
        weight_cap=options.disc_weight_cap,
    )
    return loss, (metrics | terms, after, decoded, regularised)


def _critic_loss(params, setup, averages, images, decoded, factor, seen):
    """Loss of the discriminator, whose statistics take images, then decoded ones."""
    options = setup.options
    real, seen = _judge(setup, params, seen, images)
    fake, seen = _judge(setup, params, seen, decoded)
    loss, metrics = discriminator_loss(
        real, fake, kind=options.disc_loss, factor=factor
    )
    if options.r1_weight:
        logits = lambda x: _judge(setup, params, seen, x)[0]  # noqa: E731
        metrics["r1_penalty"] = r1_penalty(logits, images)
        loss += factor * options.r1_weight * metrics["r1_penalty"]
    if options.lecam_weight:
        metrics["lecam_penalty"] = lecam_penalty(real, fake, averages)
        loss += factor * options.lecam_weight * metrics["lecam_penalty"]
    return loss, (metrics, seen)


def _gradients(setup, state, frozen, factor, rows, index, carry):
    """Gradients of all networks on a micro-batch; statistics in the original's order.

    Returns:
      ((gradients, metrics), carry): carry is {"discriminator": its statistics,
      "totals": what the codes got so far}.
    """
    names = ("posterior", "dropout", "restart")
    rngs = step_rngs(setup.seed, state.step, names)
    rngs = {name: jax.random.fold_in(rng, index) for name, rng in rngs.items()}
    images = to_float(rows["image"])
    trained = {k: v for k, v in state.params.items() if k != "discriminator"}
    given = setup, state, frozen, images, rngs, factor, carry["discriminator"]
    differentiate = functools.partial(jax.value_and_grad, has_aux=True)
    (_, (metrics, seen, decoded, regularised)), grads = differentiate(
        _autoencoder_loss
    )(trained, *given)
    decoded = jax.lax.stop_gradient(decoded)

    (_, (judged, seen)), grads["discriminator"] = differentiate(_critic_loss)(
        state.params["discriminator"],
        setup,
        state.stats.get("lecam"),
        images,
        decoded,
        factor,
        seen,
    )
    zeros = jnp.mean(RECONSTRUCTION_LOSSES[setup.options.reconstruction](images))
    metrics["loss_vs_zeros"] = metrics["pixel_loss"] / zeros
    carry = carry | {"discriminator": seen}
    if setup.has_codebook:
        parts = setup.train.accumulate_steps
        more = regularised, rngs["restart"], index, parts
        carry["totals"] = codebook.add_totals(carry["totals"], *more)
    return (grads, metrics | judged), carry


def _train_step(setup, state, frozen, batch):
    """One update of all networks, their statistics and averages."""
    train, options = setup.train, setup.options
    factor = discriminator_factor(
        state.step, options.disc_start, options.disc_factor, options.disc_ramp_steps
    )
    carry = {"discriminator": state.stats.get("discriminator", {})}
    if setup.has_codebook:
        carry["totals"] = codebook.empty_totals(*setup.codebook_size)
    gradients = functools.partial(_gradients, setup, state, frozen, factor)
    (grads, metrics), carry = accumulate(
        gradients, batch, carry, train.accumulate_steps
    )
    stats = dict(state.stats)
    if carry["discriminator"]:
        stats["discriminator"] = carry["discriminator"]
    if options.lecam_weight:
        stats["lecam"] = update_lecam(stats["lecam"], metrics, factor > 0)
    after = _apply_gradients(setup, state, grads).replace(stats=stats)
    for name, tree in grads.items():
        prefix = {"autoencoder": "", "discriminator": "disc_"}.get(name, f"{name}_")
        metrics[f"{prefix}grad_norm"] = optax.tree.norm(tree)
    if options.learn_logvar:
        metrics["logvar"] = after.params["logvar"]
    metrics["learning_rate"] = setup.rate(state.step)
    if not setup.has_codebook:
        return after, metrics
    after, more = _update_codebook(setup, state, after, carry["totals"])
    return after, metrics | more


def _apply_gradients(setup, state, grads):
    """Moves all networks by their optimisers, and the moving average after them."""
    params, opt_state = {}, {}
    for name, tree in grads.items():
        updates, opt_state[name] = setup.optimizers[name].update(
            tree, state.opt_state[name], state.params[name]
        )
        params[name] = optax.apply_updates(state.params[name], updates)
    average = state.ema_params
    if setup.train.ema_decay:
        new = {"autoencoder": params["autoencoder"]}
        average = update_ema(average, new, state.step, setup.train.ema_decay)
    return state.replace(
        step=state.step + 1, params=params, ema_params=average, opt_state=opt_state
    )


def _update_codebook(setup, before, after, totals):
    """Averages and restarts codes; returns the state and what to log."""
    metrics = quantizer.codebook_metrics(totals.counts)
    if "codebook" not in before.stats:
        return after, metrics
    path = setup.row.codebook.path
    codes, restarted, stats = codebook.update_codebook(
        _get_codes(before.params, path),
        _get_codes(after.params, path),
        before.stats["codebook"],
        totals,
        before.step,
        **setup.codebook_updates,
    )
    average = after.ema_params
    if average:
        # What a restarted code was says nothing of what it is.
        kept = jnp.where(restarted[:, None], codes, _get_codes(average, path))
        average = _set_codes(average, path, kept)
    if setup.options.restart_threshold:
        metrics["codebook_restarts"] = jnp.sum(restarted)
    after = after.replace(
        params=_set_codes(after.params, path, codes),
        ema_params=average,
        stats=after.stats | {"codebook": stats},
    )
    return after, metrics


def _get_codes(params, path):
    return functools.reduce(lambda tree, name: tree[name], path, params["autoencoder"])


def _set_codes(params, path, codes):
    """Returns parameters with another codebook."""
    tree = codes
    for depth in reversed(range(len(path))):
        tree = _get_codes(params, path[:depth]) | {path[depth]: tree}
    return params | {"autoencoder": tree}


def _reconstruct(setup, state, images):
    """Decodes the mode with the moving average where there is one.

    Returns:
      (weights, posterior, reconstructions).
    """
    params = (state.ema_params or state.params)["autoencoder"]
    apply = functools.partial(setup.model.apply, {"params": params})
    posterior = apply(images, method="encode")
    return params, posterior, apply(posterior.mode(), method="decode")


def _eval_step(setup, state, frozen, batch, rng):
    """Means over the real rows of a batch."""
    del rng
    images = to_float(batch["image"])
    params, posterior, decoded = _reconstruct(setup, state, images)
    decoded = jnp.clip(decoded, -1, 1)
    squared = jnp.mean(jnp.square(decoded - images), axis=(1, 2, 3))
    rows = {
        # Peak to peak is 2 where images are in [-1, 1].
        "psnr": 10 * jnp.log10(4 / jnp.maximum(squared, 1e-10)),
        "l1": jnp.mean(jnp.abs(decoded - images), axis=(1, 2, 3)),
    }
    rows |= setup.row.measures.rows(setup.model, params, posterior)
    if frozen:
        variables = {"params": frozen["lpips"]}
        rows["lpips"] = setup.perceptual.apply(variables, images, decoded)
    real = batch["mask"].astype(jnp.float32)
    return {name: jnp.average(row, axis=0, weights=real) for name, row in rows.items()}


def _preview(setup, state, frozen, batch, rng):
    """Held-out images and their reconstructions."""
    del frozen, rng
    images = to_float(batch["image"])
    *_, decoded = _reconstruct(setup, state, images)
    return {"inputs": images, "reconstructions": decoded}
