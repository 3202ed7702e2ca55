"""A trained model on its way from one format to another, in our terms."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ldm_jax import latent_diffusion
from ldm_jax.convert.files import ConversionError
from ldm_jax.convert.inputs import inputs_for
from ldm_jax.convert.unpickle import Tensor
from ldm_jax.models.discriminator import PatchDiscriminator
from ldm_jax.training.autoencoder import make_first_stage
from ldm_jax.training.diffusion import make_model


@dataclasses.dataclass
class Model:
    """What a workdir holds; `first_stage` is another of these.

    Attributes:
      config: Nested dict, the sections that sampling and the networks need.
      params: Weights by network, as a training state has them; {} if there are none.
      ema_params: Their moving average, {} where none was kept.
      stats: Batch statistics of the discriminator.
      step: Training step, at least 1.
      scaling_factor: Of the latents; None in a first stage.
      first_stage: The first stage that comes along; None in a first stage, and where it
        lies elsewhere.
      origin: JSON-serialisable dict of what it takes to write the file as it was read.
      carried: Key of theirs -> array, for what our networks have no place for.
    """

    config: dict
    params: dict
    ema_params: dict = dataclasses.field(default_factory=dict)
    stats: dict = dataclasses.field(default_factory=dict)
    step: int = 1
    scaling_factor: float | None = None
    first_stage: Any = None
    origin: dict = dataclasses.field(default_factory=dict)
    carried: dict = dataclasses.field(default_factory=dict)

    def describe(self):
        """Yields one line per network: its name and size."""
        for name, tree in self.params.items():
            size = sum(leaf.size for leaf in jax.tree.leaves(tree))
            average = ", with moving average" if name in self.ema_params else ""
            yield f"{name}: {size:,} parameters{average}"


def autoencoder_config(section, image_size, discriminator=None):
    """The config of a first stage; `discriminator` is its section, if there is one."""
    config = dict(
        stage="autoencoder",
        seed=0,
        data=dict(image_size=image_size),
        first_stage=section,
        train=dict(ema_decay=None),
    )
    return config | ({"discriminator": discriminator} if discriminator else {})


def diffusion_config(*, image_size, factor, conditions, guidance_scale=1.0, **sections):
    """The config of a second stage.

    Args:
      image_size: Side of the images.
      factor: Downsampling factor of the first stage.
      conditions: Config section.
      guidance_scale: What is usual for the model; 1 is off.
      **sections: `unet`, `schedule` and the like.

    Returns:
      Dict.
    """
    # A model that ends in pure noise is sampled from there.
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


def first_stage_shapes(config):
    """Shapes of the parameters of the autoencoder that a config describes."""
    module = make_first_stage(config["first_stage"])
    size = module.downsampling_factor
    images = jax.ShapeDtypeStruct((1, size, size, module.image_channels), jnp.float32)
    variables = jax.eval_shape(module.init, jax.random.key(0), images)
    return variables.get("params", {})


def discriminator_shapes(config):
    """Shapes of {"params", "batch_stats"} of the discriminator in a config."""
    module = PatchDiscriminator(**config["discriminator"])
    channels = config["first_stage"].get("image_channels", 3)
    images = jax.ShapeDtypeStruct((1, 64, 64, channels), jnp.float32)
    return jax.eval_shape(module.init, jax.random.key(0), images)


def make_diffusion(config, first_stage=None, channels=3, num_classes=None):
    """Builds the modules of a second stage.

    Args:
      config: Its config.
      first_stage: Config of its first stage; None where it lies elsewhere.
      channels: Channels of the latents, where it does.
      num_classes: Of the data set, for conditions that leave theirs open.

    Returns:
      LatentDiffusion.

    Raises:
      ConfigError: If the config cannot work.
    """
    section = {"kind": "identity", "image_channels": channels}
    if first_stage is not None:
        section = first_stage["first_stage"]
    module = make_first_stage(section)
    return make_model(ConfigDict(config), module, num_classes)


def diffusion_shapes(config, first_stage, channels, examples):
    """Shapes of the parameters that a second stage trains.

    Args:
      config: Its config.
      first_stage: Config of its first stage; None where it lies elsewhere.
      channels: Channels of the latents.
      examples: Batch key -> array [1, ...] for every condition.

    Returns:
      {"unet", "conditioner"} and, if learnt, {"logvar"}, of ShapeDtypeStructs.
    """
    model = make_diffusion(config, first_stage, channels)
    size = config["data"]["image_size"]
    image_channels = model.first_stage.image_channels
    image = jax.ShapeDtypeStruct((1, size, size, image_channels), jnp.float32)
    return jax.eval_shape(
        lambda rng, batch: latent_diffusion.init(model, rng, batch),
        jax.random.key(0),
        {"image": image} | examples,
    )


def full_section(module):
    """All fields of a module that say what it computes, as a config section."""
    names = [field.name for field in dataclasses.fields(module)]
    section = {name: getattr(module, name) for name in names}
    return _without(section, "parent", "name", "dtype", "remat", "out_channels")


def _without(section, *keys):
    return {key: value for key, value in section.items() if key not in keys}


def require_nearest(section):
    """Raises ConversionError for a codebook that other formats would look up wrongly.

    Args:
      section: Config section of a first stage.
    """
    quantizer = section.get("quantizer", "nearest")
    if quantizer != "nearest":
        raise ConversionError(
            f"first_stage.quantizer={quantizer} cannot be said in other formats, which "
            "take the nearest code: only a first stage trained with "
            "quantizer=nearest can be written"
        )


def cast(array, dtype):
    """An array that takes on another type when it is used."""
    if array.dtype == dtype:
        return array
    return Tensor(array.shape, dtype, lambda: np.asarray(array).astype(dtype))
