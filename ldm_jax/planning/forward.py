"""FLOPs of each network, of the forward pass and of training, for one image.

They are those of the model as published: recomputation to save memory does not count,
and a convolution after upsampling counts as one of the upsampled map, although
`models.layers.upsample_conv` computes it with 4/9 of the multiplications.  Utilisation
of the peak ("MFU") is computed from this count.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ldm_jax import latent_diffusion
from ldm_jax.config import build
from ldm_jax.flops import count_flops
from ldm_jax.images import to_float
from ldm_jax.models.attention import Attention
from ldm_jax.models.discriminator import PatchDiscriminator
from ldm_jax.models.layers import Upsample
from ldm_jax.models.lpips import LPIPS
from ldm_jax.models.operations.parameters import variable_shapes
from ldm_jax.planning.abstract import Planned
from ldm_jax.sharding import path_name
from ldm_jax.training.freeze import freeze_paths, is_frozen
from ldm_jax.training.start.pretrained_towers import frozen_paths


@dataclasses.dataclass(frozen=True)
class Network:
    """FLOPs of a network, for one image.

    Attributes:
      forward: Floating-point operations of a forward pass.
      passes: Cost of a training step in forward passes: 3 if it is trained, as the
        gradients of weights and of activations each cost as much as the pass; 1 if it
        is frozen.
      parameters: Number of its parameters.
      trained: Number of its trained parameters.
    """

    forward: float
    passes: float
    parameters: int
    trained: int

    @property
    def training(self) -> float:
        """Floating-point operations of a training step for one image."""
        return self.forward * self.passes


def networks(planned: Planned) -> dict[str, Network]:
    """Counts the FLOPs of all networks of a stage.

    Args:
      planned: Planned.

    Returns:
      Name -> Network, for one image of the largest shape. A stage on latents has "first
      stage, encoding" if it has a first stage with weights; it costs nothing if the
      data are latents and no input is encoded.
    """
    return _COUNT[planned.config.stage](planned)


def encoding_flops(planned: Planned) -> float:
    """Counts the FLOPs of encoding an image in each step of a stage on latents.

    Args:
      planned: Planned of a stage on latents.

    Returns:
      Floating-point operations for one image of the largest shape.
    """
    first = planned.model.first_stage
    shape = latent_diffusion.latent_shape_in(planned.model, planned.examples[0])
    sides = (side * first.downsampling_factor for side in shape[:2])
    images = jax.ShapeDtypeStruct((1, *sides, first.image_channels), jnp.float32)
    params = variable_shapes(first, images).get("params", {})
    return _encode(first, params, images)


def nominal_flops(function: Callable, *arguments: Any) -> float:
    """Counts the FLOPs of a pass of the published networks, of which ours save some.

    Saved are multiplications in convolutions of upsampled maps, and queries, keys and
    scores of attention to a single token.

    Args:
      function: Pure function, whose modules are applied once.
      *arguments: Its arguments, arrays or shapes.

    Returns:
      Floating-point operations.
    """
    spared = []

    def note(apply, args, kwargs, context):
        if context.method_name == "__call__":
            count = _SPARED.get(type(context.module), lambda *_: 0)
            spared.append(count(context.module, *args))
        return apply(*args, **kwargs)

    with nn.intercept_methods(note):
        jaxpr = jax.make_jaxpr(function)(*arguments)
    return count_flops(jaxpr) + sum(spared)


def _of_upsample(module, x):
    batch, height, width, channels = x.shape
    # Of the 9 products per channel for each of the four pixels, ours computes 4.
    pixels = 4 * batch * height * width
    return module.with_conv * 2 * pixels * channels**2 * (9 - 4)


def _of_attention(module, x, context=None, mask=None):
    del mask
    context = x if context is None else context
    if context.shape[1] > 1:
        return 0
    batch, length, channels = x.shape
    inner = module.num_heads * module.head_channels
    width = module.out_channels or channels
    # Saved for each attending token: its query, its score, the value times its weight,
    # and the output projection, which ours computes for only one of them; and the key.
    rows = length * (channels + 2) * inner + (length - 1) * inner * width
    return 2 * batch * (rows + context.shape[2] * inner)


_SPARED = {Upsample: _of_upsample, Attention: _of_attention}


def _encode(module, params, images):
    def encode(params, images):
        return module.apply(
            {"params": params}, to_float(images), method="encode"
        ).mode()

    return nominal_flops(encode, params, images)


def _trained(planned, name, params, more=()):
    """(number of parameters, number of trained ones) of a network."""
    freeze = (*freeze_paths(planned.config), *more)
    sizes = [
        (leaf.size, is_frozen(path_name(path), freeze))
        for path, leaf in jax.tree_util.tree_leaves_with_path({name: params})
    ]
    return sum(size for size, _ in sizes), sum(size for size, held in sizes if not held)


def _network(planned, name, params, forward, more=()):
    count, trained = _trained(planned, name, params, more)
    passes = 1 + 2 * trained / count if count else 1
    return Network(forward, passes, count, trained)


def _diffusion(planned):
    model, params = planned.model, planned.state.params
    batch, frozen = planned.batch(1), planned.stage.frozen
    shape = latent_diffusion.latent_shape_in(model, batch)
    latents = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    encode = lambda frozen, batch: latent_diffusion.encode_inputs(model, frozen, batch)  # noqa: E731
    condition = lambda params, inputs: latent_diffusion.condition(model, params, inputs)  # noqa: E731
    inputs = jax.eval_shape(encode, frozen, batch)
    conditioning = jax.eval_shape(condition, params, inputs)

    def denoise(params, latents, conditioning):
        timesteps = jnp.zeros(1, jnp.int32)
        return latent_diffusion.apply_backbone(
            model, params, latents, timesteps, conditioning
        )

    forward = nominal_flops(denoise, params, latents, conditioning)
    found = {"backbone": _network(planned, "backbone", params["backbone"], forward)}
    if params["conditioner"]:
        forward = nominal_flops(condition, params, inputs)
        found["conditioner"] = _network(
            planned,
            "conditioner",
            params["conditioner"],
            forward,
            frozen_paths(model.conditioner),
        )
    of_inputs = nominal_flops(encode, frozen, batch)
    return found | _encoding(planned, of_inputs)


def _encoding(planned, of_inputs=0.0):
    """The frozen first stage, as far as a training step uses it."""
    forward = of_inputs
    if "image" in planned.examples[0]:
        forward += encoding_flops(planned)
    params = jax.tree.leaves(planned.stage.frozen["first_stage"])
    count = sum(leaf.size for leaf in params)
    return {"first stage, encoding": Network(forward, 1, count, 0)} if count else {}


def _classifier(planned):
    model, params = planned.model, planned.state.params
    shape = latent_diffusion.latent_shape_in(model, planned.examples[0])
    latents = jax.ShapeDtypeStruct((1, *shape), jnp.float32)

    def classify(params, latents):
        timesteps = jnp.zeros(1, jnp.int32)
        return model.classifier.apply({"params": params}, latents, timesteps)

    forward = nominal_flops(classify, params["classifier"], latents)
    found = _network(planned, "classifier", params["classifier"], forward)
    return {"classifier": found} | _encoding(planned)


def _autoencoder(planned):
    model, state = planned.model, planned.state
    images = planned.batch(1)["image"]
    images = jax.ShapeDtypeStruct(images.shape, jnp.float32)
    params = state.params["autoencoder"]
    latents = jax.eval_shape(
        lambda params, images: model.apply(
            {"params": params}, images, method="encode"
        ).mode(),
        params,
        images,
    )

    def decode(params, latents):
        return model.apply({"params": params}, latents, method="decode")

    forward = _encode(model, params, images) + nominal_flops(decode, params, latents)
    found = {"autoencoder": _network(planned, "autoencoder", params, forward)}
    critic = build(PatchDiscriminator, planned.config.discriminator, "discriminator")
    variables = {"params": state.params["discriminator"]}
    variables["batch_stats"] = state.stats.get("discriminator", {})
    forward = nominal_flops(lambda v, x: critic.apply(v, x), variables, images)
    count, trained = _trained(planned, "discriminator", state.params["discriminator"])
    # For the autoencoder a pass of the reconstructions and its gradient by them; then,
    # for the discriminator, passes of images and reconstructions with their gradients.
    passes = 2 + (6 if trained else 2)
    found["discriminator"] = Network(forward, passes, count, trained)
    if "lpips" in planned.stage.frozen:
        params, metric = planned.stage.frozen["lpips"], LPIPS(dtype=model.dtype)
        forward = nominal_flops(
            lambda p, x: metric.apply({"params": p}, x, x), params, images
        )
        count = sum(leaf.size for leaf in jax.tree.leaves(params))
        # `forward` counts the passes of both images; the gradient is by one of them.
        found["lpips"] = Network(forward, 1.5, count, 0)
    return found


_COUNT = {
    "autoencoder": _autoencoder,
    "diffusion": _diffusion,
    "classifier": _classifier,
}
