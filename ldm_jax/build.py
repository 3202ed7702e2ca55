"""From config sections to modules: the only reader of sections that describe models."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from flax import linen as nn
from ml_collections import ConfigDict

from ldm_jax.conditioners import (
    CONDITIONERS,
    check_entry,
    entry_identity,
    make_conditioner,
)
from ldm_jax.config import (
    Section,
    build,
    build_row,
    check_names,
    choose,
    entries_of,
    to_dict,
)
from ldm_jax.console import warn_once
from ldm_jax.data.inputs import make_inputs
from ldm_jax.data.orders.buckets import check_step
from ldm_jax.diffusion.grids import make_points, starts_too_low
from ldm_jax.diffusion.objective import Objective
from ldm_jax.diffusion.sample_options import NAMES, SampleOptions, from_flat
from ldm_jax.diffusion.schedule import (
    PREDICTION_TYPES,
    NoiseSchedule,
    check_prediction,
    make_schedule,
)
from ldm_jax.errors import ConfigError
from ldm_jax.images import pixels_of
from ldm_jax.images.pixels import KINDS
from ldm_jax.latent_diffusion import LatentDiffusion
from ldm_jax.models.backbones import BACKBONES
from ldm_jax.models.classifier import Classifier
from ldm_jax.models.first_stages import DEFAULT_KIND, FIRST_STAGES
from ldm_jax.models.identity import identity_of


def make_first_stage(section: Section) -> nn.Module:
    """Builds the autoencoder that a config section describes; no weights are drawn.

    Args:
      section: Config section of "kind" (a row of FIRST_STAGES) and its fields.

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
    """Has the first stage that a config trains follow the channels of its data.

    Args:
      config: ConfigDict of any stage.

    Returns:
      The config, with `first_stage.image_channels` where images are not of three.

    Raises:
      ConfigError: If it gives another number.
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
    """Builds the denoiser that a config section describes; no weights are drawn.

    Args:
      section: Config section of "kind" (a row of BACKBONES, "unet" by default) and its
        fields; with "tiny" set, its toy's fields replace those of the section.
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


def fill_conditions(
    config: Any, backbone: nn.Module, num_classes: int | None
) -> dict[str, dict[str, Any]]:
    """Completes what entries leave open.

    What follows from the data set, from the entry of `data.inputs` under the same key
    and from the backbone, each kind says itself: see `ldm_jax.conditioners`.

    Args:
      config: ConfigDict with `conditions` and `data`.
      backbone: Backbone module.
      num_classes: Number of classes of the data set; None where there are none.

    Returns:
      Batch key -> entry, plain dicts; entries of the kind "none" are left out.

    Raises:
      ConfigError: If something is open that follows from nothing.
    """
    entries = entries_of(config.conditions)
    inputs = config.data.get("inputs") or {}
    for key, entry in entries.items():
        # An unknown kind is refused where the conditioner is made.
        kind = CONDITIONERS.get(entry.get("kind"))
        if "num_classes" in getattr(kind, "from_dataset", ()):
            _fill_num_classes(key, entry, num_classes)
        if hasattr(kind, "from_input"):
            _fill_from_input(key, entry, kind, inputs.get(key) or {})
        if entry.get("slot", getattr(kind, "slot", None)) == "vector":
            for option in getattr(kind, "from_backbone", ()):
                entry[option] = entry.get(option) or backbone.vector_width
    return entries


def _fill_num_classes(key, entry, num_classes):
    if entry.get("num_classes") is None:
        if not num_classes:
            raise ConfigError(
                f"conditions.{key}.num_classes is unset and the data set has no "
                "class labels; use one with labels or remove the condition"
            )
        entry["num_classes"] = num_classes
    elif num_classes and num_classes > entry["num_classes"]:
        raise ConfigError(
            f"conditions.{key}.num_classes={entry['num_classes']} but the data set "
            f"has {num_classes} classes; set it to {num_classes}"
        )


