"""Trained models: from a workdir to modules with weights."""

import pathlib
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from ldm_jax import checkpoint
from ldm_jax.build import (
    make_classifier,
    make_first_stage,
    make_model,
    make_noise_schedule,
)
from ldm_jax.checkpoint import Folder, absolute
from ldm_jax.data.inputs import make_inputs
from ldm_jax.diffusion.latent_statistics import LatentStatistics
from ldm_jax.errors import ConfigError
from ldm_jax.latent_classifier import LatentClassifier
from ldm_jax.latent_diffusion import LatentDiffusion
from ldm_jax.models.classifier import Classifier
from ldm_jax.models.first_stages import row_of
from ldm_jax.models.identity import identity_of
from ldm_jax.sharding import named_leaves
from ldm_jax.weights.lpips import read_lpips


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


def load_classifier(
    workdir: Folder,
    model: LatentDiffusion | LatentClassifier,
    meta: Mapping[str, Any],
    step: int | None = None,
    average: bool = True,
) -> TrainedClassifier:
    """Loads a trained classifier to guide a diffusion model with.

    Args:
      workdir: Workdir of the classifier.
      model: LatentDiffusion that it is to guide.
      meta: What the checkpoint of that model records.
      step: Checkpoint to take; the newest by default.
      average: Take the moving average of the weights where one was kept.

    Returns:
      A TrainedClassifier.

    Raises:
      CheckpointError: If the checkpoint is missing or unreadable.
      ConfigError: If it is not a classifier, or not one of the model's latents.
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
        found["folder"],
    )


def _difference(alphas, classifier, diffusion):
    """How the noisy latents of two stages differ; None if they do not."""
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


def first_stage_folder(recorded: str, workdir: Folder) -> pathlib.Path | str:
    """Finds the first stage of a second one, also if both moved together.

    Args:
      recorded: Its workdir as the second stage's checkpoint records it; where it lies
        inside of that workdir, relative to it; "identity" for none.
      workdir: Workdir of the second stage.

    Returns:
      Path of the first stage's workdir, or "identity".

    Raises:
      ConfigError: If it is not there.
    """
    if recorded == "identity":
        return recorded
    workdir, recorded = absolute(workdir), pathlib.Path(recorded)
    for folder in (workdir / recorded, workdir.parent / recorded.name):
        if folder.is_dir():
            return folder
    raise ConfigError(
        f"the first stage is no longer in {recorded}; say where it is with "
        "--first_stage=ITS_WORKDIR"
    )


class FirstStage(NamedTuple):
    """A trained first stage.

    Attributes:
      module: The autoencoder.
      params: Its weights, NumPy.
      config: The config it was trained with; None for the identity.
      record: Dict that says where the weights came from.
    """

    module: Any
    params: Any
    config: Any
    record: dict


def load_first_stage(
    workdir: Folder,
    step: int | None = None,
    average: bool = True,
    key: str = "first_stage.workdir",
) -> FirstStage:
    """Loads a trained first stage.

    Args:
      workdir: Its workdir, or "identity" for none: diffusion on pixels.
      step: Checkpoint to take; the newest by default.
      average: Take the moving average of the weights where one was kept.
      key: What the workdir is called, for messages.

    Returns:
      A FirstStage.

    Raises:
      ConfigError: If the workdir is not given or holds something else.
      CheckpointError: If there is no checkpoint in it, or it cannot be read.
    """
    if workdir == "identity":
        module = make_first_stage({"kind": "identity"})
        return FirstStage(module, {}, None, {"workdir": "identity", "step": None})
    if not workdir:
        raise ConfigError(
            f"{key} is not set: train a first stage with train.py "
            f"(configs/*autoencoder*.py) and give --config.{key}=ITS_WORKDIR"
        )
    config, params, meta = checkpoint.load_weights(workdir, step, average)
    if config.stage != "autoencoder":
        raise ConfigError(
            f"{key}={workdir} holds a {config.stage} run; give the workdir of an "
            "autoencoder"
        )
    module = make_first_stage(config.first_stage)
    record = record_of(workdir, meta) | {
        "image_size": config.data.image_size,
        "checksum": _latents_checksum(module, params["autoencoder"]),
    }
    return FirstStage(module, params["autoencoder"], config, record)


def _latents_checksum(module, params):
    """CRC-32 of the weights that make latents: equal ones make equal latents."""
    checksum = 0
    for leaf in jax.tree.leaves(_what_makes_latents(module, params)):
        checksum = zlib.crc32(np.asarray(leaf, np.float32).tobytes(), checksum)
    return checksum


def record_of(workdir: Folder, meta: Mapping[str, Any]) -> dict[str, Any]:
    """Says where weights came from, for what is made of them.

    Args:
      workdir: Workdir of the run.
      meta: The meta data that `checkpoint.load_weights` returned with them.

    Returns:
      JSON-like dict of "workdir", "step" and "weights", the item of the checkpoint.
    """
    return {
        "workdir": str(checkpoint.absolute(workdir)),
        "step": meta["step"],
        "weights": meta["item"],
    }


def check_same_latents(first: FirstStage, second: FirstStage) -> None:
    """Checks that two first stages give the same latents, to the bit.

    Args:
      first: FirstStage that a second stage was trained on.
      second: FirstStage whose decoder is to take its place.

    Raises:
      ConfigError: If they differ in anything but the decoder.
    """
    one, other = (
        named_leaves(_what_makes_latents(stage.module, stage.params))
        | identity_of(stage.module)
        for stage in (first, second)
    )
    places = [stage.record["workdir"] for stage in (first, second)]
    for name in sorted(one.keys() | other.keys()):
        if not np.array_equal(one.get(name), other.get(name)):
            raise ConfigError(
                f"the decoder in {places[1]} is of other latents than {places[0]}: "
                f"{name} differs; train it with train.init_from={places[0]} and the "
                "variant `decoder` of its config"
            )


def _what_makes_latents(module, params):
    parts = row_of(module).decoder_parts
    return {name: tree for name, tree in params.items() if name not in parts}


class Trained(NamedTuple):
    """A trained second stage with everything that sampling needs.

    Attributes:
      model: The LatentDiffusion.
      params: Its weights, NumPy.
      frozen: Weights of the first stage and statistics of its latents, NumPy.
      config: The config it was trained with.
      inputs: What is made of an example for the conditions, batch key -> Input.
      class_names: Names of the classes, an empty list where there are none.
      source: The checkpoint folder, for the record.
      weights: The item of it that holds the weights: "params" or "ema_params".
      first_stage: What first stage decodes, in words.
      decoder: What decoder is in place of the first stage's own, or None.
      classifier: TrainedClassifier for classifier guidance, or None.
      lpips: Weights of LPIPS for image guidance, or None.
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
    workdir: Folder,
    step: int | None = None,
    average: bool = True,
    first_stage: Folder | None = None,
    decoder: Folder | None = None,
    classifier: Folder | None = None,
    lpips: str | None = None,
    data_dir: str | None = None,
) -> Trained:
    """Loads a trained second stage and the first stage it was trained on.

    Args:
      workdir: Workdir of the second stage.
      step: Checkpoint to take; the newest by default.
      average: Take the moving average of the weights where one was kept.
      first_stage: Workdir of the first stage; as recorded by default.
      decoder: Workdir of a first stage of the same latents whose decoder is used
        instead.
      classifier: Workdir of a classifier of the same latents, for classifier guidance.
      lpips: File of LPIPS' weights, or two with a comma between, for image guidance.
      data_dir: Where prepared data sets lie; as in training by default.

    Returns:
      A Trained.

    Raises:
      CheckpointError: If a checkpoint is missing or unreadable.
      ConfigError: If the workdir is not that of a second stage, or the decoder or the
        classifier was trained on other latents.
    """
    config, params, meta = checkpoint.load_weights(workdir, step, average)
    if config.stage != "diffusion":
        raise ConfigError(
            f"--workdir={workdir} holds a run of the stage '{config.stage}'; sample.py "
            "needs a diffusion run"
        )
    if data_dir:
        config.data.data_dir = data_dir
    recorded = meta["first_stage"]
    folder = _first_stage_folder(first_stage, recorded, workdir)
    first = load_first_stage(folder, recorded and recorded["step"])
    where = _in_words(first.record)
    if decoder:
        swapped = load_first_stage(decoder, key="--decoder")
        check_same_latents(first, swapped)
        first = swapped
        decoder = _in_words(first.record)
    statistics = LatentStatistics.from_record(meta).arrays()
    model = make_model(config, first.module, meta["num_classes"])
    inputs = make_inputs(config.data.get("inputs"))
    return Trained(
        model=model,
        params=params,
        frozen={"first_stage": first.params, "statistics": statistics},
        config=config,
        # The conditions of some may have been turned off.
        inputs={k: v for k, v in inputs.items() if k in model.conditioner.entries},
        class_names=list(meta["class_names"] or []),
        source=meta["folder"],
        weights=meta["item"],
        first_stage=where,
        decoder=decoder,
        classifier=classifier and load_classifier(classifier, model, meta),
        lpips=lpips and read_lpips(lpips, "--lpips_weights"),
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
    return first_stage_folder(recorded["workdir"], workdir)
