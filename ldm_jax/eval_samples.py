"""Draws samples to evaluate a model, during training and in `ldm-evaluate`.

One compiled program draws a batch over all devices of all processes. Sample k depends
only on the weights, the options, its conditions, the seed and k, so batch size and mesh
change no more than rounding, and an interrupted evaluation can be resumed.

    draw = make_draw(model, options, mesh, seed)
    for conditions in condition_batches(model, mesh, count, batch_size):
        images, finite = draw(params, frozen, conditions.inputs, conditions.index)
        measurement.add(images, conditions.mask)
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from ldm_jax import generate, sharding
from ldm_jax.annotations import Array, Bool, Int, Shaped
from ldm_jax.config import choose
from ldm_jax.diffusion.sample_options import SampleOptions
from ldm_jax.images import RGB, Pixels, to_uint8
from ldm_jax.latent_diffusion import LatentDiffusion
from ldm_jax.seeds import sample_keys


class Conditions(NamedTuple):
    """The conditions of a batch of samples, global arrays split along axis 0.

    Attributes:
      index: Indices of the samples, int32 [B].
      inputs: The conditioner's keys -> [B, ...].
      mask: Which rows count, bool [B]; the others are padding.
    """

    index: Int[Array, " batch"]
    inputs: dict[str, Shaped[Array, "batch ..."]]
    mask: Bool[Array, " batch"]


def _random(num_classes, count, seed):
    # Labels are drawn in sequence: a shorter plan is the beginning of this one.
    rng = np.random.Generator(np.random.Philox(key=np.array([seed, 0], np.uint64)))
    return rng.integers(num_classes, size=count)


def _balanced(num_classes, count, seed):
    del seed
    return np.arange(count) % num_classes


# How labels are chosen: (number of classes, count, seed) -> [count]. "random" draws
# each independently, as for the paper's class-conditional samples; "balanced" cycles
# through the classes, so that all are equally frequent.
LABEL_MODES = {"random": _random, "balanced": _balanced}


def plan_labels(
    mode: str, num_classes: int, count: int, seed: int
) -> Int[np.ndarray, " count"]:
    """Chooses the labels of samples; they depend only on the arguments.

    Args:
      mode: Row of LABEL_MODES.
      num_classes: Number of classes K.
      count: Number of samples.
      seed: Seed of random labels, in [0, 2**64).

    Returns:
      int32 [count] in [0, K); a smaller count gives the first of them.

    Raises:
      ConfigError: If the mode is unknown.
    """
    plan = choose(LABEL_MODES, mode, "label_mode")
    return plan(num_classes, count, seed).astype(np.int32)


def planned_label(model: LatentDiffusion) -> tuple[str, int] | None:
    """Returns the class condition of a model whose labels can be chosen freely.

    Args:
      model: LatentDiffusion.

    Returns:
      (batch key, number of classes) of a model whose only condition is a class; None if
      it has other conditions, which must come from examples, or none at all.
    """
    entries = dict(model.conditioner.entries)
    if len(entries) == 1:
        ((key, entry),) = entries.items()
        if entry["kind"] == "class_label":
            return key, entry["num_classes"]
    return None


def needs_examples(model: LatentDiffusion) -> bool:
    """Returns whether the conditions of samples must come from examples of data.

    Args:
      model: LatentDiffusion.

    Returns:
      False for a model without conditions or with only a class condition, else True.
    """
    return bool(model.conditioner.entries) and planned_label(model) is None


def make_draw(
    model: LatentDiffusion,
    options: SampleOptions,
    mesh: Mesh,
    seed: int,
    pixels: Pixels = RGB,
) -> Callable:
    """Makes the program that draws a batch of samples.

    Args:
      model: LatentDiffusion.
      options: SampleOptions with a size.
      mesh: Mesh over the devices of all processes.
      seed: Seed of the run.
      pixels: Pixel format of the images; they are evaluated as the RGB images shown.

    Returns:
      Jitted function of (params, frozen, inputs {key: [B, ...]}, index int32 [B],
      scale) -> (uint8 [B, H, W, 3], split over the mesh like the batch, and whether
      each was finite, bool [B], on every device). Every process must call it. `scale`
      replaces the guidance scale of the options, so that one program serves all
      scales; None, the default, keeps it.
    """

    def draw(params, frozen, inputs, index, scale=None):
        rngs, chosen = sample_keys(seed, index), options
        if scale is not None:
            guidance = dataclasses.replace(options.guidance, scale=scale)
            chosen = dataclasses.replace(options, guidance=guidance)
        images = generate.sample_images(model, params, frozen, inputs, rngs, chosen)
        shown = to_uint8(pixels.to_rgb(images))
        return shown, jnp.isfinite(images).all(axis=(1, 2, 3))

    shardings = sharding.batch_sharding(mesh), sharding.replicated(mesh)
    return sharding.jit(draw, mesh, out_shardings=shardings)


def condition_batches(
    model: LatentDiffusion,
    mesh: Mesh,
    count: int,
    batch_size: int,
    *,
    label_mode: str = "random",
    seed: int = 0,
    examples: Iterable[Mapping[str, Any]] | None = None,
    start: int = 0,
) -> Iterator[Conditions]:
    """Yields the conditions of all samples, batch by batch; every process must call it.

    Args:
      model: LatentDiffusion.
      mesh: Mesh over the devices of all processes.
      count: Number of samples.
      batch_size: Global batch size; rounded up to a multiple of the number of devices.
        Batches of `examples` keep their own size.
      label_mode: Row of LABEL_MODES, for a model whose only condition is a class.
      seed: Seed of random labels.
      examples: Global batches of examples in order, with the conditioner's keys and
        "mask", from `Data.held_out_batches`; for a model that needs them, see
        `needs_examples`. Sample k has the conditions of example k; unreadable examples
        are skipped, with a warning if too few remain.
      start: Number of samples that are already drawn, which are not drawn again.

    Yields:
      Conditions.
    """
    if not needs_examples(model):
        size = -(-batch_size // mesh.size) * mesh.size
        label = planned_label(model)
        labels = label and plan_labels(label_mode, label[1], count, seed)
        yield from _planned(label and label[0], labels, mesh, (start, count, size))
        return
    yield from _taken(model.conditioner.entries, mesh, examples or (), start, count)


def _planned(key, labels, mesh, plan):
    """Batches of labels, or of no conditions."""
    start, count, size = plan
    for first in range(start, count, size):
        index = np.arange(first, first + size, dtype=np.int32)
        inputs = {}
        if key is not None:
            # The label of padding does not matter.
            inputs = {key: labels[np.minimum(index, count - 1)]}
        yield _put(mesh, index, index < count, inputs)


def _taken(keys, mesh, examples, start, count):
    """Batches of the conditions of examples; unreadable ones are skipped."""
    position = taken = 0
    for batch in examples:
        real = np.asarray(multihost_utils.process_allgather(batch["mask"], tiled=True))
        index = np.arange(position, position + len(real), dtype=np.int32)
        rank = taken + np.cumsum(real) - 1
        position, taken = position + len(real), taken + int(real.sum())
        mask = real & (start <= rank) & (rank < count)
        if mask.any():
            inputs = {key: batch[key] for key in keys}
            yield _put(mesh, index, mask)._replace(inputs=inputs)
        if taken >= count:
            return
    # Fewer samples are better than an error after hours of work.
    logging.warning(
        "%d samples were asked for, but conditions of %d alone can be read: fewer are "
        "drawn",
        count,
        taken,
    )


def _put(mesh, index, mask, inputs=None):
    """Conditions from host arrays that are the same on every process."""
    conditions = Conditions(index, inputs or {}, mask)
    split = sharding.batch_sharding(mesh)
    return sharding.put_tree(conditions, jax.tree.map(lambda _: split, conditions))
