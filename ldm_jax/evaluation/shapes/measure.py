"""Draws pictures under the conditions of held-out scenes and has them judged."""

import dataclasses

import jax
import numpy as np

from ldm_jax import sharding
from ldm_jax.errors import ConfigError
from ldm_jax.evaluation.shapes.adherence import agreement, chance
from ldm_jax.evaluation.shapes.labels import KEYS, stack, truth
from ldm_jax.evaluation.shapes.probe import reconstruct
from ldm_jax.evaluation.shapes.restoration import baseline, distances
from ldm_jax.images import make_grid
from ldm_jax.sampling.conditions import make_example, make_row
from ldm_jax.sampling.options import RunOptions, complete, record_of
from ldm_jax.sampling.program import fetch, make_draw
from ldm_jax.sampling.task import make_request

# Rows of the picture, and scenes beside each other in it.
_ROWS, _COLUMNS = 8, 2


def measure(trained, judge, num_samples, options=None, *, seed=0, batch_size=64):
    """Measures how well a model obeys its conditions.

    Args:
      trained: A `sampling.model.Trained`, on the data set `shapes`.
      judge: Function from `judge.make_judge`.
      num_samples: So many of the first held-out scenes, or all if there are fewer.
      options: SampleOptions; None for the config's.
      seed: Seed of the noise, and of inputs that are drawn at random.
      batch_size: Samples at a time over all devices; rounded up to a multiple of them.

    Returns:
      (record, grid): dict of "agreement", and where pictures are restored
      "restoration", each column -> row -> number, with what they are of; and a picture.

    Raises:
      ConfigError: If the model has no conditions, the data are others, or an option is
        wrong.
    """
    if not trained.model.conditioner.entries:
        raise ConfigError("this model has no conditions: there is nothing to obey")
    options = complete(trained) if options is None else options
    request = _request(trained, num_samples, options)
    examples = [make_example(trained, request, k) for k in range(request.count)]
    true = stack([truth(example) for example in examples])
    rows = [make_row(trained, request, seed, k, e) for k, e in enumerate(examples)]
    batch = jax.tree.map(lambda *arrays: np.stack(arrays), *rows)
    batch["index"] = np.arange(request.count, dtype=np.int32)

    images = batch["images"]
    model, params = trained.model, trained.frozen["first_stage"]
    pictures = {
        "real": images,
        "reconstructed": reconstruct(model.first_stage, params, images),
    }
    # Scale 0 leaves of guidance what the model does when it is told nothing.
    dropped = dataclasses.replace(options.guidance, scale=0.0)
    for name, guidance in (("samples", options.guidance), ("dropped", dropped)):
        guided = dataclasses.replace(options, guidance=guidance)
        pictures[name] = _draw(trained, request, batch, seed, batch_size, guided)
    seen = {name: judge(array) for name, array in pictures.items()}
    columns = {name: agreement(true, found) for name, found in seen.items()}
    record = {
        "data": f"{trained.config.data.name}, {trained.config.data.eval_split}",
        "num_samples": request.count,
        "seed": seed,
        "options": record_of(options, model),
        "agreement": columns | {"chance": chance(true, seen["samples"])},
    }
    restored = baseline(batch["inputs"], images.shape[1])
    if restored is not None:
        record["restoration"] = _restoration(batch, pictures, restored)
    return record, _grid(pictures, restored)


def _request(trained, num_samples, options):
    """A request for pictures of held-out scenes, with all that is known of them."""
    config = trained.config.copy_and_resolve_references()
    with config.unlocked():
        # Not as an attribute: that is a method.
        config.data["keys"] = [key for key in KEYS if key not in ("image", "label")]
    trained = trained._replace(config=config)
    run_options = RunOptions(num_samples=num_samples, from_data=True)
    request = make_request(trained, {}, run_options, options)
    return request._replace(count=min(num_samples, len(request.source)))


def _draw(trained, request, batch, seed, batch_size, options):
    """Draws all samples, batch by batch: uint8 [N, S, S, 3]."""
    mesh = sharding.make_mesh(devices=jax.local_devices())
    split = sharding.batch_sharding(mesh)
    draw, weights = make_draw(trained, mesh, request, seed, options)
    size = -(-min(batch_size, request.count) // mesh.size) * mesh.size
    parts = []
    for start in range(0, request.count, size):
        # The last batch is filled up, so that one program serves all.
        index = np.arange(start, start + size) % request.count
        part = jax.tree.map(lambda array, rows=index: array[rows], batch)
        parts.append(fetch(draw(weights, jax.device_put(part, split)), index))
    return np.concatenate(parts)[: request.count]


def _restoration(batch, pictures, restored):
    """Distances to the scenes; what is known around a hole is no merit of anybody."""
    images, found = batch["images"], {"baseline": restored} | pictures
    del found["real"]
    if "hole" in batch:
        found["reconstructed"] = np.where(batch["hole"], found["reconstructed"], images)
    return {name: distances(images, others) for name, others in found.items()}


def _grid(pictures, restored):
    """Scenes beside what became of them."""
    names = ("real", "samples", "dropped")
    shown = [pictures[name][: _ROWS * _COLUMNS] for name in names]
    if restored is not None:
        shown.insert(1, restored[: _ROWS * _COLUMNS])
    shown = np.stack(shown, axis=1)
    return make_grid(shown.reshape(-1, *shown.shape[2:]), _COLUMNS * shown.shape[1])
