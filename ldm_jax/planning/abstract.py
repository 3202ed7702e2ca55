"""The stage that a config trains, as shapes only: no weights, no data, no device.

Flags and the config replace what a run reads from files: the first stage is that of
another config (or of a workdir, of which only the config is read), and the number of
classes is a flag.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, Mesh
from ml_collections import ConfigDict

from ldm_jax import checkpoint, sharding
from ldm_jax.build import (
    make_classifier,
    make_first_stage,
    make_model,
    make_noise_schedule,
    with_image_channels,
)
from ldm_jax.cli import load_config
from ldm_jax.config import build, choose
from ldm_jax.diffusion.latent_statistics import LatentStatistics
from ldm_jax.errors import ConfigError
from ldm_jax.images import pixels_of, to_float
from ldm_jax.latent_classifier import LatentClassifier
from ldm_jax.models.first_stages import row_of
from ldm_jax.models.lpips import LPIPS
from ldm_jax.models.operations.parameters import variable_shapes
from ldm_jax.planning.examples import as_latents, image_shapes, make_example
from ldm_jax.seeds import make_key
from ldm_jax.training import autoencoder, classifier, diffusion
from ldm_jax.training.latents import given_statistics
from ldm_jax.training.loss_options import LossOptions
from ldm_jax.training.start.opening import CHECKS
from ldm_jax.training.step import Stage


class Given(NamedTuple):
    """Facts that a run would read from files, which planning does not read.

    Attributes:
      first_stage: Name of the config of the first stage, or its workdir; None for the
        workdir in the config.
      num_classes: Number of classes of the data; None if the config has it.
      features: Batch key of an input -> its shape, for inputs whose shape only the data
        have.
    """

    first_stage: str | None = None
    num_classes: int | None = None
    features: Mapping[str, tuple[int, ...]] = {}


class Planned(NamedTuple):
    """A stage whose arrays are shapes.

    Attributes:
      config: ConfigDict.
      model: LatentDiffusion, LatentClassifier or autoencoder.
      stage: Stage; its `frozen` are shapes.
      state: TrainState of shapes.
      examples: Batch of one for each shape of images, that with the most pixels first.
    """

    config: ConfigDict
    model: Any
    stage: Stage
    state: Any
    examples: list[dict[str, np.ndarray]]

    def batch(self, rows: int, index: int = 0) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns the shapes of a batch.

        Args:
          rows: Number of rows of the batch.
          index: Index of the shape of images in `examples`.

        Returns:
          Batch key -> shape and type, as on a device.
        """
        example = self.examples[index]
        return {key: _row(value, rows) for key, value in example.items()}


def _row(value, rows):
    dtype = jax.dtypes.canonicalize_dtype(value.dtype)
    return jax.ShapeDtypeStruct((rows, *value.shape[1:]), dtype)


def make_planned(config: ConfigDict, given: Given) -> Planned:
    """Makes the stage that a config trains, as shapes.

    Args:
      config: ConfigDict, with checked values.
      given: Given.

    Returns:
      Planned.

    Raises:
      ConfigError: If the config is wrong, or something that it leaves open is not
        given.
    """
    config = with_image_channels(config)
    choose(CHECKS, config.stage, "stage")(config)
    model, stage, examples = _MAKE[config.stage](config, given)
    state = jax.eval_shape(stage.init, make_key(config.seed))
    return Planned(config, model, stage, state, examples)


def _autoencoder(config, given):
    model = make_first_stage(config.first_stage)
    examples = _examples(config, model, given)
    options = build(LossOptions, config.loss, "loss")
    weight = options.perceptual_weight
    if weight is None:
        weight = 1.0 if options.lpips_weights else 0.0
    options = build(LossOptions, dict(config.loss, perceptual_weight=weight), "loss")
    frozen = {}
    if weight:
        images = jnp.zeros((1, 64, 64, model.image_channels))
        lpips = LPIPS(dtype=model.dtype)
        frozen["lpips"] = variable_shapes(lpips, images, images)["params"]
    stage = autoencoder.make_steps(config, model, options, frozen, examples[-1])
    return model, stage, examples


