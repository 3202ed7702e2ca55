"""Models of random weights, on pixels: for tests of sampling, without training."""

import dataclasses
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from configs import common
from ldm_jax import latent_diffusion, sampling
from ldm_jax.build import make_model
from ldm_jax.data.inputs import apply_inputs, make_inputs
from ldm_jax.data.shapes.examples import draw_example
from ldm_jax.data.shapes.scenes import CLASS_NAMES
from ldm_jax.data.transforms import transform
from ldm_jax.diffusion.latent_statistics import LatentStatistics
from ldm_jax.images import RGB
from ldm_jax.sampling import RunOptions, Trained, complete
from ldm_jax.sampling.task import Task
from ldm_jax.trained import load_first_stage
from tests.common import random_variables, random_weights

SIZE = 16

# Batch key -> (entry of data.inputs, entry of conditions), of every kind of input.
PARTS = {
    "label": (None, dict(kind="class_label", slot="vector", num_classes=8)),
    "caption": (
        dict(kind="caption", tokenizer="shapes", max_length=12),
        dict(
            kind="text",
            vocab_size=100,
            features=16,
            num_layers=1,
            max_length=12,
            null_ids=(2, 3, 0),
        ),
    ),
    "boxes": (
        dict(kind="layout", vocab_size=65, max_objects=4),
        dict(kind="layout", vocab_size=65, features=16, num_layers=1, max_length=14),
    ),
    "segmentation": (
        dict(kind="segmentation"),
        dict(kind="spatial", num_stages=0, num_classes=9),
    ),
    "depth": (dict(kind="depth"), dict(kind="spatial", num_stages=0)),
    "low_res": (
        dict(kind="low_res", factor=2),
        dict(kind="spatial", num_stages=1, multiplier=2.0),
    ),
    "style": (dict(kind="image"), dict(kind="encoded")),
    "masked_image": (dict(kind="masked_image"), dict(kind="masked_image")),
    "micro": (dict(kind="size_and_crop"), dict(kind="size_and_crop", width=8)),
    "embedding": (dict(kind="feature"), dict(kind="raw", slot="vector", features=64)),
}


def make_bare(count, pixels=RGB):
    """A Trained without a model and a Task: what images are, and how many there are."""
    first_stage = types.SimpleNamespace(image_channels=pixels.count)
    model = types.SimpleNamespace(first_stage=first_stage)
    config = ConfigDict({"data": pixels.record()})
    trained = Trained(model, None, None, config, {}, [], "", "params", "")
    task = Task(count, {}, None, (SIZE, SIZE), False, False, False, None, {}, {})
    return trained, task


def make_trained(*keys, scale=0.2, data_dir=None):
    """Makes a model that is told the PARTS of these keys; at scale 0 weightless."""
    parts = {key: PARTS[key] for key in keys}
    config = common.diffusion(
        data=common.data(name="shapes/32", image_size=SIZE, data_dir=data_dir),
        conditions={key: entry for key, (_, entry) in parts.items()},
        backbone=dict(
            channels=16,
            channel_mult=(1, 2),
            num_res_blocks=1,
            attention_factors=(),
            num_heads=1,
            transformer_depth=1,
            norm_groups=8,
        ),
        schedule=common.schedule(prediction_type="v"),
        sample=common.sample(num_steps=2, guidance_scale=2.0),
    )
    config.data.inputs = {key: make for key, (make, _) in parts.items() if make}
    first = load_first_stage("identity")
    model = make_model(config, first.module, 8)
    inputs = make_inputs(config.data.inputs)
    return Trained(
        model=model,
        params=_random_params(model, inputs, scale) if scale else None,
        frozen={"first_stage": {}, "statistics": LatentStatistics().arrays()},
        config=config,
        inputs=inputs,
        class_names=list(CLASS_NAMES),
        source="random",
        weights="params",
        first_stage="identity",
    )


class _SmallBackbone(nn.Module):
    """Compiles at once; what it says depends on all that it is told."""

    size_multiple = 1

    @nn.compact
    def __call__(self, latents, timesteps, context, concat, vector, train=False):
        del context, concat, train
        told = timesteps[:, None] / 1000
        if vector is not None:
            told = nn.Dense(3)(vector) + told
        return nn.Conv(3, (3, 3))(latents) + told[:, None, None]


def with_small_backbone(trained):
    """The same model with a backbone of one layer."""
    vector = jnp.zeros((1, 64)) if trained.model.conditioner.entries else None
    latents, backbone = jnp.zeros((1, SIZE, SIZE, 3)), _SmallBackbone()
    arguments = latents, jnp.zeros(1), None, None, vector
    drawn = random_variables(backbone, *arguments, scale=0.2)["params"]
    params = trained.params | {"backbone": drawn}
    model = dataclasses.replace(trained.model, backbone=backbone)
    return trained._replace(model=model, params=params)


def _random_params(model, inputs, scale):
    scene = draw_example(0, "train", 0, SIZE) | {"embedding": np.zeros(4, np.float32)}
    rng = np.random.default_rng(0)
    batch = apply_inputs(inputs, transform(scene, SIZE), rng)
    batch = jax.tree.map(lambda x: np.asarray(x)[None], batch)
    return random_weights(latent_diffusion.init(model, None, batch), scale)


def options_of(trained, size=(None, None), **options):
    """RunOptions and SampleOptions from the names of both; what is None is unset."""
    fields = {field.name for field in dataclasses.fields(RunOptions)}
    run_options = RunOptions(**{k: v for k, v in options.items() if k in fields})
    given = {key: value for key, value in options.items() if key not in fields}
    return run_options, complete(trained, given, size, run_options.invert)


def run(trained, outdir, given=None, **options):
    """`sampling.run` with the options by their names."""
    return sampling.run(trained, outdir, given, *options_of(trained, **options))


def write_image(path, array):
    """Writes an array as an image file; returns its path as a string."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(array)).save(path)
    return str(path)


def picture(seed=0, height=SIZE, width=SIZE):
    """A picture of random colours, uint8 [height, width, 3]."""
    shape = (height, width, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
