"""Builds modules from config sections.

With `sections/`, whose functions it re-exports, this is the only code that reads the
sections that describe models.
"""

from collections.abc import Mapping
from typing import Any

from flax import linen as nn
from ml_collections import ConfigDict

from ldm_jax.conditioners import check_entry, entry_identity, make_conditioner
from ldm_jax.config import Section, build, build_row, choose, entries_of, to_dict
from ldm_jax.data.orders.buckets import check_step
from ldm_jax.diffusion.objective import Objective
from ldm_jax.diffusion.sample_options import SampleOptions
from ldm_jax.diffusion.schedule import check_prediction
from ldm_jax.errors import ConfigError
from ldm_jax.images import pixels_of
from ldm_jax.images.pixels import KINDS
from ldm_jax.latent_diffusion import LatentDiffusion
from ldm_jax.models.backbones import BACKBONES
from ldm_jax.models.classifier import Classifier
from ldm_jax.models.first_stages import DEFAULT_KIND, FIRST_STAGES
from ldm_jax.models.identity import identity_of
from ldm_jax.sections.conditions import check_ids, fill_conditions
from ldm_jax.sections.sample import (
    check_guidance,
    check_sampling,
    read_sample_options,
)
from ldm_jax.sections.schedule import make_noise_schedule, prediction_type_of

__all__ = [
    "check_guidance",
    "check_ids",
    "check_model",
    "check_sampling",
    "fill_conditions",
    "identity_of_config",
    "make_backbone",
    "make_classifier",
    "make_first_stage",
    "make_model",
    "make_noise_schedule",
    "sample_options",
    "with_image_channels",
]


def make_first_stage(section: Section) -> nn.Module:
    """Builds the autoencoder of a config section; initialises no weights.

    Args:
      section: Config section with "kind" (a row of FIRST_STAGES) and its fields.

    Returns:
      An Autoencoder.

    Raises:
      ConfigError: On an unknown kind or field.
    """
    fields = to_dict(section)
    kind = fields.pop("kind", DEFAULT_KIND)
    row = choose(FIRST_STAGES, kind, "first_stage.kind")
    return build_row(row.module, kind, fields, "first_stage")


def with_image_channels(config: ConfigDict) -> ConfigDict:
    """Sets the image channels of the first stage to train to those of the data.

    Args:
      config: ConfigDict of any stage.

    Returns:
      The config; for a first stage whose `data.channels` is set, with
      `first_stage.image_channels`.

    Raises:
      ConfigError: If the config sets another number of channels.
    """
    if config.stage != "autoencoder":
        return config
    given = config.first_stage.get("image_channels")
    if given is None and config.data.get("channels") is None:
        return config
    count = pixels_of(config.data).count
    if given is not None and given != count:
        named = {number: kind for kind, number in KINDS.items()}
        raise ConfigError(
            f"first_stage.image_channels={given}, but data.channels="
            f"{config.data.get('channels') or 'rgb'} gives {count}: leave the one out, "
            f"or set data.channels={named.get(given, given)}"
        )
    if given is not None:
        return config
    found = to_dict(config)
    return ConfigDict(
        found | {"first_stage": found["first_stage"] | {"image_channels": count}}
    )


def make_backbone(section: Section, out_channels: int) -> nn.Module:
    """Builds the denoiser of a config section; initialises no weights.

    Args:
      section: Config section with "kind" (a row of BACKBONES, "unet" by default) and
        its fields; with "tiny" set, the fields of the kind's tiny version replace them.
      out_channels: Channels of the latents.

    Returns:
      A backbone, see `models.backbones`.

    Raises:
      ConfigError: On an unknown kind or field.
    """
    fields = to_dict(section)
    kind = fields.pop("kind", "unet")
    row = choose(BACKBONES, kind, "backbone.kind")
    if fields.pop("tiny", False):
        fields |= row.tiny
    return build_row(row, kind, fields, "backbone", out_channels=out_channels)


def make_model(
    config: ConfigDict, first_stage: nn.Module, num_classes: int | None = None
) -> LatentDiffusion:
    """Builds the modules of a second stage; initialises no weights.

    Args:
      config: ConfigDict with `data`, `conditions`, `backbone`, `schedule` and `loss`.
      first_stage: Autoencoder module.
      num_classes: Number of classes of the data set, for conditions that do not set
        theirs; None for a data set without classes.

    Returns:
      A LatentDiffusion.

    Raises:
      ConfigError: If a section is wrong or the parts do not fit together.
    """
    prediction_type = prediction_type_of(config.schedule)
    backbone = make_backbone(config.backbone, first_stage.latent_channels)
    model = build(
        LatentDiffusion,
        {},
        "schedule",
        backbone=backbone,
        conditioner=build(
            make_conditioner,
            {"entries": fill_conditions(config, backbone, num_classes)},
            "conditions",
        ),
        schedule=make_noise_schedule(config),
        first_stage=first_stage,
        objective=build(
            Objective, config.loss, "loss", prediction_type=prediction_type
        ),
    )
    _check_sizes(model, config.data)
    return model