def _diffusion(config, given):
    first = _first_stage(config, given)
    model = _with_classes(make_model, config, first, given.num_classes)
    examples, frozen = _on_latents(config, first, given, model.conditioner)
    return model, diffusion.make_steps(config, model, frozen, examples[-1]), examples


def _classifier(config, given):
    first = _first_stage(config, given)
    network = _with_classes(make_classifier, config, given.num_classes)
    model = LatentClassifier(network, make_noise_schedule(config), first)
    examples, frozen = _on_latents(config, first, given)
    return model, classifier.make_steps(config, model, frozen, examples[-1]), examples


_MAKE = {
    "autoencoder": _autoencoder,
    "diffusion": _diffusion,
    "classifier": _classifier,
}


def _with_classes(make, *arguments):
    """Calls `make`, whose last argument is the number of classes of the data."""
    try:
        return make(*arguments)
    except ConfigError as error:
        if arguments[-1] is None and "class" in str(error):
            raise ConfigError(
                "the data have the number of classes, which are not read here: give "
                "it, as --num_classes=1000"
            ) from error
        raise


def _first_stage(config, given):
    """The first-stage module: that of a config, of a workdir, or the identity."""
    name = given.first_stage or config.first_stage.workdir
    if name == "identity":
        channels = pixels_of(config.data).count
        return make_first_stage({"kind": "identity", "image_channels": channels})
    if not name:
        raise ConfigError(
            "which first stage the latents are of is not said: give the config that "
            "trains it, as --first_stage=autoencoder_kl:f8, or its workdir"
        )
    if checkpoint.absolute(name).is_dir():
        meta = checkpoint.read_meta(checkpoint.checkpoint_folder(name))
        found = ConfigDict(meta["config"])
    else:
        found = load_config(name)
    if found.get("stage") != "autoencoder":
        raise ConfigError(
            f"--first_stage={name} is a config of the stage {found.get('stage')!r}: "
            "give that of an autoencoder"
        )
    return make_first_stage(found.first_stage)


def _examples(config, module, given):
    sizes, channels = image_shapes(config.data), module.image_channels
    return [make_example(config, size, channels, given.features) for size in sizes]


def _on_latents(config, first, given, conditioner=None):
    """Examples of a stage on latents, and the frozen weights that it needs."""
    examples = _examples(config, first, given)
    image = to_float(examples[-1]["image"])
    params = variable_shapes(first, image).get("params", {})
    if config.data.source == "latents":
        encodes = conditioner is not None and conditioner.encodes_images
        unused = () if encodes else row_of(first).encoder_parts
        examples = [
            as_latents(example, moments_of(first, params, example["image"]))
            for example in examples
        ]
        params = {name: tree for name, tree in params.items() if name not in unused}
    statistics = given_statistics(config.first_stage, first.latent_channels)
    if statistics is None and config.first_stage.latent_statistics == "per_channel":
        ones = (1.0,) * first.latent_channels
        statistics = LatentStatistics.of(ones, ones)
    arrays = (statistics or LatentStatistics()).arrays()
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), arrays)
    return examples, {"first_stage": params, "statistics": shapes}


def moments_of(module: nn.Module, params: Any, images: Any) -> tuple[Any, Any]:
    """Shapes of a first stage's posterior moments for images.

    Args:
      module: Autoencoder.
      params: Its weights; shapes suffice.
      images: [B, H, W, C]; shapes suffice.

    Returns:
      Shapes of (mean, standard deviation), the latter None if there is none.
    """

    def moments(params, images):
        posterior = module.apply({"params": params}, to_float(images), method="encode")
        return posterior.moments()

    return jax.eval_shape(moments, params, images)


def shardings_of(planned: Planned, mesh: Mesh | AbstractMesh) -> tuple[Any, Any]:
    """Returns how the arrays of a run are sharded.

    Args:
      planned: Planned.
      mesh: Mesh or AbstractMesh.

    Returns:
      (shardings of the state, shardings of the frozen weights).
    """
    overrides = planned.config.train.sharding_overrides
    state = sharding.tree_shardings(planned.state, mesh, overrides)
    return state, sharding.tree_shardings(planned.stage.frozen, mesh)
