"""The third stage: a classifier of noisy latents, which steers a denoiser.

Dhariwal & Nichol 2021, Sec. 4.2, on latents of a frozen first stage as in Rombach et
al. 2022, Table 3 (LDM-8-G).
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from ldm_jax import checkpoint, latent_diffusion
from ldm_jax.config import ConfigError, build, to_dict
from ldm_jax.diffusion.schedule import NoiseSchedule, add_noise, make_schedule
from ldm_jax.models.classifier import Classifier
from ldm_jax.training.diffusion import find_scaling_factor, open_first_stage
from ldm_jax.training.state import Stage
from ldm_jax.training.update import make_update


@dataclasses.dataclass(frozen=True)
class LatentClassifier:
    """What the stage is made of.

    Attributes:
      classifier: Network, (latents, timesteps, *, train) -> logits.
      schedule: Noise levels.
      first_stage: Autoencoder.
    """

    classifier: nn.Module
    schedule: NoiseSchedule
    first_stage: nn.Module


class TrainedClassifier(NamedTuple):
    """A trained classifier.

    Attributes:
      module: The Classifier.
      params: Its weights, NumPy.
      class_names: Names of the classes, an empty list where there are none.
      source: The checkpoint folder, for the record.
    """

    module: Classifier
    params: Any
    class_names: list
    source: str


def make_model(config, first_stage, num_classes):
    """Builds the modules of the stage; no weights are drawn.

    Args:
      config: ConfigDict with `classifier` and `schedule`.
      first_stage: Autoencoder module.
      num_classes: Number of classes of the data set.

    Returns:
      A LatentClassifier.

    Raises:
      ConfigError: If a section is wrong, or there are no classes.
    """
    if not num_classes:
        raise ConfigError(
            f"data.name={config.data.name} has no class labels, which a classifier is "
            "to tell: use a data set with labels"
        )
    network = build(
        Classifier, config.classifier, "classifier", out_channels=num_classes
    )
    return LatentClassifier(network, _make_schedule(config), first_stage)


def _make_schedule(config):
    section = to_dict(config.schedule)
    section.pop("prediction_type", None)
    return build(make_schedule, section, "schedule")


def loss(model, params, frozen, batch, rng, *, train=True, weights=None):
    """Cross-entropy of the classes of latents at random noise levels.

    Args:
      model: LatentClassifier.
      params: {"classifier": weights}.
      frozen: Weights and scaling factor of the first stage.
      batch: Dict with "image" and "label".
      rng: Typed key; all randomness of the step follows from it.
      train: Whether dropout is on.
      weights: Weight of each example, [B]; None for equal ones.

    Returns:
      (loss, metrics): float32 scalar, and a dict with it and "accuracy", the share of
      examples whose class is the likeliest; both over all noise levels.
    """
    keys = ("posterior", "timesteps", "noise", "dropout")
    rngs = dict(zip(keys, jax.random.split(rng, len(keys)), strict=True))
    latents = latent_diffusion.encode(model, frozen, batch["image"], rngs["posterior"])
    latents = jax.lax.stop_gradient(latents)
    timesteps = jax.random.randint(
        rngs["timesteps"], latents.shape[:1], 0, model.schedule.num_train_timesteps
    )
    noise = jax.random.normal(rngs["noise"], latents.shape)
    logits = model.classifier.apply(
        {"params": params["classifier"]},
        add_noise(latents, noise, model.schedule.at(timesteps)),
        timesteps,
        train=train,
        rngs={"dropout": rngs["dropout"]},
    )
    labels = batch["label"]
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    value = jnp.average(losses, weights=weights)
    hits = jnp.argmax(logits, axis=-1) == labels
    return value, {"loss": value, "accuracy": jnp.average(hits, weights=weights)}


def make_stage(config, mesh, data, meta):
    """Makes the stage from its config; see `training.diffusion.make_stage`."""
    first = open_first_stage(config, meta)
    model = make_model(config, first.module, data.num_classes)
    factor = find_scaling_factor(config, model, first.params, mesh, data, meta)
    frozen = {"first_stage": first.params, "scaling_factor": np.float32(factor)}
    record = {
        "first_stage": first.record,
        "scaling_factor": factor,
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


def load_classifier(workdir, model, meta, step=None, average=True):
    """Loads a trained classifier to steer a diffusion model with.

    Args:
      workdir: Workdir of the classifier.
      model: LatentDiffusion that it is to steer.
      meta: What the checkpoint of that model records.
      step: Checkpoint to take; the newest by default.
      average: Take the moving average of the weights where one was kept.

    Returns:
      A TrainedClassifier.

    Raises:
      CheckpointError: If the checkpoint is missing or unreadable.
      ConfigError: If it is no classifier, or one of other latents.
    """
    config, params, found = checkpoint.load_weights(workdir, step, average)
    if config.stage != "classifier":
        raise ConfigError(
            f"{workdir} holds a run of the stage '{config.stage}'; give the workdir of "
            "a classifier (configs/*classifier*.py)"
        )
    alphas = _make_schedule(config).table.alpha, model.schedule.table.alpha
    problem = _difference(alphas, found, meta)
    if problem:
        raise ConfigError(
            f"the classifier in {workdir} knows other latents than the model it is to "
            f"steer: {problem}; train it with the model's first stage and schedule"
        )
    return TrainedClassifier(
        make_model(config, model.first_stage, found["num_classes"]).classifier,
        params["classifier"],
        list(found["class_names"] or []),
        found["folder"],
    )


def _difference(alphas, classifier, diffusion):
    """What keeps two stages from knowing the same noisy latents; None if nothing."""
    stages = [
        (meta["first_stage"] or {}).get("checksum") for meta in (classifier, diffusion)
    ]
    if None not in stages and stages[0] != stages[1]:
        return "their first stages differ"
    factors = [meta["scaling_factor"] for meta in (classifier, diffusion)]
    # Both may have measured it, on batches of their own.
    if not np.isclose(*factors, rtol=0.05):
        return f"their scaling factors are {factors[0]:.4g} and {factors[1]:.4g}"
    if alphas[0].shape != alphas[1].shape or not np.allclose(*alphas, atol=1e-4):
        return "their noise schedules differ"
    return None