def check_model(config: ConfigDict) -> None:
    """Checks the sections of a second stage that need neither data nor weights.

    Args:
      config: ConfigDict with `conditions`, `backbone`, `schedule`, `loss` and `sample`.

    Raises:
      ConfigError: If a section is wrong.
    """
    # A placeholder: the number of latent channels is that of the first stage.
    backbone = make_backbone(config.backbone, out_channels=1)
    side, multiple = config.data.image_size, backbone.size_multiple
    if side % multiple:
        raise ConfigError(
            f"data.image_size={side} is no multiple of {multiple}, which the backbone "
            "takes alone, whatever the first stage divides by"
        )
    check_step(config.data, multiple, "which the backbone divides by")
    prediction_type = prediction_type_of(config.schedule)
    schedule = make_noise_schedule(config)
    build(Objective, config.loss, "loss", prediction_type=prediction_type)
    try:
        check_prediction(schedule, prediction_type)
    except ValueError as error:
        raise ConfigError(f"schedule: {error}") from error
    entries = entries_of(config.conditions)
    for key, entry in entries.items():
        check_entry(key, entry)
    read_sample_options(config, schedule, entries)


def sample_options(
    config: ConfigDict,
    model: LatentDiffusion,
    given: Mapping[str, Any] | None = None,
    size: tuple[int | None, int | None] = (None, None),
) -> SampleOptions:
    """Reads the `sample` section for a model, see `sections.sample`.

    Args:
      config: ConfigDict with `data` and `sample`.
      model: LatentDiffusion.
      given: Names in `sample_options.NAMES` -> values; None for that of the section.
      size: (height, width) of the images in pixels; None for that of training.

    Returns:
      SampleOptions.

    Raises:
      ConfigError: On an unknown name or a value out of its range.
    """
    entries = model.conditioner.entries
    return read_sample_options(config, model.schedule, entries, given, size)


def _check_sizes(model, data):
    """Checks that image size, first stage and backbone fit together."""
    image_size = data.image_size
    factor = model.first_stage.downsampling_factor
    multiple = model.backbone.size_multiple
    unit = factor * multiple
    if image_size % unit:
        nearest = max(unit, round(image_size / unit) * unit)
        raise ConfigError(
            f"data.image_size={image_size} gives latents of "
            f"{image_size / factor:g} x {image_size / factor:g} after the first stage "
            f"(factor {factor}), but the backbone takes multiples of {multiple} "
            f"alone; use data.image_size={nearest} or another backbone"
        )
    reason = f"which first stage ({factor}) and backbone ({multiple}) divide by"
    check_step(data, unit, reason)


def make_classifier(config: ConfigDict, num_classes: int | None) -> Classifier:
    """Builds the classifier of noisy latents; initialises no weights.

    Args:
      config: ConfigDict with `classifier` and `data`.
      num_classes: Number of classes of the data set.

    Returns:
      A Classifier.

    Raises:
      ConfigError: If the section is wrong, or there are no classes.
    """
    if not num_classes:
        raise ConfigError(
            f"data.name={config.data.name} has no class labels, which a classifier "
            "is to predict: use a data set with labels"
        )
    return build(Classifier, config.classifier, "classifier", out_channels=num_classes)


def identity_of_config(config: ConfigDict) -> dict[str, Any]:
    """Returns the settings that a stage's weights depend on, defaults included.

    Args:
      config: ConfigDict of any stage.

    Returns:
      JSON-like dict by config section, of the settings that shapes do not show.

    Raises:
      ConfigError: If a section is wrong.
    """
    if config.stage == "autoencoder":
        return {"first_stage": identity_of(make_first_stage(config.first_stage))}
    prediction_type = prediction_type_of(config.schedule)
    schedule = {"prediction_type": prediction_type}
    schedule |= make_noise_schedule(config).identity()
    if config.stage == "classifier":
        network = make_classifier(config, 1)
        return {"classifier": identity_of(network), "schedule": schedule}
    entries = entries_of(config.conditions)
    return {
        "backbone": identity_of(make_backbone(config.backbone, out_channels=1)),
        "schedule": schedule,
        "conditions": {key: entry_identity(entry) for key, entry in entries.items()},
    }
