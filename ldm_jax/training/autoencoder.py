"""The first stage: autoencoder and patch discriminator, updated in one program."""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from ldm_jax.config import ConfigError, build, choose, to_dict
from ldm_jax.images import to_float
from ldm_jax.models.autoencoder import FIRST_STAGES, last_layer
from ldm_jax.models.discriminator import PatchDiscriminator
from ldm_jax.training.freeze import hold, within
from ldm_jax.training.losses import (
    DISCRIMINATOR_LOSSES,
    RECONSTRUCTION_LOSSES,
    discriminator_factor,
    discriminator_loss,
    generator_loss,
)
from ldm_jax.training.optimizer import make_optimizer, make_rate
from ldm_jax.training.state import (
    Stage,
    TrainState,
    accumulate,
    step_rngs,
    update_ema,
)


@dataclasses.dataclass(frozen=True)
class Weights:
    """The config section `loss` of a first stage; defaults are the original's.

    Attributes:
      reconstruction: Row of RECONSTRUCTION_LOSSES.
      kl_weight: Weight of the KL divergence (nats per image).
      disc_start: Generator steps before the adversarial losses start.
      disc_weight: Multiplies the adaptive weight.
      disc_loss: Row of DISCRIMINATOR_LOSSES.
      disc_factor: Weight of the adversarial losses once they have started.
      disc_ramp_steps: Steps over which that weight rises; 0 starts at once.
      disc_weight_cap: Largest adaptive weight.
    """

    reconstruction: str = "l1"
    kl_weight: float = 1e-6
    disc_start: int = 50_001
    disc_weight: float = 0.5
    disc_loss: str = "hinge"
    disc_factor: float = 1.0
    disc_ramp_steps: int = 0
    disc_weight_cap: float = 1e4

    def __post_init__(self):
        choose(RECONSTRUCTION_LOSSES, self.reconstruction, "loss.reconstruction")
        choose(DISCRIMINATOR_LOSSES, self.disc_loss, "loss.disc_loss")


def make_first_stage(section):
    """Builds the autoencoder that a config section describes; no weights are drawn.

    Args:
      section: Config section of "kind" (a row of FIRST_STAGES) and its fields.

    Returns:
      An Autoencoder.

    Raises:
      ConfigError: On an unknown kind or field.
    """
    fields = to_dict(section)
    kind = choose(FIRST_STAGES, fields.pop("kind", "kl"), "first_stage.kind")
    return build(kind, fields, "first_stage")


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
    _check_size(model, config.data.image_size)
    critic = build(PatchDiscriminator, config.discriminator, "discriminator")
    weights = build(Weights, config.loss, "loss")
    return _make_steps(config, model, critic, weights, data.example), {}


def _check_size(model, image_size):
    factor = model.downsampling_factor
    if image_size % factor:
        raise ConfigError(
            f"data.image_size={image_size} is not divisible by {factor}, by which "
            f"first_stage.channel_mult={tuple(model.channel_mult)} reduces images; use "
            f"data.image_size={max(factor, round(image_size / factor) * factor)}"
        )


