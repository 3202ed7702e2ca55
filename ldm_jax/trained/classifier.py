"""Trained classifiers of noisy latents, for classifier guidance."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from ldm_jax import checkpoint
from ldm_jax.build import make_classifier, make_noise_schedule
from ldm_jax.checkpoint import Folder, tree_checksum
from ldm_jax.diffusion.latent_statistics import LatentStatistics
from ldm_jax.errors import ConfigError
from ldm_jax.latent_classifier import LatentClassifier
from ldm_jax.latent_diffusion import LatentDiffusion
from ldm_jax.models.classifier import Classifier


class TrainedClassifier(NamedTuple):
    """A trained classifier.

    Attributes:
      module: The Classifier.
      params: Its weights, NumPy.
      class_names: Names of the classes, an empty list if there are none.
      source: The checkpoint folder and a checksum of the weights, to be recorded.
    """

    module: Classifier
    params: Any
    class_names: list
    source: str


def load_classifier(
    workdir: Folder,
    model: LatentDiffusion | LatentClassifier,
    meta: Mapping[str, Any],
    step: int | None = None,
    average: bool = True,
) -> TrainedClassifier:
    """Loads a trained classifier, to guide a diffusion model with.

    Args:
      workdir: Workdir of the classifier.
      model: LatentDiffusion to guide.
      meta: Metadata of that model's checkpoint.
      step: Checkpoint to load; the newest by default.
      average: Whether to load the moving average of the weights, if one was kept.

    Returns:
      A TrainedClassifier.

    Raises:
      CheckpointError: If the checkpoint is missing or unreadable.
      ConfigError: If it is not a classifier, or was trained on other latents.
    """
    config, params, found = checkpoint.load_weights(workdir, step, average)
    if config.stage != "classifier":
        raise ConfigError(
            f"{workdir} holds a run of the stage '{config.stage}'; give the workdir of "
            "a classifier (configs/*classifier*.py)"
        )
    alphas = make_noise_schedule(config).table.alpha, model.schedule.table.alpha
    problem = _difference(alphas, found, meta)
    if problem:
        raise ConfigError(
            f"the classifier in {workdir} was trained on other latents than the model "
            f"it is to guide: {problem}; train it with the model's first stage and "
            "schedule"
        )
    return TrainedClassifier(
        make_classifier(config, found["num_classes"]),
        params["classifier"],
        list(found["class_names"] or []),
        f"{found['folder']}, weights {tree_checksum(params['classifier']):08x}",
    )


def _difference(alphas, classifier, diffusion):
    """Returns how the noisy latents of two stages differ; None if they do not."""
    stages = [
        (meta["first_stage"] or {}).get("checksum") for meta in (classifier, diffusion)
    ]
    if None not in stages and stages[0] != stages[1]:
        return "their first stages differ"
    statistics = map(LatentStatistics.from_record, (classifier, diffusion))
    problem = LatentStatistics.difference(*statistics)
    if problem:
        return problem
    if alphas[0].shape != alphas[1].shape or not np.allclose(*alphas, atol=1e-4):
        return "their noise schedules differ"
    return None
