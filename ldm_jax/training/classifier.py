"""The third stage: a classifier of noisy latents, which steers a denoiser.

Dhariwal & Nichol 2021, Sec. 4.2, on latents of a frozen first stage as in Rombach et
al. 2022, Table 3 (LDM-8-G).
"""

import functools

import jax.numpy as jnp

from ldm_jax import latent_diffusion
from ldm_jax.build import make_classifier
from ldm_jax.latent_classifier import loss
from ldm_jax.training.latents import find_statistics, open_first_stage
from ldm_jax.training.step import Stage, make_update


def make_stage(config, mesh, data, meta):
    """Makes the stage from its config; see `training.diffusion.make_stage`."""
    first = open_first_stage(config, meta)
    model = make_classifier(config, first.module, data.num_classes)
    statistics = find_statistics(config, model, first, mesh, data, meta)
    frozen = {"first_stage": first.params, "statistics": statistics.arrays()}
    record = {
        "first_stage": first.record,
        **statistics.record(),
        "num_classes": data.num_classes,
        "class_names": data.class_names,
    }
    size = data.example["image"].shape[1:3]
    return _make_steps(config, model, frozen, size), record


def _make_steps(config, model, frozen, image_size):
    """Closes the pure functions of the stage over the model and the optimiser."""
    shape = latent_diffusion.shape_of_latents(model, image_size)

    def draw(rng):
        latents, timesteps = jnp.zeros((1, *shape)), jnp.zeros(1, jnp.int32)
        return {"classifier": model.classifier.init(rng, latents, timesteps)["params"]}

    loss_of = functools.partial(loss, model)
    init, train_step = make_update(config, config.train.freeze, draw, loss_of)

    def eval_step(state, frozen, batch, rng):
        params, mask = state.ema_params or state.params, batch["mask"]
        weights = mask.astype(jnp.float32)
        return loss_of(params, frozen, batch, rng, train=False, weights=weights)[1]

    def preview(state, frozen, batch, rng):
        return {}  # A classifier makes no pictures.

    return Stage(init, train_step, eval_step, preview, frozen)
