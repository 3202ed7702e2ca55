"""The second stage: denoiser and conditioners, on latents of a frozen first stage."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ldm_jax import generate, latent_diffusion
from ldm_jax.annotations import Shaped
from ldm_jax.build import check_ids, check_model, make_model, sample_options
from ldm_jax.checkpoint import Folder
from ldm_jax.diffusion.sample_options import SampleOptions
from ldm_jax.errors import ConfigError
from ldm_jax.images import Pixels, pixels_of, to_float
from ldm_jax.latent_diffusion import LatentDiffusion
from ldm_jax.trained import stored_text_states
from ldm_jax.training.freeze import freeze_paths
from ldm_jax.training.held_out.eval_options import eval_options
from ldm_jax.training.held_out.made_images import sampled
from ldm_jax.training.held_out.noise_levels import by_level, level_losses
from ldm_jax.training.latents import (
    find_statistics,
    frozen_tree,
    open_first_stage,
)
from ldm_jax.training.optimizer import check_optimizer
from ldm_jax.training.start.pretrained_towers import frozen_paths, initial_weights
from ldm_jax.training.step import Stage, make_loss_steps


def check(config: ConfigDict) -> None:
    """Checks a config before data and weights are read.

    Args:
      config: ConfigDict.

    Raises:
      ConfigError: If it is invalid.
    """
    check_model(config)
    eval_options(config)
    check_optimizer(config.train)


def make_stage(
    config: ConfigDict, mesh: Mesh, data: Any, meta: Mapping[str, Any], workdir: Folder
) -> tuple[Stage, dict[str, Any]]:
    """Makes the second stage from its config.

    Args:
      config: ConfigDict.
      mesh: Mesh of the run.
      data: The run's `Data`.
      meta: `meta` of the checkpoint to resume from, which records the first stage and
        the latent statistics; an empty dict for a new run.
      workdir: Workdir of the run, where a copy of the first stage is kept.

    Returns:
      (Stage, record): `record` goes into each checkpoint's `meta`.

    Raises:
      ConfigError: If the config is invalid.
      CheckpointError: If the first stage cannot be read.
    """
    first = open_first_stage(config, meta, workdir)
    model = make_model(config, first.module, data.num_classes)
    check_ids(model.conditioner.entries, config.data.get("inputs"))
    stored = stored_text_states(
        config, model.conditioner, data, workdir, meta.get("text_states")
    )
    new = not meta and not config.train.init_from
    initial = initial_weights(model.conditioner, stored) if new else None
    if model.conditioner.entries:
        data.check_examples(model.conditioner.check)
    statistics = find_statistics(config, model, first, mesh, data, meta)
    encodes = model.conditioner.encodes_images
    frozen = frozen_tree(first, statistics, data, encodes)
    if stored:
        frozen["null_states"] = dict(data.null_states)
    record = {
        "first_stage": first.record,
        **statistics.record(),
        "num_classes": data.num_classes,
        "class_names": data.class_names,
        "text_states": stored,
    }
    stage = make_steps(config, model, frozen, data.example)
    return stage._replace(initial=initial), record


def make_steps(
    config: ConfigDict,
    model: LatentDiffusion,
    frozen: Any,
    example: Mapping[str, Shaped[np.ndarray, "..."]],
) -> Stage:
    """Makes the pure functions of the stage from the model and the optimiser.

    Args:
      config: ConfigDict.
      model: LatentDiffusion.
      frozen: Weights of the first stage and statistics of its latents; shapes suffice.
      example: One training example as a batch of one, [1, ...].

    Returns:
      Stage.

    Raises:
      ConfigError: If the config is invalid.
    """
    draw = functools.partial(_draw, model, example)
    loss = functools.partial(latent_diffusion.loss, model)
    without = frozen.get("null_states", ())
    freeze = (*freeze_paths(config), *frozen_paths(model.conditioner, without))
    init, train_step, measure = make_loss_steps(config, freeze, draw, loss)
    options, pixels = sample_options(config, model), pixels_of(config.data)
    bins = _level_bins(config, model)
    held_out = _HeldOutSteps(model, measure, options, pixels, config.seed, bins)
    return Stage(
        init,
        train_step,
        held_out.eval_step,
        held_out.preview,
        frozen,
        make_images=sampled(model, options, config.seed, pixels),
        summarize=by_level,
    )


def _draw(model, example, rng):
    """Initialises the parameters of a model."""
    batch = jax.tree.map(jnp.zeros_like, example)
    try:
        return latent_diffusion.init(model, rng, batch)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"backbone and conditions do not fit: {error}") from error


@dataclasses.dataclass(frozen=True)
class _HeldOutSteps:
    """The stage's functions of held-out examples: metrics and previews.

    Attributes:
      model: LatentDiffusion.
      measure: `eval_step` of the loss, see `make_loss_steps`.
      options: How samples are drawn.
      pixels: Pixel format of the images.
      seed: Seed of the run.
      bins: Number of bins of noise levels, 0 for none.
    """

    model: LatentDiffusion
    measure: Callable
    options: SampleOptions
    pixels: Pixels
    seed: int
    bins: int

    def eval_step(self, state, frozen, batch, rng):
        """Metrics of a batch, and its loss by noise level."""
        metrics = self.measure(state, frozen, batch, rng)
        if self.bins:
            params = state.ema_params or state.params
            metrics |= level_losses(
                self.model, params, frozen, batch, self.seed, self.bins
            )
        return metrics

    def preview(self, state, frozen, batch, rng):
        """Images, their reconstructions, and samples with their conditions.

        Each as RGB, [B, H, W, 3]; if guidance is on, samples without and with it are
        side by side, from the same noise.
        """
        model = self.model
        latents = latent_diffusion.latents_of(model, frozen, batch)
        rngs = jax.vmap(functools.partial(jax.random.fold_in, rng))
        rngs = rngs(jnp.arange(len(latents)))
        params = state.ema_params or state.params
        draw = functools.partial(
            generate.sample_images, model, params, frozen, batch, rngs
        )
        samples = _without_and_with_guidance(draw, self.options)
        # A batch of latents that were encoded in advance has no images.
        inputs = {"inputs": to_float(batch["image"])} if "image" in batch else {}
        shown = inputs | {
            "reconstructions": latent_diffusion.decode(model, frozen, latents),
            "samples": samples,
        }
        return {name: self.pixels.to_rgb(values) for name, values in shown.items()}


def _without_and_with_guidance(draw, options):
    """Samples of `draw`, a function of options; if guided, also those without."""
    guidance = options.guidance
    if not guidance.acts:
        return draw(options)

    def draw_at(fraction):
        return draw(dataclasses.replace(options, guidance=guidance.at(fraction)))

    # One after the other in a loop, so that program size and memory do not grow.
    samples = jax.lax.map(draw_at, jnp.arange(2.0))
    return jnp.concatenate(list(samples), axis=2)


def _level_bins(config, model):
    """Number of bins of noise levels, 0 for none."""
    bins, levels = eval_options(config).levels, model.schedule.num_train_timesteps
    if bins is None:
        return min(10, levels)
    if bins > levels:
        raise ConfigError(
            f"eval.levels={bins} is more than schedule.num_train_timesteps={levels}: "
            f"use eval.levels={min(10, levels)}"
        )
    return bins