def _make_steps(config, model, critic, weights, example):
    """Closes the pure functions of the stage over the networks and optimisers."""
    train = config.train
    rate = make_rate(train)
    freeze = {n: within(train.freeze, n) for n in ("autoencoder", "discriminator")}
    optimizers = {
        name: make_optimizer(to_dict(train.optimizer), rate, train.grad_clip, paths)
        for name, paths in freeze.items()
    }

    def init(rng):
        rngs = jax.random.split(rng)
        images = jnp.zeros(example["image"].shape, jnp.float32)
        judged = critic.init(rngs[1], images)
        params = {
            "autoencoder": model.init(rngs[0], images)["params"],
            "discriminator": judged["params"],
        }
        average = {"autoencoder": jax.tree.map(jnp.copy, params["autoencoder"])}
        return TrainState(
            step=jnp.int32(0),
            params=params,
            ema_params=average if train.ema_decay else {},
            opt_state={n: optimizers[n].init(tree) for n, tree in params.items()},
            stats=judged.get("batch_stats", {}),
        )

    def judge(params, stats, images):
        """Returns the logits and the batch statistics after these images."""
        logits, updated = critic.apply(
            {"params": params, "batch_stats": stats},
            images,
            train=True,
            mutable=["batch_stats"],
        )
        return logits, updated.get("batch_stats", {})

    def reconstruct(params, images, rngs):
        return model.apply(
            {"params": params},
            images,
            rngs["posterior"],
            train=True,
            rngs={"dropout": rngs["dropout"]},
            method="reconstruct",
        )

    def gradients(params, step, images, rngs, stats):
        """Gradients of both networks; statistics in the original's order."""
        factor = discriminator_factor(
            step, weights.disc_start, weights.disc_factor, weights.disc_ramp_steps
        )

        def generator(autoencoder):
            autoencoder = hold(autoencoder, freeze["autoencoder"])
            decoded, posterior, features = reconstruct(autoencoder, images, rngs)
            loss, (metrics, seen) = generator_loss(
                images,
                decoded,
                weights.kl_weight * jnp.mean(posterior.kl()),
                *last_layer(model, autoencoder, features),
                lambda x: judge(params["discriminator"], stats, x),
                factor=factor,
                reconstruction=weights.reconstruction,
                disc_weight=weights.disc_weight,
                weight_cap=weights.disc_weight_cap,
            )
            metrics["kl_loss"] = jnp.mean(posterior.kl())
            return loss, (metrics, seen, decoded)

        def discriminator(network):
            real, seen_real = judge(network, seen, images)
            fake, seen_fake = judge(network, seen_real, decoded)
            loss, metrics = discriminator_loss(
                real, fake, kind=weights.disc_loss, factor=factor
            )
            return loss, (metrics, seen_fake)

        (_, (metrics, seen, decoded)), generator_grads = jax.value_and_grad(
            generator, has_aux=True
        )(params["autoencoder"])
        decoded = jax.lax.stop_gradient(decoded)
        (_, (judged, seen)), critic_grads = jax.value_and_grad(
            discriminator, has_aux=True
        )(params["discriminator"])
        grads = {"autoencoder": generator_grads, "discriminator": critic_grads}
        zeros = jnp.mean(RECONSTRUCTION_LOSSES[weights.reconstruction](images))
        metrics["loss_vs_zeros"] = metrics["reconstruction_loss"] / zeros
        return (grads, metrics | judged), seen

    def train_step(state, frozen, batch):
        del frozen
        rngs = step_rngs(config.seed, state.step, ("posterior", "dropout"))

        def part(rows, index, stats):
            keys = {name: jax.random.fold_in(rng, index) for name, rng in rngs.items()}
            images = to_float(rows["image"])
            return gradients(state.params, state.step, images, keys, stats)

        (grads, metrics), stats = accumulate(
            part, batch, state.stats, train.accumulate_steps
        )
        params, opt_state = {}, {}
        for name, tree in grads.items():
            updates, opt_state[name] = optimizers[name].update(
                tree, state.opt_state[name], state.params[name]
            )
            params[name] = optax.apply_updates(state.params[name], updates)
        average = state.ema_params
        if train.ema_decay:
            new = {"autoencoder": params["autoencoder"]}
            average = update_ema(average, new, state.step, train.ema_decay)
        metrics["grad_norm"] = optax.tree.norm(grads["autoencoder"])
        metrics["disc_grad_norm"] = optax.tree.norm(grads["discriminator"])
        metrics["learning_rate"] = rate(state.step)
        state = state.replace(
            step=state.step + 1,
            params=params,
            ema_params=average,
            opt_state=opt_state,
            stats=stats,
        )
        return state, metrics

    def decoded_mode(state, images):
        params = (state.ema_params or state.params)["autoencoder"]
        return model.apply({"params": params}, images, method="reconstruct")[:2]

    def eval_step(state, frozen, batch, rng):
        del frozen, rng
        images = to_float(batch["image"])
        decoded, posterior = decoded_mode(state, images)
        decoded = jnp.clip(decoded, -1, 1)
        squared = jnp.mean(jnp.square(decoded - images), axis=(1, 2, 3))
        rows = {
            # Peak to peak is 2 where images are in [-1, 1].
            "psnr": 10 * jnp.log10(4 / jnp.maximum(squared, 1e-10)),
            "l1": jnp.mean(jnp.abs(decoded - images), axis=(1, 2, 3)),
            "kl": posterior.kl(),
        }
        real = batch["mask"].astype(jnp.float32)
        return {name: jnp.average(row, weights=real) for name, row in rows.items()}

    def preview(state, frozen, batch, rng):
        del frozen, rng
        images = to_float(batch["image"])
        return {"inputs": images, "reconstructions": decoded_mode(state, images)[0]}

    return Stage(init, train_step, eval_step, preview, frozen={})
