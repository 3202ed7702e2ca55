"""A trained model during conversion, as described by a workdir."""

import dataclasses
import os
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from ml_collections import ConfigDict

from ldm_jax import latent_diffusion
from ldm_jax.annotations import Shaped
from ldm_jax.build import make_backbone, make_first_stage, make_model
from ldm_jax.convert.bounds import check_layers
from ldm_jax.convert.condition_inputs import inputs_for
from ldm_jax.diffusion.latent_statistics import LatentStatistics
from ldm_jax.errors import ConversionError
from ldm_jax.models.discriminator import PatchDiscriminator
from ldm_jax.models.first_stages import DEFAULT_KIND
from ldm_jax.models.operations.parameters import variable_shapes
from ldm_jax.models.unet import UNet
from ldm_jax.weights.unpickle import Tensor


@dataclasses.dataclass
class Model:
    """The contents of a workdir; `first_stage` is another Model.

    Attributes:
      config: Nested dict, the sections that sampling and the networks need.
      params: Weights by network, as in a training state; {} if there are none.
      ema_params: Their moving average; {} if none was kept.
      stats: Batch statistics of the discriminator.
      step: Training step, at least 1.
      statistics: LatentStatistics of the latents; None in a first stage.
      first_stage: The first stage that is included; None in a first stage, and if it is
        stored elsewhere.
      origin: JSON-serialisable dict of what is needed to write the source again.
      carried: Key of the source -> array, for tensors that our networks do not have.
      files: Path inside the source, with "/" -> bytes, for files beside the networks.
      left_out: Part of the source that is neither read nor kept -> whether images
        differ without it.
    """

    config: dict
    params: dict
    ema_params: dict = dataclasses.field(default_factory=dict)
    stats: dict = dataclasses.field(default_factory=dict)
    step: int = 1
    statistics: LatentStatistics | None = None
    first_stage: Any = None
    origin: dict = dataclasses.field(default_factory=dict)
    carried: dict = dataclasses.field(default_factory=dict)
    files: dict = dataclasses.field(default_factory=dict)
    left_out: dict = dataclasses.field(default_factory=dict)

    @property
    def scaling_factor(self) -> float:
        """The statistics as one scalar factor for all channels.

        Raises:
          ConversionError: If they are per channel, or have a mean.
        """
        shift, scale = self.statistics
        if self.statistics.per_channel or shift:
            raise ConversionError(
                "the latents have a mean or statistics per channel, but this format "
                "has one scale_factor for all channels: convert to diffusers' format, "
                "or train a second stage with first_stage.latent_statistics=scalar"
            )
        return scale

    def describe(self) -> Iterator[str]:
        """Describes the networks.

        Yields:
          One line per network: its name and size.
        """
        for name, tree in self.params.items():
            size = sum(leaf.size for leaf in jax.tree.leaves(tree))
            average = ", with moving average" if name in self.ema_params else ""
            yield f"{name}: {size:,} parameters{average}"


class Options(NamedTuple):
    """Options of a conversion that the source does not contain.

    Attributes:
      config: Path of CompVis's YAML.
      raw: Whether to use the trained weights and leave out the moving average.
      step: Checkpoint of a workdir; the newest by default.
      num_heads: Number of attention heads everywhere.
      head_channels: Channels of a head everywhere.
      prediction_type: What the U-Net predicts.
      image_size: Side of the images.
      verify: Whether to read an export again and compare it; None if it is small.
      only: "first_stage" to convert only the autoencoder of a whole model.
      variant: Variant of the weights files in a folder of diffusers, such as "fp16".
    """

    config: str | os.PathLike | None = None
    raw: bool = False
    step: int | None = None
    num_heads: int | None = None
    head_channels: int | None = None
    prediction_type: str | None = None
    image_size: int | None = None
    verify: bool | None = None
    only: str | None = None
    variant: str | None = None


