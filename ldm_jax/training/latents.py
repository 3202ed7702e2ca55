"""The latents that a stage trains on: their first stage and their statistics."""

import math
import os
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ldm_jax import checkpoint, latent_diffusion, peers, sharding
from ldm_jax.annotations import Array, Shaped
from ldm_jax.checkpoint import Folder, absolute
from ldm_jax.config import choose
from ldm_jax.diffusion.latent_statistics import LatentStatistics
from ldm_jax.errors import CheckpointError, ConfigError
from ldm_jax.images import pixels_of
from ldm_jax.models.first_stages import row_of
from ldm_jax.trained import (
    FirstStage,
    check_same_everywhere,
    has_own_copy,
    keep_first_stage,
    load_first_stage,
    load_recorded,
)

# `first_stage.latent_statistics` -> axes over which mean and standard deviation are
# taken.
LATENT_STATISTICS = {"scalar": None, "per_channel": (0, 1, 2)}


def measure_statistics(
    model: Any,
    params: Any,
    batches: Iterable[Mapping[str, Shaped[Array, "..."]]],
    mesh: Mesh,
    kind: str = "scalar",
) -> LatentStatistics:
    """Measures the statistics that normalise latents to unit variance.

    CompVis uses one batch on one process; this uses many batches on all processes, with
    posterior samples as in training. Batches are averaged in float64 on the host,
    weighted by their sizes.

    Args:
      model: LatentDiffusion or LatentClassifier.
      params: Weights of the first stage.
      batches: Global batches with "image" [B, H, W, C]; at least one.
      mesh: Mesh of the batches.
      kind: Row of LATENT_STATISTICS: "scalar" for 1 / standard deviation of all values
        and a shift of 0, as in the paper; "per_channel" for mean and standard
        deviation of each channel.

    Returns:
      LatentStatistics on the host, the same on every process.

    Raises:
      ConfigError: If the latents, or a channel of them, do not vary.
    """
    axes = LATENT_STATISTICS[kind]
    params = sharding.put_tree(params, sharding.tree_shardings(params, mesh))

    def moments(frozen, batch, rng):
        latents = latent_diffusion.latents_of(model, frozen, batch, rng)
        return jnp.mean(latents, axes), jnp.mean(jnp.square(latents), axes)

    moments = sharding.jit(moments, mesh, out_shardings=sharding.replicated(mesh))

    def measure(shift, index, batch):
        statistics = LatentStatistics(shift).arrays()
        whole = sharding.tree_shardings(statistics, mesh)
        frozen = {
            "first_stage": params,
            "statistics": sharding.put_tree(statistics, whole),
        }
        return jax.device_get(moments(frozen, batch, jax.random.key(index)))

    shift, rows, sizes = 0.0, [], []
    for index, batch in enumerate(batches):
        if kind == "per_channel" and not rows:
            # Squares are taken about the first batch's means, as about 0 a small
            # deviation would be lost in the rounding of float32.
            shift = (0.0,) * model.first_stage.latent_channels
            shift = tuple(measure(shift, index, batch)[0].tolist())
        rows.append(measure(shift, index, batch))
        sizes.append(len(batch["image"]))
        peers.progress()
    rows = np.asarray(rows, np.float64)
    mean, square = np.average(rows, axis=0, weights=sizes)
    std = np.sqrt(np.maximum(square - mean**2, 0.0))
    _require_variance(std)
    if kind == "scalar":
        return LatentStatistics(scale=float(1 / std))
    mean = np.add(shift, mean)
    return LatentStatistics.of(tuple(mean.tolist()), tuple(std.tolist()))


def _require_variance(std):
    if std.ndim == 0:
        subject, keys = "the first stage's latents have", "scaling_factor"
    else:
        worst = int(np.argmin(np.where(np.isfinite(std), std, -1)))
        subject = f"channel {worst} of the first stage's latents has"
        keys, std = "latents_mean and latents_std", std[worst]
    if not np.isfinite(std) or std < 1e-6:
        raise ConfigError(
            f"{subject} a standard deviation of {std:.2g}: it has not learnt anything; "
            f"train it further or give first_stage.{keys}"
        )


