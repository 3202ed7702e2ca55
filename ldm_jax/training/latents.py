"""The latents that a stage trains on: which first stage makes them, and their scale."""

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax import checkpoint, latent_diffusion, sharding
from ldm_jax.errors import CheckpointError, ConfigError
from ldm_jax.trained import load_first_stage


def measure_scaling_factor(model, params, batches, mesh):
    """Measures the factor that brings latents to unit variance.

    The original takes one batch on one process; this is 1 / std over many batches and
    all processes, posterior samples as in training.

    Args:
      model: LatentDiffusion or LatentClassifier.
      params: Weights of the first stage.
      batches: Iterable of global batches with "image".
      mesh: Mesh of the batches.

    Returns:
      Python float.

    Raises:
      ConfigError: If the latents do not vary.
    """
    frozen = {"first_stage": params, "scaling_factor": np.float32(1)}
    frozen = sharding.put_tree(frozen, sharding.tree_shardings(frozen, mesh))

    def moments(frozen, images, rng):
        latents = latent_diffusion.encode(model, frozen, images, rng)
        return jnp.mean(latents), jnp.mean(jnp.square(latents))

    moments = jax.jit(moments, out_shardings=sharding.replicated(mesh))
    rows = [
        jax.device_get(moments(frozen, batch["image"], jax.random.key(index)))
        for index, batch in enumerate(batches)
    ]
    mean, square = np.mean(np.asarray(rows, np.float64), axis=0)
    std = np.sqrt(max(square - mean**2, 0.0))
    if not np.isfinite(std) or std < 1e-6:
        raise ConfigError(
            f"the first stage's latents have a standard deviation of {std:.2g}: it has "
            "not learnt anything; train it further or give first_stage.scaling_factor"
        )
    return float(1 / std)


def open_first_stage(config, meta):
    """Loads the first stage of a stage on latents.

    Args:
      config: ConfigDict with `first_stage`.
      meta: What a checkpoint to resume from records; an empty dict for a new run.

    Returns:
      A FirstStage.

    Raises:
      ConfigError: If the section names none.
      CheckpointError: If it cannot be read, or is not the one that the run began with.
    """
    section = config.first_stage
    step = meta["first_stage"]["step"] if meta else section.step
    first = load_first_stage(section.workdir, step)
    if meta:
        check_same_first_stage(first.record, meta["first_stage"])
    return first


def find_scaling_factor(config, model, params, mesh, data, meta):
    """The factor that brings latents to unit variance: known, given or measured.

    Args:
      config: ConfigDict with `first_stage` and `train`.
      model: See `measure_scaling_factor`.
      params: Weights of the first stage.
      mesh: Mesh of the run.
      data: The run's `Data`.
      meta: What a checkpoint to resume from records; an empty dict for a new run.

    Returns:
      Python float.

    Raises:
      ConfigError: If the latents do not vary.
    """
    factor = meta.get("scaling_factor") or config.first_stage.scaling_factor
    if factor is None and config.train.init_from:
        # Those weights know latents of that scale.
        folder = checkpoint.checkpoint_folder(config.train.init_from)
        factor = checkpoint.read_meta(folder).get("scaling_factor")
    if factor is None:
        batches = data.train_batches(0, count=config.first_stage.scaling_batches)
        factor = measure_scaling_factor(model, params, batches, mesh)
    return factor


def check_same_first_stage(found, recorded):
    if found.get("checksum") != recorded.get("checksum"):
        raise CheckpointError(
            f"first_stage.workdir={found['workdir']} makes other latents than what "
            f"this run began with, step {recorded['step']} of {recorded['workdir']}: "
            "give that one, or another --workdir"
        )
