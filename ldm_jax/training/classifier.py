"""The third stage: a classifier of noisy latents, for classifier guidance.

Dhariwal & Nichol 2021, Sec. 4.2, on latents of a frozen first stage as in Rombach et
al. 2022, Table 3 (LDM-8-G).
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ldm_jax import latent_diffusion
from ldm_jax.annotations import Shaped
from ldm_jax.build import make_classifier, make_noise_schedule
from ldm_jax.checkpoint import Folder
from ldm_jax.conditioners.checks import check_classes
from ldm_jax.errors import ConfigError
from ldm_jax.latent_classifier import LatentClassifier, loss
from ldm_jax.models.operations.parameters import initialise
from ldm_jax.training.freeze import freeze_paths
from ldm_jax.training.held_out.eval_options import eval_options
from ldm_jax.training.latents import (
    find_statistics,
    frozen_tree,
    open_first_stage,
)
from ldm_jax.training.optimizer import check_optimizer
from ldm_jax.training.step import Stage, make_loss_steps


def check(config: ConfigDict) -> None:
    """Checks a config before data and weights are read.

    Args:
      config: ConfigDict.

    Raises:
      ConfigError: If it is invalid.
    """
    # A placeholder: the number of classes is that of the data.
    make_classifier(config, num_classes=1)
    make_noise_schedule(config)
    if eval_options(config).every:
        raise ConfigError(
            "eval.every: a classifier makes no images to measure; leave it unset"
        )
    check_optimizer(config.train)
    if config.data.get("buckets"):
        raise ConfigError(
            "data.buckets: a classifier takes images of one size; leave it empty"
        )


def make_stage(
    config: ConfigDict, mesh: Mesh, data: Any, meta: Mapping[str, Any], workdir: Folder
) -> tuple[Stage, dict[str, Any]]:
    """Makes the stage from its config.

    Args:
      config: ConfigDict.
      mesh: Mesh of the run.
      data: The run's `Data`.
      meta: `meta` of the checkpoint to resume from, see `training.diffusion`.
      workdir: Workdir of the run, where a copy of the first stage is kept.

    Returns:
      (Stage, record): `record` goes into each checkpoint's `meta`.

    Raises:
      ConfigError: If the config is invalid, or the data have no labels.
      CheckpointError: If the first stage cannot be read.
    """
    first = open_first_stage(config, meta, workdir)
    model = LatentClassifier(
        make_classifier(config, data.num_classes),
        make_noise_schedule(config),
        first.module,
    )
    data.check_examples(functools.partial(_check_label, data.num_classes))
    statistics = find_statistics(config, model, first, mesh, data, meta)
    frozen = frozen_tree(first, statistics, data, encodes=False)
    record = {
        "first_stage": first.record,
        **statistics.record(),
        "num_classes": data.num_classes,
        "class_names": data.class_names,
    }
    return make_steps(config, model, frozen, data.example), record


def _check_label(num_classes, batch):
    check_classes(batch["label"], "B", num_classes)


def make_steps(
    config: ConfigDict,
    model: LatentClassifier,
    frozen: Any,
    example: Mapping[str, Shaped[np.ndarray, "..."]],
) -> Stage:
    """Makes the pure functions of the stage from the model and the optimiser.

    Args:
      config: ConfigDict.
      model: LatentClassifier.
      frozen: Weights of the first stage and statistics of its latents; shapes suffice.
      example: One training example as a batch of one, [1, ...].

    Returns:
      Stage.

    Raises:
      ConfigError: If the section `train` is invalid.
    """
    shape = latent_diffusion.latent_shape_in(model, example)

    def draw(rng):
        latents, timesteps = jnp.zeros((1, *shape)), jnp.zeros(1, jnp.int32)
        _, variables = initialise(model.classifier, rng, latents, timesteps)
        return {"classifier": variables["params"]}

    steps = make_loss_steps(
        config, freeze_paths(config), draw, functools.partial(loss, model)
    )
    return Stage(*steps, preview=None, frozen=frozen)
