"""The compiled program that draws a batch of samples."""

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax import generate, latent_diffusion, sharding
from ldm_jax.diffusion import solve
from ldm_jax.errors import ConfigError
from ldm_jax.generate import hold_cells, invert_latents, slerp
from ldm_jax.images import to_uint8
from ldm_jax.sampling.gradient_guidance import make_steer

# Options that choose the noise levels; inversion goes back along the same.
_GRID = ("num_steps", "spacing", "final_level", "shift", "tile")


def make_draw(trained, mesh, task, seed, options):
    """Makes the function that draws samples; see `conditions.make_batch` for batches.

    Args:
      trained: A Trained.
      mesh: Mesh over the devices of this process.
      task: A Task.
      seed: Seed of the run.
      options: Options of `generate.sample_images`.

    Returns:
      (draw, weights): the jitted function of weights and a batch on the devices ->
      (images, uint8 [B, H, W, C], and whether they were finite, bool [B]), for `fetch`;
      and the weights, on the devices.
    """
    model = trained.model
    factor = model.first_stage.downsampling_factor
    shape = latent_diffusion.shape_of_latents(model, task.size)
    weights = {"params": trained.params, "frozen": trained.frozen}
    if trained.classifier is not None:
        weights["classifier"] = trained.classifier.params
    if trained.lpips is not None:
        weights["lpips"] = trained.lpips
    weights = sharding.put_tree(weights, sharding.tree_shardings(weights, mesh))

    def draw(weights, batch):
        frozen = weights["frozen"]
        codec = generate.make_codec(model, frozen, options.get("decode_tile"))
        known = {}
        if task.starts or task.holds:
            known["images"] = batch["images"]
        if task.holds:
            known["mask"] = hold_cells(batch["mask"], factor)
        if task.invert or task.path:
            known["noise"] = _start(
                model, weights["params"], codec.encode, batch, task, seed, options
            )
        images = generate.sample_images(
            model,
            weights["params"],
            frozen,
            batch["inputs"],
            _keys(seed, batch["index"]),
            latent_shape=shape,
            negative=batch.get("negative"),
            steer=make_steer(trained, weights, batch, task.scales, codec.decode),
            **known,
            **options,
        )
        finite = jnp.isfinite(images).all(axis=(1, 2, 3))
        images = to_uint8(images)
        if "mask" in batch:
            # What is known stays as it is, to the bit.
            images = jnp.where(batch["mask"], images, batch["images"])
        return images, finite

    return jax.jit(draw), weights


def fetch(drawn, indices):
    """Brings what was drawn to the host.

    Args:
      drawn: What `draw` of `make_draw` gives.
      indices: Numbers of the samples of its first rows; others fill the batch up.

    Returns:
      uint8 [len(indices), H, W, C].

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


def _keys(seed, index):
    """Typed keys [B]: sample k depends on the seed and k alone."""
    rng = jax.random.key(seed)
    return jax.vmap(lambda k: jax.random.fold_in(rng, k))(index)


def _start(model, params, encode, batch, task, seed, options):
    """The noise to start from: inverted, on the way between two, or both."""
    shape = latent_diffusion.shape_of_latents(model, task.size)
    ends = batch["ends"] if task.path else batch
    if task.invert:
        grid = {key: options[key] for key in _GRID if key in options}
        told = model.conditioner.encode(ends["inputs"], encode)
        known = encode(ends["images"])
        noise = invert_latents(model, params, told, known, **grid)
    else:
        noise_rngs, _ = generate.split_rngs(_keys(seed, ends["index"]))
        noise = solve.normal(noise_rngs, shape)
    if not task.path:
        return noise
    noise = noise.reshape(-1, 2, *shape)
    return slerp(noise[:, 0], noise[:, 1], batch["fraction"])
