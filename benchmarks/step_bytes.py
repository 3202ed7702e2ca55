"""Residuals of the backward pass of a U-Net's loss, and the size of its program.

No accelerator is needed and nothing is run: only shapes are traced. Counted are

- kept: bytes of the residuals that the forward pass keeps for the backward pass, by
  kind, without parameters and inputs of the loss;
- operations of the traced gradient, and how many of its convolutions and matrix
  products differ, for each of which a compiler chooses a kernel;
- with --compile, for small sizes: instructions of the program compiled for this
  machine, its FLOPs, the bytes it reads and writes, and its temporary memory.

    python -m benchmarks.step_bytes --model=ldm4 --batch=64
"""

import argparse
import collections
import time

import jax
import jax.numpy as jnp
from jax._src.ad_checkpoint import saved_residuals

from configs import imagenet_class, text_to_image
from ldm_jax import sharding
from ldm_jax.flops import inner_jaxprs
from ldm_jax.models.unet import UNet

# Name -> fields of the U-Net, (size, channels) of its latents, shape of the context.
MODELS = {
    "ldm4": (imagenet_class.ROWS["f4"]["backbone"], (64, 3), (1, 512)),
    # Stable Diffusion 1 has the U-Net of our captions, on latents of 512 px.
    "sd1": (text_to_image.ROWS["laion"]["backbone"], (64, 4), (77, 768)),
    "small": (
        dict(
            channels=64,
            channel_mult=(1, 2),
            num_res_blocks=1,
            attention_factors=(2,),
            head_channels=32,
            transformer_depth=1,
        ),
        (16, 4),
        (4, 64),
    ),
}


def make(name, batch, dtype, **fields):
    """Makes the loss of a model, and the shapes of its arguments.

    Args:
      name: Row of MODELS.
      batch: Batch size.
      dtype: Compute type.
      **fields: Further fields of the U-Net.

    Returns:
      (loss, (params, latents, timesteps, context)).
    """
    options, (side, channels), tokens = MODELS[name]
    unet = UNet(channels, **options, **fields, dtype=dtype)

    def loss(params, latents, timesteps, context):
        out = unet.apply({"params": params}, latents, timesteps, context)
        return jnp.mean(jnp.square(out - latents))

    shape = jax.ShapeDtypeStruct
    inputs = (
        shape((batch, side, side, channels), jnp.float32),
        shape((batch,), jnp.float32),
        shape((batch, *tokens), jnp.float32),
    )
    params = jax.eval_shape(unet.init, jax.random.key(0), *inputs)["params"]
    return loss, (params, *inputs)


def kept(loss, arguments):
    """Bytes of the residuals that the forward pass keeps, by type and rank."""
    kinds = collections.Counter()
    for aval, source in saved_residuals(loss, *arguments):
        if "argument" not in source:
            kinds[f"{aval.dtype} rank {aval.ndim}"] += aval.size * aval.dtype.itemsize
    return kinds


def equations(jaxpr):
    """Yields all equations of a jaxpr, including nested ones."""
    for equation in jaxpr.eqns:
        inner = inner_jaxprs(equation)
        for other in inner:
            yield from equations(getattr(other, "jaxpr", other))
        if not inner:
            yield equation


def kernels(jaxpr):
    """Counts convolutions and matrix products, and how many of them differ."""
    found = collections.Counter()
    for equation in equations(jaxpr):
        if equation.primitive.name in ("conv_general_dilated", "dot_general"):
            shapes = tuple(str(v.aval) for v in (*equation.invars, *equation.outvars))
            found[equation.primitive.name, shapes, str(equation.params)] += 1
    return {
        name: (
            sum(n for key, n in found.items() if key[0] == name),
            sum(key[0] == name for key in found),
        )
        for name in ("conv_general_dilated", "dot_general")
    }


def main():
    """Prints the counts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=MODELS, default="ldm4")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--remat", action="store_true")
    parser.add_argument("--compile", action="store_true")
    flags = parser.parse_args()
    dtype = jnp.dtype(flags.dtype)
    loss, arguments = make(flags.model, flags.batch, dtype, remat=flags.remat)

    kinds = kept(loss, arguments)
    print(f"kept: {sum(kinds.values()) / 1e9:.3f} GB")
    for kind, size in kinds.most_common(6):
        print(f"  {kind}: {size / 1e9:.3f}")
    gradient = sharding.jit(jax.grad(loss))
    traced = gradient.trace(*arguments)
    print(f"operations: {sum(1 for _ in equations(traced.jaxpr.jaxpr))}")
    for name, (count, distinct) in kernels(traced.jaxpr.jaxpr).items():
        print(f"  {name}: {count}, {distinct} of them different")
    if flags.compile:
        start = time.process_time()
        compiled = traced.lower().compile()
        print(f"compiled in {time.process_time() - start:.1f} s of processor time")
        lines = compiled.as_text().splitlines()
        print(f"  instructions: {sum(' = ' in line for line in lines)}")
        costs, memory = compiled.cost_analysis(), compiled.memory_analysis()
        print(f"  FLOPs: {costs['flops'] / 1e9:.2f} G")
        print(f"  bytes accessed: {costs['bytes accessed'] / 1e9:.3f} GB")
        print(f"  temporary memory: {memory.temp_size_in_bytes / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