def open_first_stage(
    config: ConfigDict, meta: Mapping[str, Any], workdir: Folder
) -> FirstStage:
    """Loads the first stage of a stage on latents, and keeps a copy in the workdir.

    Args:
      config: ConfigDict with `first_stage`.
      meta: `meta` of the checkpoint to resume from; an empty dict for a new run.
      workdir: Workdir of the run.

    Returns:
      A FirstStage.

    Raises:
      ConfigError: If the section names none.
      CheckpointError: If it cannot be read, or is not the one that the run began with.
    """
    section = config.first_stage
    if meta and has_own_copy(workdir):
        _check_named(section, meta["first_stage"])
        first = load_recorded(workdir, meta["first_stage"])
        first.check_pixels(config.data)
        return first
    count = pixels_of(config.data).count
    if not meta:
        first = load_first_stage(
            section.workdir, _first_step(section), image_channels=count
        )
        check_same_everywhere(first)
    else:
        step = meta["first_stage"]["step"]
        first = load_first_stage(section.workdir, step, image_channels=count)
        check_same_first_stage(first.record, meta["first_stage"])
    first.check_pixels(config.data)
    keep_first_stage(workdir, first)
    return first


def frozen_tree(
    first: FirstStage, statistics: LatentStatistics, data: Any, encodes: bool
) -> dict[str, Any]:
    """Collects the weights of a first stage that a stage on latents needs on devices.

    Args:
      first: FirstStage.
      statistics: Statistics of its latents.
      data: The run's `Data`; if it has latents instead of images, the encoder is left
        out.
      encodes: Whether the encoder is needed for conditions anyway.

    Returns:
      {"first_stage", "statistics"}, see `latent_diffusion`.

    Raises:
      ConfigError: If the data are latents of another first stage.
    """
    params = first.params
    header = getattr(data, "header", None)
    if header is not None:
        header.require_first_stage(first.record, "first_stage.workdir")
        unused = () if encodes else row_of(first.module).encoder_parts
        params = {name: tree for name, tree in params.items() if name not in unused}
    return {"first_stage": params, "statistics": statistics.arrays()}


def _first_step(section):
    """The step in the config, or the newest one; the same on all processes."""
    if section.step is not None or section.workdir in ("", "identity"):
        return section.step
    return checkpoint.common_step(section.workdir)


def _check_named(section, recorded):
    """Raises if the config names another first stage than the copied one.

    The original of the copy may be gone by now, or trained further.
    """
    places = map(os.path.realpath, (absolute(section.workdir), recorded["workdir"]))
    if section.workdir == recorded["workdir"] or len(set(places)) == 1:
        return
    try:
        named = load_first_stage(section.workdir, section.step)
    except (CheckpointError, ConfigError):
        return
    check_same_first_stage(named.record, recorded)


def find_statistics(
    config: ConfigDict,
    model: Any,
    first: Any,
    mesh: Any,
    data: Any,
    meta: Mapping[str, Any],
) -> LatentStatistics:
    """Finds the statistics of the latents.

    They come from the checkpoint to resume from, `train.init_from`, the config, or are
    measured. Those of a data set of latents were measured when it was encoded, over all
    of it.

    Args:
      config: ConfigDict with `first_stage` and `train`.
      model: See `measure_statistics`.
      first: FirstStage.
      mesh: Mesh of the run.
      data: The run's `Data`.
      meta: `meta` of the checkpoint to resume from; an empty dict for a new run.

    Returns:
      LatentStatistics on the host.

    Raises:
      ConfigError: If the latents do not vary, or the statistics in the config are
        invalid or not those that the weights of `init_from` were trained with.
    """
    if meta:
        return LatentStatistics.from_record(meta)
    section, init_from = config.first_stage, config.train.init_from
    statistics = given_statistics(section, model.first_stage.latent_channels)
    if init_from:
        step = checkpoint.common_step(init_from)
        found = checkpoint.read_meta(checkpoint.checkpoint_folder(init_from, step))
        if "scaling_factor" in found:
            return _same_statistics(section, statistics, first, found)
    header = getattr(data, "header", None)
    if statistics is None and header is not None:
        return _stored_statistics(header.statistics, section.latent_statistics)
    if statistics is None:
        batches = data.train_batches(0, count=section.scaling_batches)
        kind = section.latent_statistics
        statistics = measure_statistics(model, first.params, batches, mesh, kind)
    return statistics


