"""The second stage's loss by noise level, on held-out examples.

The mean over all levels hides at which a model learns badly or starts to overfit: low
noise levels determine the details, high ones the composition. Each example is noised
once, with a level and noise that depend only on the seed and its index: the same at
every evaluation, whatever the batches and the devices, so that curves over a run are
smooth. With ten bins, each row of ten successive examples has one level in each bin.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax import latent_diffusion
from ldm_jax.annotations import Array, Float, Int, Key
from ldm_jax.diffusion.schedule import add_noise
from ldm_jax.latent_diffusion import LatentDiffusion
from ldm_jax.seeds import make_key, sample_keys

# Name of the metric, before the number of the bin.
LOSS_LEVEL = "loss_level_"

_SUM, _FRACTION = "level_loss", "level_fraction"
# Makes these draws independent of others with the same seed.
_TAG = 0x1E7E1


def draw_levels(
    seed: int, index: Int[Array, " batch"], bins: int, num_timesteps: int
) -> tuple[Int[Array, " batch"], Int[Array, " batch"], Key[Array, " batch"]]:
    """Draws the noise level of each example, stratified over the bins.

    Args:
      seed: Seed of the run.
      index: Indices of the examples, int32 [B].
      bins: Number of bins, at most `num_timesteps`.
      num_timesteps: Number of noise levels T; bin b starts at level b T / bins.

    Returns:
      (bins int32 [B], timesteps int32 [B] in [0, T), keys of the noise [B]).
    """
    keys = jax.vmap(lambda key: jax.random.fold_in(key, _TAG))(sample_keys(seed, index))
    levels, noise = jax.vmap(jax.random.split, out_axes=1)(keys)
    # Each row of examples starts at a random bin, as the data may have a pattern of
    # this period.
    rows = jax.random.fold_in(make_key(seed), _TAG)
    rows = jax.vmap(lambda k: jax.random.fold_in(rows, k))(index // bins)
    first = jax.vmap(lambda key: jax.random.randint(key, (), 0, bins))(rows)
    chosen = (index + first) % bins
    edges = np.arange(bins + 1) * num_timesteps // bins
    low, high = jnp.asarray(edges[:-1])[chosen], jnp.asarray(edges[1:])[chosen]
    timesteps = jax.vmap(lambda key, a, b: jax.random.randint(key, (), a, b))
    return chosen, timesteps(levels, low, high), noise


def level_losses(
    model: LatentDiffusion,
    params: Mapping[str, Any],
    frozen: Mapping[str, Any],
    batch: Mapping[str, Any],
    seed: int,
    bins: int,
) -> dict[str, Float[Array, " bins"]]:
    """Computes the simple loss of a batch by noise level, without loss weights.

    Args:
      model: LatentDiffusion.
      params: Trained weights, usually the EMA's.
      frozen: Weights of the first stage and statistics of its latents.
      batch: Dict with "image" [B, H, W, C], the conditioner's keys, "index" int32 [B],
        the index of each example, and "mask" bool [B], which of them count.
      seed: Seed of the run.
      bins: Number of bins.

    Returns:
      Means over the rows that count, for `by_level`: "level_loss" [bins], the mean of
      the loss in the example's bin and 0 in the others, and "level_fraction" [bins],
      likewise of 1 and 0.
    """
    latents = latent_diffusion.latents_of(model, frozen, batch)
    inputs = latent_diffusion.encode_inputs(model, frozen, batch)
    conditioning = latent_diffusion.condition(model, params, inputs)
    chosen, timesteps, keys = draw_levels(
        seed, batch["index"], bins, model.schedule.num_train_timesteps
    )
    shape = (1, *latents.shape[1:])
    noise = jax.vmap(lambda key: model.objective.draw_noise(key, shape)[0])(keys)
    point = model.schedule.at(timesteps)
    noisy = add_noise(latents, noise, point)
    output = latent_diffusion.apply_backbone(
        model, params, noisy, timesteps, conditioning
    )
    target = model.objective.target(latents, noise, point)
    error = model.objective.error(output, target)
    mask = batch["mask"].astype(jnp.float32)
    counts = jax.nn.one_hot(chosen, bins) * mask[:, None]
    losses = jnp.where(counts > 0, error[:, None], 0.0)
    return {_SUM: losses.sum(0) / mask.sum(), _FRACTION: counts.sum(0) / mask.sum()}


def by_level(means: Mapping[str, Any]) -> dict[str, Any]:
    """Replaces the output of `level_losses` by the loss of each bin.

    Args:
      means: Means over all held-out images, name -> number or array [bins], with
        "num_images", the number of these images.

    Returns:
      Dict of numbers: `means`, "loss_level_B" for each bin B that had examples, and
      "level_draws", the number of examples of the bin with the fewest.
    """
    means = dict(means)
    if _SUM not in means:
        return means
    losses, fractions = means.pop(_SUM), np.asarray(means.pop(_FRACTION))
    draws = np.rint(fractions * means["num_images"])
    for index in np.flatnonzero(draws):
        means[f"{LOSS_LEVEL}{index}"] = losses[index] / fractions[index]
    return means | {"level_draws": draws.min()}
