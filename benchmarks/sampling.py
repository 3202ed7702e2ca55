"""Guided sampling beside diffusers: from noise to pictures, in one process.

    python benchmarks/sampling.py [--size small] [--batches 1,2,4] [--rounds 3]

Fifty DDIM steps with guidance, then decoding, of the same networks with the same
weights, noise and tokens. Ours is one compiled program; theirs is the loop of a
diffusers pipeline: the U-Net eagerly, channels last, both halves of the guidance in one
batch, DDIMScheduler, decoder. With `--compile` a third side runs the loop with
`torch.compile` of U-Net and decoder. The first pictures are compared. A ratio is the
median over alternated rounds of JAX's time over PyTorch's: below 1, JAX is faster.
"First" is what the first call takes beyond a later one: tracing and compiling, without
JAX's persistent cache. Needs the extra `parity`.
"""

import argparse
import time
from functools import partial

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

from ldm_jax import latent_diffusion
from ldm_jax.conditioners import make_conditioner
from ldm_jax.convert import diffusers_rows as layout
from ldm_jax.diffusion.samplers import normal
from ldm_jax.diffusion.schedule import make_schedule
from ldm_jax.latent_diffusion import LatentDiffusion

SIZES = {  # size: (height of the latents, channels of the U-Net, of the autoencoder)
    "tiny": (8, 32, 32),
    "small": (16, 128, 64),
    "medium": (32, 128, 128),
}
TOKENS, STEPS, SCALE, SCALING_FACTOR = 77, 50, 3.0, 0.18215
BETAS = dict(beta_start=0.00085, beta_end=0.012)


def make_models(size):
    """Makes the same model for either side.

    Args:
      size: Row of SIZES.

    Returns:
      Function (tokens, keys) -> pictures, compiled when called; PyTorch's U-Net; and
      its decoder, a function of latents.
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
    weights = jax.tree.map(jnp.asarray, {"unet": params, "first": first_params})

    @jax.jit
    def generate(weights, tokens, keys):
        return latent_diffusion.generate(
            model,
            {"unet": weights["unet"], "conditioner": {}},
            {"first_stage": weights["first"], "scaling_factor": SCALING_FACTOR},
            {"tokens": tokens},
            keys,
            latent_shape=(height, height, 4),
            num_steps=STEPS,
            guidance_scale=SCALE,
        )

    decode = partial(torch_first.decode, return_dict=False)
    return partial(generate, weights), torch_unet, decode


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
        null, told = output.chunk(2)
        output = null + SCALE * (told - null)
        latents = scheduler.step(output, timestep, latents, return_dict=False)[0]
    return decode(latents / SCALING_FACTOR)[0]


def first_call(function):
    """Runs a side for the first time; returns its pictures and the seconds it took."""
    start = time.perf_counter()
    images = jax.block_until_ready(function())
    return images, time.perf_counter() - start


def main():
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="small", choices=SIZES)
    parser.add_argument("--batches", default="1,2,4", help="batch sizes")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--compile", action="store_true", help="also torch.compile")
    options = parser.parse_args()
    set_up(options.rounds)
    generate, unet, decode = make_models(options.size)
    height = SIZES[options.size][0]
    names = ["jax", "torch"]
    networks = [(unet, decode)]
    if options.compile:
        names.append("compiled")
        networks.append((torch.compile(unet), torch.compile(decode)))
    columns = [f"{name} s" for name in names] + [f"{name} first" for name in names]
    columns += [f"ratio {name}" for name in names[1:]] + ["difference", "spoilt"]
    print(f"{'':8}" + "".join(f"{column:>16}" for column in columns))
    for batch in map(int, options.batches.split(",")):
        keys = jax.random.split(jax.random.key(0), batch)
        shape = (batch, TOKENS, CONTEXT_WIDTH)
        tokens = np.random.default_rng(1).standard_normal(shape, np.float32)
        # The noise that `generate` starts from.
        noise = normal(jax.vmap(jax.random.split)(keys)[:, 0], (height, height, 4))
        inputs = to_torch(tokens), to_torch(noise)
        sides = [partial(generate, tokens, keys)]
        sides += [partial(pipeline, *network, *inputs) for network in networks]
        (images, *others), seconds = zip(*map(first_call, sides), strict=True)
        images = np.asarray(images)
        difference = (
            max(
                np.abs(other.permute(0, 2, 3, 1).numpy() - images).max()
                for other in others
            )
            / np.abs(images).max()
        )
        assert difference <= 1e-2, f"pictures differ by {difference:.3g} of the largest"
        *medians, spoilt = measure(sides, options.rounds)
        cells = [f"{median:.2f}" for median in medians]
        cells += [f"{a - b:.1f}" for a, b in zip(seconds, medians, strict=True)]
        cells += [f"{medians[0] / median:.2f}" for median in medians[1:]]
        cells += [f"{difference:.1e}", str(spoilt)]
        print(
            f"batch {batch:<2}" + "".join(f"{cell:>16}" for cell in cells), flush=True
        )


if __name__ == "__main__":
    main()
