"""A trained second stage with everything that sampling needs."""

from typing import Any, NamedTuple

import numpy as np

from ldm_jax import checkpoint
from ldm_jax.config import ConfigError
from ldm_jax.convert.lpips import load_lpips
from ldm_jax.data.inputs import make_inputs
from ldm_jax.latent_diffusion import LatentDiffusion
from ldm_jax.training.classifier import load_classifier
from ldm_jax.training.diffusion import make_model
from ldm_jax.training.pretrained import check_same_latents, load_first_stage


class Trained(NamedTuple):
    """A trained second stage with everything that sampling needs.

    Attributes:
      model: The LatentDiffusion.
      params: Its weights, NumPy.
      frozen: Weights and scaling factor of the first stage, NumPy.
      config: The config it was trained with.
      inputs: What is made of an example for the conditions, batch key -> Input.
      class_names: Names of the classes, an empty list where there are none.
      source: The checkpoint folder, for the record.
      weights: The item of it that holds the weights: "params" or "ema_params".
      first_stage: What first stage decodes, in words.
      decoder: What decoder is in place of the first stage's own, or None.
      classifier: TrainedClassifier that steers, or None.
      lpips: Weights of LPIPS for image guiding, or None.
    """

    model: LatentDiffusion
    params: Any
    frozen: Any
    config: Any
    inputs: dict
    class_names: list
    source: str
    weights: str
    first_stage: str
    decoder: str | None = None
    classifier: Any = None
    lpips: Any = None


def load_model(
    workdir,
    step=None,
    average=True,
    first_stage=None,
    decoder=None,
    classifier=None,
    lpips=None,
):
    """Loads a trained second stage and the first stage it was trained on.

    Args:
      workdir: Workdir of the second stage.
      step: Checkpoint to take; the newest by default.
      average: Take the moving average of the weights where one was kept.
      first_stage: Workdir of the first stage; as recorded by default.
      decoder: Workdir of a first stage of the same latents whose decoder is used
        instead.
      classifier: Workdir of a classifier of the same latents that steers.
      lpips: File of LPIPS' weights, or two with a comma between, for image guiding.

    Returns:
      A Trained.

    Raises:
      CheckpointError: If a checkpoint is missing or unreadable.
      ConfigError: If the workdir is not that of a second stage, or the decoder or the
        classifier knows other latents.
    """
    config, params, meta = checkpoint.load_weights(workdir, step, average)
    if config.stage != "diffusion":
        raise ConfigError(
            f"--workdir={workdir} holds a run of the stage '{config.stage}'; sample.py "
            "needs a diffusion run"
        )
    recorded = meta["first_stage"]
    folder = _first_stage_folder(first_stage, recorded, workdir)
    first = load_first_stage(folder, recorded and recorded["step"])
    where = _in_words(first.record)
    if decoder:
        swapped = load_first_stage(decoder, key="--decoder")
        check_same_latents(first, swapped)
        first = swapped
        decoder = _in_words(first.record)
    factor = np.float32(meta["scaling_factor"])
    model = make_model(config, first.module, meta["num_classes"])
    inputs = make_inputs(config.data.get("inputs"))
    return Trained(
        model=model,
        params=params,
        frozen={"first_stage": first.params, "scaling_factor": factor},
        config=config,
        # The conditions of some may have been turned off.
        inputs={k: v for k, v in inputs.items() if k in model.conditioner.entries},
        class_names=list(meta["class_names"] or []),
        source=meta["folder"],
        weights=meta["item"],
        first_stage=where,
        decoder=decoder,
        classifier=classifier and load_classifier(classifier, model, meta),
        lpips=lpips and load_lpips(*lpips.split(",")),
    )


def _in_words(record):
    return f"step {record['step']} of {record['workdir']}"


def _first_stage_folder(given, recorded, workdir):
    """Where the first stage lies: as given, or as the checkpoint records it."""
    if given:
        return given
    if recorded is None:
        raise ConfigError(
            f"{workdir} came without a first stage; say where one is with "
            "--first_stage=ITS_WORKDIR"
        )
    return checkpoint.first_stage_folder(recorded["workdir"], workdir)
