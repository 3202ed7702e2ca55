"""Draws images conditioned on held-out scenes and measures their adherence."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from ldm_jax import peers
from ldm_jax.annotations import UInt8
from ldm_jax.diffusion.sample_options import SampleOptions
from ldm_jax.errors import ConfigError
from ldm_jax.evaluation.shapes.adherence import adherence, chance
from ldm_jax.evaluation.shapes.labels import KEYS, stack, truth
from ldm_jax.evaluation.shapes.probe import reconstruct
from ldm_jax.evaluation.shapes.restoration import baseline, distances
from ldm_jax.images import make_grid
from ldm_jax.sampling.conditions import make_example, make_row
from ldm_jax.sampling.options import RunOptions, complete, record_of
from ldm_jax.sampling.program import fetch
from ldm_jax.sampling.sampler import Job, Sampler
from ldm_jax.sampling.task import make_task
from ldm_jax.trained import Trained

# Rows of the grid, and scenes in each of them.
_ROWS, _COLUMNS = 8, 2


def measure(
    trained: Trained,
    probe: Callable[[Any], dict[str, Any]] | None,
    num_samples: int,
    options: SampleOptions | None = None,
    *,
    seed: int = 0,
    batch_size: int = 64,
) -> tuple[dict[str, Any], UInt8[np.ndarray, "height width 3"]]:
    """Measures how well samples adhere to their conditions.

    Args:
      trained: A model of the data set `shapes`.
      probe: Function from `probe.make_probe`.
      num_samples: Number of held-out scenes, the first ones, or all if there are fewer.
      options: SampleOptions; None for the config's.
      seed: Seed of the noise, and of inputs that are drawn at random.
      batch_size: Global batch size; rounded up to a multiple of the devices.

    Returns:
      (record, grid): dict of "adherence", and for models that restore images
      "restoration", each column -> row -> number, with the data and options; and an
      image of the first scenes, uint8 [H, W, 3].

    Raises:
      ConfigError: If the model has no conditions, the data are others, or an option is
        wrong.
    """
    if not trained.model.conditioner.entries:
        raise ConfigError("this model has no conditions: there is nothing to adhere to")
    options = complete(trained) if options is None else options
    task = _make_task(trained, num_samples, options)
    examples = [make_example(trained, task, k) for k in range(task.count)]
    true = stack([truth(example) for example in examples])
    rows = [make_row(trained, task, seed, k, e) for k, e in enumerate(examples)]
    batch = jax.tree.map(lambda *arrays: np.stack(arrays), *rows)
    batch["index"] = np.arange(task.count, dtype=np.int32)

    images = batch["images"]
    model, params = trained.model, trained.frozen["first_stage"]
    columns = {
        "real": images,
        "reconstructed": reconstruct(model.first_stage, params, images),
    }
    # With a guidance scale of 0 the prediction is the unconditional one.
    off = dataclasses.replace(options.guidance, scale=0.0)
    sampler = Sampler(trained)
    for name, guidance in (("samples", options.guidance), ("unconditional", off)):
        guided = dataclasses.replace(options, guidance=guidance)
        columns[name] = _draw(sampler, task, batch, seed, batch_size, guided)
    seen = {name: probe(array) for name, array in columns.items()}
    adherences = {name: adherence(true, found) for name, found in seen.items()}
    record = {
        "data": f"{trained.config.data.name}, {trained.config.data.eval_split}",
        "num_samples": task.count,
        "seed": seed,
        "options": record_of(options, model),
        "adherence": adherences | {"chance": chance(true, seen["samples"])},
    }
    restored = baseline(batch["inputs"], images.shape[1])
    if restored is not None:
        record["restoration"] = _restoration(batch, columns, restored)
    return record, _grid(columns, restored)


def _make_task(trained, num_samples, options):
    """The task of samples conditioned on held-out scenes, with all their labels."""
    config = trained.config.copy_and_resolve_references()
    with config.unlocked():
        # Not `config.data.keys`, which is a method.
        config.data["keys"] = [key for key in KEYS if key not in ("image", "label")]
    trained = trained._replace(config=config)
    run_options = RunOptions(num_samples=num_samples, from_data=True)
    task = make_task(trained, {}, run_options, options)
    return task._replace(count=min(num_samples, len(task.source)))


def _draw(sampler, task, batch, seed, batch_size, options):
    """Draws all samples, batch by batch: uint8 [N, S, S, 3]."""
    job = Job(task, seed, options)
    size, parts = sampler.round_up(min(batch_size, task.count)), []
    for start in range(0, task.count, size):
        # The last batch is padded, so that one compiled program serves all.
        index = np.arange(start, start + size) % task.count
        part = jax.tree.map(lambda array, rows=index: array[rows], batch)
        parts.append(fetch(sampler.lower(job, part)()(part), index))
        peers.progress()
    return np.concatenate(parts)[: task.count]


def _restoration(batch, columns, restored):
    """Distances to the scenes; around a mask, the known part is kept in all columns."""
    images, found = batch["images"], {"baseline": restored} | columns
    del found["real"]
    if "mask" in batch:
        found["reconstructed"] = np.where(batch["mask"], found["reconstructed"], images)
    return {name: distances(images, others) for name, others in found.items()}


def _grid(columns, restored):
    """Scenes beside their baselines and samples."""
    names = ("real", "samples", "unconditional")
    shown = [columns[name][: _ROWS * _COLUMNS] for name in names]
    if restored is not None:
        shown.insert(1, restored[: _ROWS * _COLUMNS])
    shown = np.stack(shown, axis=1)
    return make_grid(shown.reshape(-1, *shown.shape[2:]), _COLUMNS * shown.shape[1])
