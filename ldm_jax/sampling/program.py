"""The compiled program that draws a batch of samples."""

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax import latent_diffusion, sharding
from ldm_jax.diffusion import samplers
from ldm_jax.images import to_uint8
from ldm_jax.sampling.examples import make_row, stack_rows

# Options that choose the noise levels; inversion goes back along the same.
_GRID = ("num_steps", "spacing", "final_level", "shift")


def make_program(trained, mesh, request, seed, options, *, invert=False, path=None):
    """Makes the function that draws samples.

    Args:
      trained: A Trained.
      mesh: Mesh over the devices of this process.
      request: A Request.
      seed: Seed of the run.
      options: Options of `latent_diffusion.sample_latents` and `generate`.
      invert: Whether to start from the noise that the request's images come from.
      path: (first, last, count) for samples on the way from the noise of sample
        `first` to that of `last`; None for each its own.

    Returns:
      (draw, batch_of): `draw(weights, batch)` -> images, uint8 [B, H, W, C], to be
      compiled; and `batch_of(indices)`, the weights and the batch on the devices.
    """
    model = trained.model
    shape = latent_diffusion.shape_of_latents(model, request.size)
    weights = {"params": trained.params, "frozen": trained.frozen}
    weights = sharding.put_tree(weights, sharding.tree_shardings(weights, mesh))
    split = sharding.batch_sharding(mesh)

    def draw(weights, batch):
        params, frozen = weights["params"], weights["frozen"]
        known = batch.get("images") if request.starts or request.holds else None
        hold = None
        if request.holds:
            hold = hold_cells(batch["hole"], model.first_stage.downsampling_factor)
        images = latent_diffusion.generate(
            model,
            params,
            frozen,
            batch["inputs"],
            _keys(seed, batch["index"]),
            latent_shape=shape,
            images=known,
            mask=hold,
            negative=batch.get("negative"),
            noise=start_noise(weights, batch) if invert or path else None,
            **options,
        )
        images = to_uint8(images)
        if "hole" in batch:
            # What is known stays as it is, to the bit.
            images = jnp.where(batch["hole"], images, batch["images"])
        return images

    def start_noise(weights, batch):
        ends = batch["ends"] if path else batch
        if invert:
            params, frozen = weights["params"], weights["frozen"]
            grid = {key: options[key] for key in _GRID if key in options}
            known = latent_diffusion.encode(model, frozen, ends["images"])
            told = latent_diffusion.encode_inputs(model, frozen, ends["inputs"])
            noise = latent_diffusion.invert_latents(model, params, told, known, **grid)
        else:
            noise_rngs, _ = latent_diffusion.split_rngs(_keys(seed, ends["index"]))
            noise = samplers.normal(noise_rngs, shape)
        if not path:
            return noise
        noise = noise.reshape(-1, 2, *shape)
        return slerp(noise[:, 0], noise[:, 1], batch["share"])

    def batch_of(indices):
        batch = _make_batch(trained, request, seed, indices, path)
        for told in (batch["inputs"], *([batch["negative"]] if "neg" in batch else ())):
            model.conditioner.check(told)
        return weights, jax.device_put(batch, split)

    return jax.jit(draw), batch_of