def _fill_from_input(key, entry, kind, given):
    """Completes the options that follow from the input that delivers a condition."""
    defaults = {field.name: field.default for field in dataclasses.fields(kind)}
    unset = [
        name
        for name in kind.from_input
        if entry.get(name, defaults[name]) in (None, dataclasses.MISSING)
    ]
    if not unset:
        return
    if given.get("kind") != kind.input_kind:
        raise ConfigError(
            f"conditions.{key}.{unset[0]} is unset: give it, or the input that it "
            f"follows from, data.inputs.{key} of kind {kind.input_kind!r}"
        )
    made = make_inputs({key: given})[key]
    source = getattr(made, "tokenizer", made)
    for name in kind.from_input:
        if entry.get(name) is None:
            entry[name] = getattr(source, name)


def check_ids(
    entries: Mapping[str, Mapping[str, Any]], section: Section | None
) -> None:
    """Checks that encoders know every token id that their inputs may give.

    Args:
      entries: Batch key -> entry of a conditioner, as `fill_conditions` completes it.
      section: Config section `data.inputs`.

    Raises:
      ConfigError: If a vocabulary is too small.
    """
    for key, made in make_inputs(section).items():
        known = entries.get(key, {}).get("vocab_size")
        size = getattr(getattr(made, "tokenizer", made), "vocab_size", None)
        if known is not None and size is not None and known < size:
            raise ConfigError(
                f"conditions.{key}.vocab_size={known} but the ids of data.inputs.{key} "
                f"go up to {size - 1}: set it to {size}, or take the tokenizer that "
                "the encoder was trained with"
            )


def make_model(
    config: ConfigDict, first_stage: nn.Module, num_classes: int | None = None
) -> LatentDiffusion:
    """Builds the modules of a second stage; no weights are drawn.

    Args:
      config: ConfigDict with `data`, `conditions`, `backbone`, `schedule` and `loss`.
      first_stage: Autoencoder module.
      num_classes: Number of classes of the data set, for conditions that leave theirs
        open; None where there are none.

    Returns:
      A LatentDiffusion.

    Raises:
      ConfigError: If a section is wrong or the parts do not fit together.
    """
    prediction_type = _prediction_type(config.schedule)
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
    """Checks the sections of a second stage, as far as no data and no weights decide.

    Args:
      config: ConfigDict with `conditions`, `backbone`, `schedule`, `loss` and `sample`.

    Raises:
      ConfigError: If a section is wrong.
    """
    # How many channels latents have, the first stage decides.
    backbone = make_backbone(config.backbone, out_channels=1)
    side, multiple = config.data.image_size, backbone.size_multiple
    if side % multiple:
        raise ConfigError(
            f"data.image_size={side} is no multiple of {multiple}, which the backbone "
            "takes alone, whatever the first stage divides by"
        )
    check_step(config.data, multiple, "which the backbone divides by")
    prediction_type = _prediction_type(config.schedule)
    schedule = make_noise_schedule(config)
    build(Objective, config.loss, "loss", prediction_type=prediction_type)
    try:
        check_prediction(schedule, prediction_type)
    except ValueError as error:
        raise ConfigError(f"schedule: {error}") from error
    entries = entries_of(config.conditions)
    for key, entry in entries.items():
        check_entry(key, entry)
    _sample_options(config, schedule, entries)


def sample_options(
    config: ConfigDict,
    model: LatentDiffusion,
    given: Mapping[str, Any] | None = None,
    size: tuple[int | None, int | None] = (None, None),
) -> SampleOptions:
    """Reads the `sample` section, with what is given over it.

    A model without conditions is not guided, and another sampler than the section's
    does not inherit its `eta`.

    Args:
      config: ConfigDict with `data` and `sample`.
      model: LatentDiffusion.
      given: Rows of `sample_options.NAMES` -> values; None is the section's.
      size: (height, width) of the images in pixels; None is that of training.

    Returns:
      SampleOptions.

    Raises:
      ConfigError: On an unknown name or a value out of its range.
    """
    entries = model.conditioner.entries
    return _sample_options(config, model.schedule, entries, given, size)


def _sample_options(config, schedule, entries, given=None, size=(None, None)):
    """See `sample_options`; of a model it takes the noise levels and conditions."""
    options = to_dict(config.sample)
    given = {key: value for key, value in (given or {}).items() if value is not None}
    if given.get("sampler", options.get("sampler")) != options.get("sampler"):
        options["eta"] = None
    if not entries:
        options["guidance_scale"] = 1.0
    options |= given
    check_names(options, NAMES, "sample")
    side = config.data.image_size
    size = tuple(side if length is None else length for length in size)
    name = "--guidance_scale" if "guidance_scale" in given else "sample.guidance_scale"
    try:
        made = from_flat(options, size)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"sample: {error}") from error
    check_sampling(made, schedule, entries, name)
    return made


