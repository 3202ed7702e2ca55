"""Images of a stage for metrics of sets: samples, or a first stage's reconstructions.

They are made by functions of (options, mesh, data) -> function of (state, frozen) ->
iterator of Made; the weights are those of the moving average, if there is one.
"""

import contextlib
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from ldm_jax import sharding
from ldm_jax.annotations import Array, Bool, UInt8
from ldm_jax.diffusion.sample_options import SampleOptions
from ldm_jax.errors import ConfigError
from ldm_jax.eval_samples import (
    condition_batches,
    make_draw,
    needs_examples,
)
from ldm_jax.images import RGB, Pixels, to_float, to_uint8
from ldm_jax.latent_diffusion import LatentDiffusion


class Made(NamedTuple):
    """A batch of images, global arrays.

    Attributes:
      images: uint8 [B, H, W, 3].
      mask: Which of them count, bool [B].
      finite: Whether all values of an image are finite, bool [B], on every device.
    """

    images: UInt8[Array, "batch h w 3"]
    mask: Bool[Array, " batch"]
    finite: Bool[Array, " batch"]


def sampled(
    model: LatentDiffusion, sampling: SampleOptions, seed: int, pixels: Pixels = RGB
) -> Callable:
    """Makes `make_images` of a second stage: samples.

    Their conditions are planned labels, or those of held-out examples.

    Args:
      model: LatentDiffusion.
      sampling: How they are drawn.
      seed: Seed of the run.
      pixels: Pixel format of the images; they are evaluated as RGB.

    Returns:
      Function of (options, mesh, data), see the module.
    """

    def make(options, mesh, data):
        """Prepares sampling; raises ConfigError if there are too few conditions."""
        draw = make_draw(model, sampling, mesh, seed, pixels)
        if needs_examples(model):
            _require_examples(options, data)

        def images(state, frozen):
            """Yields a Made for each batch of samples, drawn with the EMA weights."""
            params = state.ema_params or state.params
            examples = None
            with contextlib.ExitStack() as stack:
                if needs_examples(model):
                    examples = data.held_out_batches(batch_size=options.batch_size)
                    stack.enter_context(contextlib.closing(examples))
                for batch in condition_batches(
                    model,
                    mesh,
                    options.num_samples,
                    options.batch_size,
                    label_mode=options.label_mode,
                    seed=seed,
                    examples=examples,
                ):
                    drawn, finite = draw(params, frozen, batch.inputs, batch.index)
                    yield Made(drawn, batch.mask, finite)

        return images

    return make


def _require_examples(options, data):
    found = data.num_held_out
    if found < options.num_samples:
        fewer = f"use eval.num_samples={found}, or " if found > 1 else ""
        raise ConfigError(
            f"eval.num_samples={options.num_samples}, but samples have the conditions "
            f"of the held-out examples, and there are {found} of those: {fewer}hold "
            "more out (data.eval_split)"
        )


def reconstructed(reconstruct: Callable, pixels: Pixels = RGB) -> Callable:
    """Makes `make_images` of a first stage: reconstructions of held-out images.

    Args:
      reconstruct: (state, images float32 [B, H, W, C]) -> images, in [-1, 1].
      pixels: Pixel format of the images; they are evaluated as RGB.

    Returns:
      Function of (options, mesh, data), see the module.
    """

    def make(options, mesh, data):
        """Prepares reconstruction; raises ConfigError if no images are held out."""
        if not data.num_held_out:
            raise ConfigError(
                "eval.every measures reconstructions of held-out images, and none are "
                "held out: set data.eval_split"
            )

        def decode(state, images):
            decoded = reconstruct(state, to_float(images))
            shown = to_uint8(pixels.to_rgb(decoded))
            return shown, jnp.isfinite(decoded).all(axis=(1, 2, 3))

        shardings = sharding.batch_sharding(mesh), sharding.replicated(mesh)
        decode = sharding.jit(decode, mesh, out_shardings=shardings)

        def images(state, frozen):
            """Yields a Made for each batch of reconstructions."""
            del frozen
            batches = data.images_alone(
                True, options.num_samples, batch_size=options.batch_size
            )
            with contextlib.closing(batches):
                for batch in batches:
                    decoded, finite = decode(state, batch["image"])
                    yield Made(decoded, batch["mask"], finite)

        return images

    return make
