"""The compiled program that draws a batch of samples."""

import dataclasses
import numbers
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ldm_jax import generate, latent_diffusion, sharding
from ldm_jax.annotations import Array, Bool, Int, Shaped
from ldm_jax.diffusion import solve
from ldm_jax.diffusion.sample_options import SampleOptions
from ldm_jax.errors import ConfigError
from ldm_jax.generate import Given, invert_latents, known_latents_mask, slerp
from ldm_jax.sampling.gradient_guidance import make_gradient_guidance
from ldm_jax.sampling.task import Task
from ldm_jax.seeds import fold_in
from ldm_jax.trained import Trained


def put_weights(trained: Trained, mesh: Mesh) -> dict[str, Any]:
    """Puts all weights that sampling needs on the devices.

    Args:
      trained: A Trained.
      mesh: Mesh over the devices of this process.

    Returns:
      Dict of global arrays.
    """
    weights = {"params": trained.params, "frozen": trained.frozen}
    if trained.classifier is not None:
        weights["classifier"] = trained.classifier.params
    if trained.lpips is not None:
        weights["lpips"] = trained.lpips
    return sharding.put_tree(weights, sharding.tree_shardings(weights, mesh))


def without_scale(options: SampleOptions) -> tuple[SampleOptions, float | None]:
    """Separates the guidance scale from options, so that one program serves all scales.

    Sampling without guidance costs half as much, and has a program of its own.

    Args:
      options: SampleOptions.

    Returns:
      (options, scale): options that are equal for all scales, and the scale; unchanged
      options and None if there is no guidance, or several scales.
    """
    scale = options.guidance.scale
    if not options.guidance.acts or not isinstance(scale, numbers.Real):
        return options, None
    guidance = dataclasses.replace(options.guidance, scale=0.0)
    return dataclasses.replace(options, guidance=guidance), float(scale)


def make_draw(
    trained: Trained,
    task: Task,
    options: SampleOptions,
    mesh: Mesh,
    latents: bool = False,
) -> Callable:
    """Makes the function that draws samples; see `conditions.make_batch` for batches.

    Args:
      trained: A Trained.
      task: A Task.
      options: SampleOptions.
      mesh: Mesh that batches are split over.
      latents: Whether to return latents, without decoding them.

    Returns:
      Jitted function of the weights of `put_weights`, a batch on the devices, the key
      of the seed and a guidance scale that replaces that of the options, or None ->
      (images [B, H, W, C] in the type of a batch, or latents, float32 [B, h, w, c]; and
      whether they were finite, bool [B]), for `fetch`.
    """
    # Weights are arguments of the program: it must hold none as constants.
    trained = trained._replace(params=None, frozen=None)
    model = trained.model
    factor = model.first_stage.downsampling_factor
    fixed = dataclasses.replace(options, size=task.size)
    sample = generate.sample_latents_of_images if latents else generate.sample_images

    def draw(weights, batch, key, scale):
        """Draws a batch of samples; see Returns above."""
        frozen, options = weights["frozen"], fixed
        if scale is not None:
            guidance = dataclasses.replace(options.guidance, scale=scale)
            options = dataclasses.replace(options, guidance=guidance)
        codec = generate.make_codec(model, frozen, options.decode_tile)
        given = Given(negative=batch.get("negative"))
        if task.starts or task.inpaints:
            given = given._replace(known=batch["images"])
        if task.inpaints:
            given = given._replace(mask=known_latents_mask(batch["mask"], factor))
        if task.invert:
            noise = _inverted(model, weights, codec, batch.get("ends", batch), options)
            given = given._replace(noise=noise)
        elif task.path:
            noise_rngs, _ = generate.split_rngs(fold_in(key, batch["ends"]["index"]))
            shape = latent_diffusion.shape_of_latents(model, task.size)
            given = given._replace(noise=solve.normal(noise_rngs, shape))
        if task.path:
            given = given._replace(noise=_between(given.noise, batch["fraction"]))
        images = sample(
            model,
            weights["params"],
            frozen,
            batch["inputs"],
            fold_in(key, batch["index"]),
            options,
            given,
            make_gradient_guidance(trained, weights, batch, task.scales, codec.decode),
        )
        finite = jnp.isfinite(images).all(axis=(1, 2, 3))
        if latents:
            return images, finite
        images = trained.pixels.quantise(images)
        if "mask" in batch:
            # Known pixels stay bit-identical.
            images = jnp.where(batch["mask"], images, batch["images"])
        return images, finite

    return sharding.jit(draw, mesh)


def fetch(
    drawn: tuple[Shaped[Array, "size height width channels"], Bool[Array, " size"]],
    indices: Sequence[int] | Int[np.ndarray, " count"],
) -> Shaped[np.ndarray, "count height width channels"]:
    """Fetches drawn samples to the host.

    Args:
      drawn: Images and whether they are finite, as returned by `draw` of `make_draw`.
      indices: Numbers of the samples in the first rows; other rows are padding.

    Returns:
      Images [len(indices), H, W, C] in the type of a batch, or latents, float32.

    Raises:
      ConfigError: If a sample is not finite.
    """
    images, finite = (np.asarray(array)[: len(indices)] for array in drawn)
    if not finite.all():
        raise ConfigError(
            f"sample {indices[np.argmin(finite)]} is not finite: the weights are "
            "damaged, or the options carry it away; look at the run's losses, or take "
            "other options"
        )
    return images


def _inverted(model, weights, codec, batch, options):
    """The noise found by DDIM inversion of the images of a batch, [B, h, w, c]."""
    inputs = model.conditioner.encode(batch["inputs"], codec.encode)
    known = codec.encode(batch["images"])
    return invert_latents(model, weights["params"], inputs, known, options)


def _between(noise, fraction):
    """Interpolates noise between alternating ends, [2 B, h, w, c] to [B, h, w, c]."""
    ends = noise.reshape(-1, 2, *noise.shape[1:])
    return slerp(ends[:, 0], ends[:, 1], fraction)