def _stored_statistics(found, kind):
    """The statistics in the header of a data set of latents."""
    if kind == "per_channel":
        _require_variance(np.asarray(found["std"]))
        return LatentStatistics.of(tuple(found["mean"]), tuple(found["std"]))
    _require_variance(np.asarray(found["overall_std"]))
    return LatentStatistics(scale=1 / found["overall_std"])


def given_statistics(section: ConfigDict, channels: int) -> LatentStatistics | None:
    """Reads statistics that are set in the config.

    Args:
      section: Config section `first_stage` of a second stage.
      channels: Channels of the latents.

    Returns:
      LatentStatistics on the host; None if they are to be measured.

    Raises:
      ConfigError: If settings contradict each other or are invalid.
    """
    choose(
        LATENT_STATISTICS, section.latent_statistics, "first_stage.latent_statistics"
    )
    factor, mean, std = (
        section[key] for key in ("scaling_factor", "latents_mean", "latents_std")
    )
    if mean is None and std is None:
        if factor is None:
            return None
        if section.latent_statistics != "scalar":
            raise ConfigError(
                "first_stage.scaling_factor is one scale for all channels, but "
                "first_stage.latent_statistics=per_channel: give latents_mean and "
                "latents_std in its place, or none of them to measure them"
            )
        if not 0 < factor < math.inf:
            raise ConfigError(f"first_stage.scaling_factor must be positive: {factor}")
        return LatentStatistics(scale=float(factor))
    if factor is not None:
        raise ConfigError(
            "first_stage.scaling_factor is given and so are latents_mean or "
            "latents_std: give either the one or both of the others"
        )
    if mean is None or std is None:
        raise ConfigError(
            "first_stage.latents_mean and first_stage.latents_std go together: give "
            "both"
        )
    try:
        statistics = LatentStatistics.of(tuple(mean), tuple(std))
        statistics.check_channels(channels)
    except ValueError as error:
        raise ConfigError(f"first_stage.latents_mean, latents_std: {error}") from error
    return statistics


def _same_statistics(section, given, first, meta):
    """The statistics of the weights that a run starts from; raises for different ones.

    If those weights are for another first stage, the config's statistics are used.
    """
    theirs, problem = LatentStatistics.from_record(meta), None
    if given is not None:
        checksum = (meta["first_stage"] or {}).get("checksum")
        if checksum is not None and checksum != first.record.get("checksum"):
            return given
        problem = given.difference(theirs)
    elif section.latent_statistics == "per_channel" and not theirs.per_channel:
        problem = "theirs are one scaling factor for all channels"
    if problem:
        raise ConfigError(
            "the weights of train.init_from were trained on latents of other "
            f"statistics than those of section first_stage: {problem}; leave "
            "scaling_factor, latents_mean, latents_std and latent_statistics as they "
            "are by default to take theirs"
        )
    return theirs if given is None else given


def check_same_first_stage(
    found: Mapping[str, Any], recorded: Mapping[str, Any]
) -> None:
    """Checks that a first stage gives the same latents as that of a run.

    Args:
      found: Record of the first stage found, see `trained.FirstStage`.
      recorded: Record in the run's checkpoint.

    Raises:
      CheckpointError: If the weights that determine latents differ.
    """
    if found.get("checksum") != recorded.get("checksum"):
        raise CheckpointError(
            f"first_stage.workdir={found['workdir']} makes other latents than what "
            f"this run began with, step {recorded['step']} of {recorded['workdir']}: "
            "give that one, or another --workdir"
        )