def check_sampling(
    options: SampleOptions,
    schedule: NoiseSchedule,
    entries: Mapping[str, Any],
    name: str = "sample.guidance_scale",
) -> None:
    """Checks options against the noise levels and conditions of a model.

    Levels that are too low to start from pure noise are named in the log.

    Args:
      options: The options.
      schedule: The noise levels.
      entries: Entries of the conditioner by batch key.
      name: What the scale of guidance is called, for messages.

    Raises:
      ConfigError: If the noise levels or the guidance cannot be.
    """
    check_guidance(options.guidance.scale, entries, name)
    steps, spacing = options.num_steps, options.spacing
    try:
        points = make_points(
            schedule, steps, spacing, options.final_level, options.shift
        )
    except ValueError as error:
        raise ConfigError(f"sample: {error}") from error
    if options.strength in (None, 1) and starts_too_low(schedule, points):
        warn_once(
            f"sample.spacing={spacing} starts {steps} steps where the signal is scaled "
            f"by {points.alpha[0]:.2g}, but this schedule (zero_terminal_snr or "
            "rectified_flow) ends in pure noise, from which samples have to start: set "
            'sample.spacing="trailing" (--spacing=trailing where samples are drawn)'
        )


def check_guidance(scale: Any, entries: Mapping[str, Any], name: str) -> None:
    """Checks that a model has the conditions that are guided, and their null inputs.

    Args:
      scale: Number, or dict of batch key -> number, or its pairs.
      entries: Entries of the conditioner by batch key.
      name: What the scale is called, for messages.

    Raises:
      ConfigError: If it lacks one.
    """
    given = isinstance(scale, Mapping | tuple | list)
    scales = dict(scale) if given else dict.fromkeys(entries or [""], scale)
    for key, value in scales.items():
        if value == 1:
            continue
        if entries and key not in entries:
            raise ConfigError(
                f"{name}: this model has no condition '{key}'; it has "
                f"{', '.join(sorted(entries))}"
            )
        if not entries or not entries[key].get("null_class", True):
            raise ConfigError(
                f"{name}={value:g} needs a model that was also trained without the "
                f"condition; this one has none{key and f' for {key}'}: use {name}=1"
            )


def _check_sizes(model, data):
    """Checks that images, first stage and backbone fit together, on shapes alone."""
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
    """Builds the classifier of noisy latents; no weights are drawn.

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
    """Says what weights of a stage mean, also where its config leaves that to defaults.

    Args:
      config: ConfigDict of any stage.

    Returns:
      JSON-like dict by config section, of what shapes do not show.

    Raises:
      ConfigError: If a section is wrong.
    """
    if config.stage == "autoencoder":
        return {"first_stage": identity_of(make_first_stage(config.first_stage))}
    prediction_type = _prediction_type(config.schedule)
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


# What others call rows of PREDICTION_TYPES: diffusers and CompVis.
_OTHER_NAMES = {
    "epsilon": "noise",
    "eps": "noise",
    "sample": "x0",
    "v_prediction": "v",
    "flow_prediction": "velocity",
}


def _prediction_type(section):
    """What the network predicts, of the section `schedule`."""
    name = section.get("prediction_type", "noise")
    if isinstance(name, str) and name in _OTHER_NAMES:
        raise ConfigError(
            f'schedule.prediction_type="{name}" is unknown: it is called '
            f'"{_OTHER_NAMES[name]}" here; choose from {", ".join(PREDICTION_TYPES)}'
        )
    choose(PREDICTION_TYPES, name, "schedule.prediction_type")
    return name


def make_noise_schedule(config: ConfigDict) -> NoiseSchedule:
    """Makes the noise levels that a config describes.

    Args:
      config: ConfigDict with `schedule`.

    Returns:
      A NoiseSchedule.

    Raises:
      ConfigError: If the section is wrong.
    """
    section = to_dict(config.schedule)
    section.pop("prediction_type", None)
    return build(make_schedule, section, "schedule")
