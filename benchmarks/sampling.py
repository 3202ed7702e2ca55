"""Guided sampling compared with diffusers: from noise to images, in one process.

    python benchmarks/sampling.py [--size small] [--batches 1,2,4] [--rounds 3]

Fifty DDIM steps with guidance, then decoding, of the same networks with the same
weights, noise and tokens. Ours is one compiled program; theirs is the loop of a
diffusers pipeline: the U-Net eagerly, channels last, both halves of the guidance in one
batch, DDIMScheduler, decoder. The first images are compared. A ratio is our median time
over alternating rounds divided by the other side's: below 1, ours is faster. "First" is
the time of the first call beyond that of a later one: tracing and compiling, without
JAX's persistent cache. Needs the extra `parity`.

Two optional sides: `--compile` is the loop with `torch.compile` of U-Net and decoder;
`--every_step` is our program with keys and values of the tokens recomputed at every
step, as if the compiler did not hoist them out of the loop.
"""

import argparse
import dataclasses
import time
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
from diffusers import DDIMScheduler
from peers import (
    CONTEXT_WIDTH,
    autoencoder_modules,
    load,
    measure,
    random_params,
    set_up,
    to_torch,
    unet_modules,
)

from ldm_jax import generate, sharding
from ldm_jax.conditioners import make_conditioner
from ldm_jax.convert.diffusers import names as layout
from ldm_jax.diffusion.latent_statistics import LatentStatistics
from ldm_jax.diffusion.schedule import make_schedule
from ldm_jax.diffusion.solve import normal
from ldm_jax.latent_diffusion import LatentDiffusion
from ldm_jax.models.unet import UNet

SIZES = {  # size: (height of the latents, channels of the U-Net, of the autoencoder)
    "tiny": (8, 32, 32),
    "small": (16, 128, 64),
    "medium": (32, 128, 128),
}
TOKENS, STEPS, SCALE, SCALING_FACTOR = 77, 50, 3.0, 0.18215
BETAS = dict(beta_start=0.00085, beta_end=0.012)


class EveryStep(NamedTuple):
    """A U-Net whose tokens depend on the latents for the compiler, so on the step."""

    unet: UNet

    def apply(self, variables, latents, timesteps, context, *rest, **options):
        """Calls the U-Net."""
        context, _ = jax.lax.optimization_barrier((context, latents))
        rest = (context, *rest)
        return self.unet.apply(variables, latents, timesteps, *rest, **options)


def make_models(size):
    """Makes the same model for both sides.

    Args:
      size: Row of SIZES.

    Returns:
      Our functions (tokens, keys) -> images, compiled at the first call: the program,
      and that which computes keys and values at every step; PyTorch's U-Net; and its
      decoder as a function of latents.
    """
    height, channels, first_channels = SIZES[size]
    unet, torch_unet = unet_modules(height, channels)
    first, torch_first = autoencoder_modules(first_channels, (1, 2, 4, 4), 4)
    conditioner = make_conditioner({"tokens": dict(kind="raw", slot="context")})
    schedule = make_schedule("scaled_linear", **BETAS)
    model = LatentDiffusion(unet, conditioner, schedule, first)

    latents = jnp.zeros((1, height, height, 4))
    tokens = jnp.zeros((1, TOKENS, CONTEXT_WIDTH))
    params = random_params(unet, latents, jnp.zeros(1, jnp.int32), tokens)
    first_params = random_params(first, jnp.zeros((1, 8 * height, 8 * height, 3)))
    load(torch_unet, layout.unet_rows(unet), params)
    load(torch_first, layout.autoencoder_rows(first), first_params)
    weights = jax.tree.map(jnp.asarray, {"backbone": params, "first": first_params})

    options = generate.SampleOptions(
        num_steps=STEPS,
        size=(8 * height, 8 * height),
        guidance=generate.GuidanceOptions(scale=SCALE),
    )

    def draw(model, weights, tokens, keys):
        return generate.sample_images(
            model,
            {"backbone": weights["backbone"], "conditioner": {}},
            {
                "first_stage": weights["first"],
                "statistics": LatentStatistics(scale=SCALING_FACTOR),
            },
            {"tokens": tokens},
            keys,
            options,
        )

    draw = sharding.jit(draw, static_argnums=0)
    models = model, dataclasses.replace(model, backbone=EveryStep(unet))
    ours = [partial(draw, model, weights) for model in models]
    return ours, torch_unet, partial(torch_first.decode, return_dict=False)


@torch.no_grad()
def pipeline(unet, decode, tokens, noise):
    """The loop of diffusers' pipelines."""
    scheduler = DDIMScheduler(
        **BETAS,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    scheduler.set_timesteps(STEPS)
    tokens = torch.cat([torch.zeros_like(tokens), tokens])
    latents = noise * scheduler.init_noise_sigma
    for timestep in scheduler.timesteps:
        pair = scheduler.scale_model_input(torch.cat([latents] * 2), timestep)
        output = unet(pair, timestep, tokens, return_dict=False)[0]
        null, conditional = output.chunk(2)
        output = null + SCALE * (conditional - null)
        latents = scheduler.step(output, timestep, latents, return_dict=False)[0]
    return decode(latents / SCALING_FACTOR)[0]


def first_call(function):
    """Runs a side for the first time; returns its images and the seconds it took."""
    start = time.perf_counter()
    images = jax.block_until_ready(function())
    seconds = time.perf_counter() - start
    if isinstance(images, torch.Tensor):
        images = images.permute(0, 2, 3, 1)
    return np.asarray(images), seconds


def main():
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="small", choices=SIZES)
    parser.add_argument("--batches", default="1,2,4", help="batch sizes")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--compile", action="store_true", help="also torch.compile")
    parser.add_argument(
        "--every_step", action="store_true", help="also keys at every step"
    )
    options = parser.parse_args()
    set_up(options.rounds)
    programs, unet, decode = make_models(options.size)
    ours = {"jax": programs[0]}
    theirs = {"torch": (unet, decode)}
    if options.every_step:
        ours["every step"] = programs[1]
    if options.compile:
        theirs["compiled"] = torch.compile(unet), torch.compile(decode)
    print(f"{'':20}{'s':>9}{'first':>9}{'ratio':>7}{'difference':>12}{'spoilt':>8}")
    height = SIZES[options.size][0]
    for batch in map(int, options.batches.split(",")):
        keys = jax.random.split(jax.random.key(0), batch)
        shape = (batch, TOKENS, CONTEXT_WIDTH)
        tokens = np.random.default_rng(1).standard_normal(shape, np.float32)
        # The noise that `draw` starts from.
        noise = normal(jax.vmap(jax.random.split)(keys)[:, 0], (height, height, 4))
        inputs = to_torch(tokens), to_torch(noise)
        sides = [partial(side, tokens, keys) for side in ours.values()]
        sides += [partial(pipeline, *side, *inputs) for side in theirs.values()]
        images, seconds = zip(*map(first_call, sides), strict=True)
        *medians, spoilt = measure(sides, options.rounds)
        rows = zip([*ours, *theirs], images, seconds, medians, strict=True)
        for name, image, first, median in rows:
            difference = np.abs(image - images[0]).max() / np.abs(images[0]).max()
            assert difference <= 1e-2, f"images differ by {difference:.3g}"
            print(
                f"batch {batch:<3} {name:10}{median:9.2f}{first - median:9.1f}"
                f"{medians[0] / median:7.2f}{difference:12.1e}{spoilt:8}",
                flush=True,
            )


if __name__ == "__main__":
    main()
