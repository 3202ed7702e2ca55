"""The second stage: the denoiser and its conditioners, on latents of a frozen first."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax import checkpoint, generation, latent_diffusion, sharding
from ldm_jax.checkpoint import CheckpointError
from ldm_jax.conditioners import make_conditioner
from ldm_jax.config import ConfigError, build, to_dict
from ldm_jax.diffusion.schedule import make_schedule
from ldm_jax.images import to_float
from ldm_jax.latent_diffusion import LatentDiffusion
from ldm_jax.models.unet import UNet
from ldm_jax.training.conditions import (
    fill_conditions,
    frozen_paths,
    initial_weights,
)
from ldm_jax.training.pretrained import load_first_stage
from ldm_jax.training.state import Stage
from ldm_jax.training.update import make_update


def make_model(config, first_stage, num_classes=None):
    """Builds the modules of a second stage; no weights are drawn.

    Args:
      config: ConfigDict with `data`, `conditions`, `unet`, `schedule` and `loss`.
      first_stage: Autoencoder module.
      num_classes: Number of classes of the data set, for conditions that leave theirs
        open; None where there are none.

    Returns:
      A LatentDiffusion.

    Raises:
      ConfigError: If a section is wrong or the parts do not fit together.
    """
    schedule = to_dict(config.schedule)
    prediction_type = schedule.pop("prediction_type", "noise")
    unet = build(UNet, config.unet, "unet", out_channels=first_stage.latent_channels)
    model = build(
        LatentDiffusion,
        config.loss,
        "loss",
        unet=unet,
        conditioner=build(
            make_conditioner,
            {"entries": fill_conditions(config, unet, num_classes)},
            "conditions",
        ),
        schedule=build(make_schedule, schedule, "schedule"),
        first_stage=first_stage,
        prediction_type=prediction_type,
    )
    _check_sizes(model, config.data.image_size)
    return model


def sample_options(config, model):
    """Reads the `sample` section; a model without conditions is not guided."""
    options = to_dict(config.sample)
    return options if model.conditioner.entries else options | {"guidance_scale": 1.0}


def _check_sizes(model, image_size):
    """Checks that images, first stage and U-Net fit together, on shapes alone."""
    factor = model.first_stage.downsampling_factor
    levels = len(model.unet.channel_mult)
    unit = factor * 2 ** (levels - 1)
    if image_size % unit:
        nearest = max(unit, round(image_size / unit) * unit)
        raise ConfigError(
            f"data.image_size={image_size} gives latents of "
            f"{image_size / factor:g} x {image_size / factor:g} after the first stage "
            f"(factor {factor}), which a U-Net of {levels} levels cannot halve "
            f"{levels - 1} times; use data.image_size={nearest} or fewer "
            "unet.channel_mult"
        )


def measure_scaling_factor(model, params, batches, mesh):
    """Measures the factor that brings latents to unit variance.

    The original takes one batch on one process; this is 1 / std over many batches and
    all processes, posterior samples as in training.

    Args:
      model: LatentDiffusion or LatentClassifier.
      params: Weights of the first stage.
      batches: Iterable of global batches with "image".
      mesh: Mesh of the batches.

    Returns:
      Python float.

    Raises:
      ConfigError: If the latents do not vary.
    """
    frozen = {"first_stage": params, "scaling_factor": np.float32(1)}
    frozen = sharding.put_tree(frozen, sharding.tree_shardings(frozen, mesh))

    def moments(frozen, images, rng):
        latents = latent_diffusion.encode(model, frozen, images, rng)
        return jnp.mean(latents), jnp.mean(jnp.square(latents))

    moments = jax.jit(moments, out_shardings=sharding.replicated(mesh))
    rows = [
        jax.device_get(moments(frozen, batch["image"], jax.random.key(index)))
        for index, batch in enumerate(batches)
    ]
    mean, square = np.mean(np.asarray(rows, np.float64), axis=0)
    std = np.sqrt(max(square - mean**2, 0.0))
    if not np.isfinite(std) or std < 1e-6:
        raise ConfigError(
            f"the first stage's latents have a standard deviation of {std:.2g}: it has "
            "not learnt anything; train it further or give first_stage.scaling_factor"
        )
    return float(1 / std)


def make_stage(config, mesh, data, meta):
    """Makes the second stage from its config.

    Args:
      config: ConfigDict.
      mesh: Mesh of the run.
      data: The run's `Data`.
      meta: What a checkpoint to resume from records: the first stage and the scaling
        factor are taken from it; an empty dict for a new run.

    Returns:
      (Stage, record): `record` goes into each checkpoint's `meta`.

    Raises:
      ConfigError: If the config cannot work.
      CheckpointError: If the first stage cannot be read.
    """
    first = open_first_stage(config, meta)
    model = make_model(config, first.module, data.num_classes)
    new = not meta and not config.train.init_from
    initial = initial_weights(model.conditioner) if new else None
    if model.conditioner.entries:
        build(model.conditioner.check, {"batch": data.example}, "conditions")
    factor = find_scaling_factor(config, model, first.params, mesh, data, meta)
    frozen = {"first_stage": first.params, "scaling_factor": np.float32(factor)}
    record = {
        "first_stage": first.record,
        "scaling_factor": factor,
        "num_classes": data.num_classes,
        "class_names": data.class_names,
    }
    stage = _make_steps(config, model, frozen, data.example)
    return stage._replace(initial=initial), record


def open_first_stage(config, meta):
    """Loads the first stage of a stage on latents.

    Args:
      config: ConfigDict with `first_stage`.
      meta: What a checkpoint to resume from records; an empty dict for a new run.

    Returns:
      A FirstStage.

    Raises:
      ConfigError: If the section names none.
      CheckpointError: If it cannot be read, or is not the one that the run began with.
    """
    section = config.first_stage
    step = meta["first_stage"]["step"] if meta else section.step
    first = load_first_stage(section.workdir, step)
    if meta:
        _check_same_first_stage(first.record, meta["first_stage"])
    return first


def find_scaling_factor(config, model, params, mesh, data, meta):
    """The factor that brings latents to unit variance: known, given or measured.

    Args:
      config: ConfigDict with `first_stage` and `train`.
      model: See `measure_scaling_factor`.
      params: Weights of the first stage.
      mesh: Mesh of the run.
      data: The run's `Data`.
      meta: What a checkpoint to resume from records; an empty dict for a new run.

    Returns:
      Python float.

    Raises:
      ConfigError: If the latents do not vary.
    """
    factor = meta.get("scaling_factor") or config.first_stage.scaling_factor
    if factor is None and config.train.init_from:
        # Those weights know latents of that scale.
        folder = checkpoint.checkpoint_folder(config.train.init_from)
        factor = checkpoint.read_meta(folder).get("scaling_factor")
    if factor is None:
        batches = data.train_batches(0, count=config.first_stage.scaling_batches)
        factor = measure_scaling_factor(model, params, batches, mesh)
    return factor


def _check_same_first_stage(found, recorded):
    if found.get("checksum") != recorded.get("checksum"):
        raise CheckpointError(
            f"first_stage.workdir={found['workdir']} makes other latents than what "
            f"this run began with, step {recorded['step']} of {recorded['workdir']}: "
            "give that one, or another --workdir"
        )


def _make_steps(config, model, frozen, example):
    """Closes the pure functions of the stage over the model and the optimiser."""

    def draw(rng):
        batch = jax.tree.map(jnp.zeros_like, example)
        try:
            return latent_diffusion.init(model, rng, batch)
        except ValueError as error:
            raise ConfigError(f"unet and conditions do not fit: {error}") from error

    init, train_step = make_update(
        config,
        (*config.train.freeze, *frozen_paths(model.conditioner)),
        draw,
        functools.partial(latent_diffusion.loss, model),
    )

    def eval_step(state, frozen, batch, rng):
        _, metrics = latent_diffusion.loss(
            model,
            state.ema_params or state.params,
            frozen,
            batch,
            rng,
            train=False,
            weights=batch["mask"].astype(jnp.float32),
        )
        return metrics

    def preview(state, frozen, batch, rng):
        images = batch["image"]
        size = images.shape[0]
        samples = generation.generate(
            model,
            state.ema_params or state.params,
            frozen,
            batch,
            jax.vmap(lambda index: jax.random.fold_in(rng, index))(jnp.arange(size)),
            latent_shape=latent_diffusion.shape_of_latents(model, images.shape[1:3]),
            **sample_options(config, model),
        )
        latents = latent_diffusion.encode(model, frozen, images)
        return {
            "inputs": to_float(images),
            "reconstructions": latent_diffusion.decode(model, frozen, latents),
            "samples": samples,
        }

    return Stage(init, train_step, eval_step, preview, frozen)
