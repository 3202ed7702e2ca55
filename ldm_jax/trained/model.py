"""Trained second stages, with everything that sampling needs."""

import types
from typing import Any, NamedTuple

from ldm_jax import checkpoint
from ldm_jax.build import make_model
from ldm_jax.checkpoint import Folder, Step, tree_checksum
from ldm_jax.data.inputs import held_out_inputs, make_inputs
from ldm_jax.diffusion.latent_statistics import LatentStatistics
from ldm_jax.errors import ConfigError
from ldm_jax.images import Pixels, pixels_of
from ldm_jax.latent_diffusion import LatentDiffusion
from ldm_jax.trained.classifier import load_classifier
from ldm_jax.trained.first_stage import check_same_latents, load_first_stage
from ldm_jax.trained.own_copy import load_recorded
from ldm_jax.trained.text_towers import with_text_towers
from ldm_jax.weights.lpips import read_lpips


class Trained(NamedTuple):
    """A trained second stage with everything that sampling needs.

    Attributes:
      model: The LatentDiffusion.
      params: Its weights, NumPy.
      frozen: Weights of the first stage and statistics of its latents, NumPy.
      config: The config it was trained with.
      inputs: Batch key -> Input, which makes the input of a condition from an example.
      class_names: Names of the classes, an empty list if there are none.
      source: The checkpoint folder, to be recorded.
      weights: The item of the checkpoint with the weights: "params" or "ema_params".
      first_stage: The first stage, as text: step and workdir.
      decoder: The decoder that replaces the first stage's own, as text; or None.
      classifier: TrainedClassifier for classifier guidance, or None.
      lpips: Weights of LPIPS for image guidance, or None.
      shapes: Batch key -> [type, axes without that of the batch] of what it was trained
        on; empty where that is not known, as of converted models.
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
    shapes: Any = types.MappingProxyType({})

    @property
    def pixels(self) -> Pixels:
        """Format of the images that it draws."""
        return pixels_of(self.config.data, self.model.first_stage.image_channels)


def load_model(
    workdir: Folder,
    step: Step = None,
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
      step: Checkpoint to load; the newest by default.
      average: Whether to load the moving average of the weights, if one was kept.
      first_stage: Workdir of the first stage that it was trained on; by default its
        own copy, or the recorded one.
      decoder: Workdir of a first stage with the same latents, to use its decoder
        instead.
      classifier: Workdir of a classifier of the same latents, for classifier guidance.
      lpips: File of LPIPS weights, or two separated by a comma, for image guidance.
      data_dir: Folder of the prepared data sets; by default as in training.

    Returns:
      A Trained.

    Raises:
      CheckpointError: If a checkpoint is missing or unreadable, or the first stage is
        not the one that the second was trained on.
      ConfigError: If the workdir is not that of a second stage, or the decoder or the
        classifier was trained on other latents.
    """
    config, params, meta = checkpoint.load_weights(workdir, step, average)
    if config.stage != "diffusion":
        raise ConfigError(
            f"--workdir={workdir} holds a run of the stage '{config.stage}'; sample.py "
            "needs a diffusion run"
        )
    params = with_text_towers(params, config, meta, workdir)
    if config.data.get("text_states"):
        # With its text encoders it takes token ids, as any other model.
        config.data.text_states = False
    if data_dir:
        config.data.data_dir = data_dir
    first = load_recorded(workdir, meta["first_stage"], first_stage)
    where = _in_words(first.record)
    # A classifier's latents are compared with these, recorded or not.
    meta |= {"first_stage": first.record}
    if decoder:
        swapped = load_first_stage(decoder, key="--decoder")
        check_same_latents(first, swapped)
        first = swapped
        weights = tree_checksum(first.params)
        decoder = f"{_in_words(first.record)}, weights {weights:08x}"
    statistics = LatentStatistics.from_record(meta).arrays()
    model = make_model(config, first.module, meta["num_classes"])
    inputs = held_out_inputs(make_inputs(config.data.get("inputs")))
    return Trained(
        model=model,
        params=params,
        frozen={"first_stage": first.params, "statistics": statistics},
        config=config,
        # The conditions of some inputs may have been turned off.
        inputs={k: v for k, v in inputs.items() if k in model.conditioner.entries},
        class_names=list(meta["class_names"] or []),
        source=meta["folder"],
        weights=meta["item"],
        first_stage=where,
        decoder=decoder,
        classifier=classifier and load_classifier(classifier, model, meta),
        lpips=lpips and read_lpips(lpips, "--lpips_weights"),
        shapes=(meta.get("data") or {}).get("shapes") or {},
    )


def _in_words(record):
    return f"step {record['step']} of {record['workdir']}"