def autoencoder_config(
    section: Mapping[str, Any],
    image_size: int | None,
    discriminator: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Makes the config of a first stage.

    Args:
      section: Config section `first_stage`.
      image_size: Side of the images; None if unknown.
      discriminator: Config section `discriminator`; None if there is none.

    Returns:
      Dict.
    """
    config = dict(
        stage="autoencoder",
        seed=0,
        data=dict(image_size=image_size),
        first_stage=section,
        train=dict(ema_decay=None),
    )
    return config | ({"discriminator": discriminator} if discriminator else {})


def diffusion_config(
    *,
    image_size: int,
    factor: int,
    conditions: Mapping[str, Any],
    guidance_scale: float | tuple[tuple[str, float], ...] = 1.0,
    **sections: Any,
) -> dict[str, Any]:
    """Makes the config of a second stage.

    Args:
      image_size: Side of the images.
      factor: Downsampling factor of the first stage.
      conditions: Config section.
      guidance_scale: Default scale for the model; 1 is off. Pairs of batch key and
        scale if conditions are guided one after the other.
      **sections: Other sections, such as `backbone` and `schedule`.

    Returns:
      Nested dict.
    """
    # Models whose schedule ends in pure noise must be sampled from there.
    zero = sections.get("schedule", {}).get("zero_terminal_snr", False)
    config = dict(
        data=dict(image_size=image_size, inputs=inputs_for(conditions, factor)),
        conditions=conditions,
        stage="diffusion",
        seed=0,
        first_stage=dict(workdir="", step=None, scaling_factor=None),
        loss={},
        train=dict(ema_decay=None),
        sample=dict(
            sampler="ddim",
            num_steps=50,
            guidance_scale=guidance_scale,
            eta=None,
            spacing="trailing" if zero else "uniform",
        ),
    )
    return config | sections


def first_stage_shapes(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Finds the shapes of a first stage's parameters.

    Args:
      config: Its config.

    Returns:
      Nested dict of ShapeDtypeStructs; {} if it has no parameters.

    Raises:
      ConversionError: If it has more layers than any published network.
    """
    check_layers(config["first_stage"], "first_stage")
    module = make_first_stage(config["first_stage"])
    size = module.downsampling_factor
    images = jax.ShapeDtypeStruct((1, size, size, module.image_channels), jnp.float32)
    return variable_shapes(module, images).get("params", {})


def discriminator_shapes(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Finds the shapes of a discriminator's variables.

    Args:
      config: Config of a first stage, with a section `discriminator`.

    Returns:
      {"params", "batch_stats"}, nested dicts of ShapeDtypeStructs.
    """
    module = PatchDiscriminator(**config["discriminator"])
    channels = config["first_stage"].get("image_channels", 3)
    images = jax.ShapeDtypeStruct((1, 64, 64, channels), jnp.float32)
    return variable_shapes(module, images)


def make_diffusion(
    config: Mapping[str, Any],
    first_stage: Mapping[str, Any] | None = None,
    channels: int = 3,
    num_classes: int | None = None,
) -> latent_diffusion.LatentDiffusion:
    """Builds the modules of a second stage.

    Args:
      config: Its config.
      first_stage: Config of its first stage; None if it is stored elsewhere.
      channels: Channels of the latents, used if `first_stage` is None.
      num_classes: Number of classes of the data set, for conditions that leave it
        unset.

    Returns:
      LatentDiffusion.

    Raises:
      ConfigError: If the config is invalid.
    """
    section = {"kind": "identity", "image_channels": channels}
    if first_stage is not None:
        section = first_stage["first_stage"]
    module = make_first_stage(section)
    return make_model(ConfigDict(config), module, num_classes)


def make_unet(section: Mapping[str, Any]) -> UNet:
    """Builds the U-Net of a config; other formats have no other backbone.

    Args:
      section: Config section `backbone`.

    Returns:
      UNet, with an arbitrary number of output channels.

    Raises:
      ConversionError: If the section is of another kind.
    """
    kind = section.get("kind", "unet")
    if kind != "unet":
        raise ConversionError(
            f"backbone.kind={kind} cannot be written in other formats, which have "
            "U-Nets alone: keep it as a workdir"
        )
    return make_backbone(section, out_channels=1)


def diffusion_shapes(
    config: Mapping[str, Any],
    first_stage: Mapping[str, Any] | None,
    channels: int,
    examples: Mapping[str, Any],
) -> Mapping[str, Any]:
    """Finds the shapes of the parameters that a second stage trains.

    Args:
      config: Its config.
      first_stage: Config of its first stage; None if it is stored elsewhere.
      channels: Channels of the latents.
      examples: Batch key -> array [1, ...] for every condition.

    Returns:
      {"backbone", "conditioner"} and, if learnt, {"logvar"}, of ShapeDtypeStructs.

    Raises:
      ConversionError: If it has more layers than any published network.
    """
    check_layers(config["backbone"], "backbone")
    model = make_diffusion(config, first_stage, channels)
    size = config["data"]["image_size"]
    image_channels = model.first_stage.image_channels
    image = jax.ShapeDtypeStruct((1, size, size, image_channels), jnp.float32)
    return latent_diffusion.init(model, None, {"image": image} | examples)


def full_section(module: nn.Module) -> dict[str, Any]:
    """Lists all fields of a module that determine what it computes.

    Args:
      module: U-Net or first stage.

    Returns:
      Config section, without "kind".
    """
    names = [field.name for field in dataclasses.fields(module)]
    section = {name: getattr(module, name) for name in names}
    free = "parent", "name", "dtype", "remat", "attention_kernel", "out_channels"
    return _without(section, *free)


def _without(section, *keys):
    return {key: value for key, value in section.items() if key not in keys}


def first_stage_row(
    section: Mapping[str, Any], table: Mapping[str, Any], format_name: str
) -> tuple[str, Any]:
    """Looks up the row of another format for a kind of first stage.

    Args:
      section: Config section of a first stage.
      table: Kind -> row of the format.
      format_name: Name of the format, for the message.

    Returns:
      (kind, its row of the table).

    Raises:
      ConversionError: If the format has no such first stage.
    """
    kind = section.get("kind", DEFAULT_KIND)
    if kind not in table:
        raise ConversionError(
            f'first_stage.kind="{kind}" cannot be written for {format_name}, which has '
            f"only {', '.join(table)}: keep it as a workdir"
        )
    return kind, table[kind]


def require_nearest(section: Mapping[str, Any]) -> None:
    """Checks that the quantizer takes the nearest code, as models of other formats do.

    Args:
      section: Config section of a first stage.

    Raises:
      ConversionError: If it does not.
    """
    quantizer = section.get("quantizer", "nearest")
    if quantizer != "nearest":
        raise ConversionError(
            f"first_stage.quantizer={quantizer} cannot be written in other formats, "
            "which take the nearest code: only a first stage trained with "
            "quantizer=nearest can be"
        )


def cast(
    array: Shaped[np.ndarray, "..."] | Tensor, dtype: npt.DTypeLike
) -> Shaped[np.ndarray, "..."] | Tensor:
    """Casts an array lazily.

    Args:
      array: Array of any shape, or one that is read lazily.
      dtype: The new type.

    Returns:
      The array itself if it has that type, else one that is cast when it is used.
    """
    if array.dtype == dtype:
        return array
    return Tensor(array.shape, dtype, lambda: np.asarray(array).astype(dtype))
