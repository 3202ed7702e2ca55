"""The first stage: autoencoder and patch discriminator, updated in one program."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from ml_collections import ConfigDict

from ldm_jax.annotations import Shaped
from ldm_jax.build import make_first_stage
from ldm_jax.checkpoint import Folder, tree_checksum
from ldm_jax.config import build, choose, to_dict
from ldm_jax.data.orders.buckets import check_step
from ldm_jax.errors import CheckpointError, ConfigError
from ldm_jax.images import Pixels, pixels_of, to_float
from ldm_jax.models.discriminator import PatchDiscriminator
from ldm_jax.models.first_stages import DEFAULT_KIND, FIRST_STAGES, row_of
from ldm_jax.models.lpips import LPIPS
from ldm_jax.training import adversarial
from ldm_jax.training.adversarial import Setup
from ldm_jax.training.codebook import CodebookOptions
from ldm_jax.training.freeze import freeze_paths, is_frozen, within
from ldm_jax.training.held_out.eval_options import eval_options
from ldm_jax.training.held_out.made_images import reconstructed
from ldm_jax.training.loss_options import LossOptions, check_codebook, load_perceptual
from ldm_jax.training.optimizer import (
    by_network,
    check_optimizer,
    make_optimizer,
)
from ldm_jax.training.step import Stage, make_step, step_options


def check(config: ConfigDict) -> None:
    """Checks a config before data and weights are read.

    Args:
      config: ConfigDict.

    Raises:
      ConfigError: If it is invalid.
    """
    _check_kind(config.first_stage.get("kind", DEFAULT_KIND))
    model = make_first_stage(config.first_stage)
    _check_size(model, config.data.image_size)
    reason = "by which the first stage reduces images"
    least = min(check_step(config.data, model.downsampling_factor, reason))
    check_codebook(build(LossOptions, config.loss, "loss"), model)
    critic = build(PatchDiscriminator, config.discriminator, "discriminator")
    if critic.patches(min(least, config.data.image_size)) < 1:
        raise ConfigError(
            f"discriminator.num_layers={critic.num_layers} leaves nothing of "
            f"data.image_size={config.data.image_size}: take fewer layers"
            if least >= config.data.image_size
            else f"discriminator.num_layers={critic.num_layers} leaves nothing of "
            f"{least} pixels, a side of data.buckets: take fewer layers"
        )
    eval_options(config)
    check_optimizer(config.train)


def make_stage(
    config: ConfigDict, mesh: Any, data: Any, meta: Mapping[str, Any], workdir: Folder
) -> tuple[Stage, dict[str, Any]]:
    """Makes the first stage from its config.

    Args:
      config: ConfigDict.
      mesh: Unused; the second stage needs it.
      data: The run's `Data`.
      meta: `meta` of the checkpoint to resume from; an empty dict for a new run.
      workdir: Unused like `mesh`.

    Returns:
      (Stage, record): `record` goes into each checkpoint's `meta`.

    Raises:
      ConfigError: If the config is invalid.
      CheckpointError: If LPIPS has other weights than when the run began.
    """
    del mesh, workdir
    model = make_first_stage(config.first_stage)
    if "image" not in data.example:
        raise ConfigError(
            "data.source=latents has latents and no images, which a first stage is "
            "trained on: name the images"
        )
    options = build(LossOptions, config.loss, "loss")
    least = min(check_step(config.data, 1, ""))
    options, frozen = load_perceptual(options, model, least)
    record = {name: tree_checksum(tree) for name, tree in frozen.items()}
    _check_frozen(config, record, meta)
    return make_steps(config, model, options, frozen, data.example), record


def _check_frozen(config, record, meta):
    """Compares the checksum of LPIPS with that of the run to resume."""
    if "lpips" in record and record["lpips"] != meta.get("lpips", record["lpips"]):
        raise CheckpointError(
            f"loss.lpips_weights={config.loss.lpips_weights} holds other weights than "
            "when this run began: give those, or another --workdir"
        )


def _check_kind(kind):
    if choose(FIRST_STAGES, kind, "first_stage.kind").regulariser is None:
        raise ConfigError(
            f'first_stage.kind="{kind}" has nothing to train: give it to a second stage'
        )


def _check_size(model, image_size):
    factor = model.downsampling_factor
    if image_size % factor:
        raise ConfigError(
            f"data.image_size={image_size} is not divisible by {factor}, by which the "
            "first stage reduces images; use "
            f"data.image_size={max(factor, round(image_size / factor) * factor)}"
        )


def make_steps(
    config: ConfigDict,
    model: nn.Module,
    options: LossOptions,
    frozen: Any,
    example: Mapping[str, Shaped[np.ndarray, "..."]],
) -> Stage:
    """Makes the pure functions of the stage from its networks and optimisers.

    Args:
      config: ConfigDict.
      model: Autoencoder.
      options: The section `loss`, with `perceptual_weight` set.
      frozen: {"lpips": its weights}, or {} without; shapes suffice.
      example: One training example as a batch of one, [1, ...].

    Returns:
      Stage.

    Raises:
      ConfigError: If the config is invalid.
    """
    freeze, steps = freeze_paths(config), step_options(config)
    pixels = pixels_of(config.data)
    setup = Setup(
        model=model,
        row=row_of(model),
        critic=build(PatchDiscriminator, config.discriminator, "discriminator"),
        perceptual=functools.partial(_perceptual, LPIPS(dtype=model.dtype), pixels),
        options=options,
        codes=_codebook_options(model, options, within(freeze, "autoencoder")),
        freeze=within(freeze, "autoencoder"),
        parts=steps.accumulate_steps,
        image_shape=example["image"].shape,
    )
    init, train_step = make_step(
        steps,
        _make_optimizer(config.train, steps.rate, options, freeze),
        functools.partial(adversarial.draw, setup),
        functools.partial(adversarial.gradients, setup),
        rng_names=adversarial.RNG_NAMES,
        averaged=adversarial.AVERAGED,
        begin=functools.partial(adversarial.begin, setup),
        finish=functools.partial(adversarial.finish, setup),
    )
    held_out = _HeldOutSteps(setup, pixels)
    return Stage(
        init,
        train_step,
        held_out.eval_step,
        held_out.preview,
        frozen,
        make_images=reconstructed(held_out.reconstruct, pixels),
        summarize=setup.row.measures.summarize,
    )


@dataclasses.dataclass(frozen=True)
class _HeldOutSteps:
    """The stage's functions of held-out images: metrics and previews.

    Attributes:
      setup: Setup.
      pixels: Pixel format of the images.
    """

    setup: Setup
    pixels: Pixels

    def eval_step(self, state, frozen, batch, rng):
        """Means of the metrics over the images of a batch selected by its mask."""
        del rng
        model, measures = self.setup.model, self.setup.row.measures
        images = to_float(batch["image"])
        params, posterior, decoded = _reconstruct(model, state, images)
        shown = jnp.clip(decoded, -1, 1)
        rows = _distances(images, shown, self.setup.perceptual, frozen)
        rows |= measures.rows(model, params, posterior)
        average = functools.partial(
            jnp.average, axis=0, weights=batch["mask"].astype(jnp.float32)
        )
        return {name: average(values) for name, values in rows.items()}

    def preview(self, state, frozen, batch, rng):
        """Images and their reconstructions as RGB, [B, H, W, 3]."""
        del frozen, rng
        images = to_float(batch["image"])
        shown = {"inputs": images, "reconstructions": self.reconstruct(state, images)}
        return {name: self.pixels.to_rgb(values) for name, values in shown.items()}

    def reconstruct(self, state, images):
        """Reconstructions of images, [B, H, W, C] like them."""
        return _reconstruct(self.setup.model, state, images)[-1]


def _codebook_options(model, options, freeze):
    """Options of codebook updates; None without a codebook."""
    codebook = row_of(model).codebook
    if codebook is None:
        return None
    place = {"shape": codebook.shape(model), "path": codebook.path}
    if is_frozen("/".join(codebook.path), freeze):
        return CodebookOptions(**place)
    return CodebookOptions(
        **place,
        ema_decay=options.codebook_ema_decay,
        restart_threshold=options.restart_threshold,
    )


def _make_optimizer(train, rate, options, freeze):
    """One optimiser per network; the discriminator's may have its own rate and clip."""
    section, clip = to_dict(train.optimizer), train.grad_clip

    def make(name, rate=rate, clip=clip):
        return make_optimizer(section, rate, clip, within(freeze, name))

    critic_rate = rate
    critic_clip = clip if options.disc_grad_clip is None else options.disc_grad_clip
    if options.disc_learning_rate is not None:
        factor = options.disc_learning_rate / train.learning_rate
        critic_rate = lambda step: factor * rate(step)  # noqa: E731
    optimizers = {
        "autoencoder": make("autoencoder"),
        "discriminator": make("discriminator", critic_rate, critic_clip),
    }
    if options.learn_logvar:
        optimizers["logvar"] = make("logvar")
    return by_network(optimizers)


def _reconstruct(model, state, images):
    """Reconstructs with the mode of the posterior, and with EMA weights if there are.

    Returns:
      (weights, posterior, reconstructions).
    """
    params = (state.ema_params or state.params)["autoencoder"]
    apply = functools.partial(model.apply, {"params": params})
    posterior = apply(images, method="encode")
    return params, posterior, apply(posterior.mode(), method="decode")


def _distances(images, decoded, perceptual, frozen):
    """Distances of each image and its reconstruction: name -> [B]."""
    squared = jnp.mean(jnp.square(decoded - images), axis=(1, 2, 3))
    rows = {
        # The peak-to-peak range of images in [-1, 1] is 2.
        "psnr": 10 * jnp.log10(4 / jnp.maximum(squared, 1e-10)),
        "l1": jnp.mean(jnp.abs(decoded - images), axis=(1, 2, 3)),
    }
    if frozen:
        rows["lpips"] = perceptual(frozen["lpips"], images, decoded)
    return rows


def _perceptual(network, pixels, params, images, decoded):
    """LPIPS of images in [-1, 1], converted to RGB: [B]."""
    shown = pixels.to_rgb(images), pixels.to_rgb(decoded)
    return network.apply({"params": params}, *shown)
