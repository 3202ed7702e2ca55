"""A sampling run: from flags to PNG files, resumable, the same on any devices.

Sample k is a function of the weights, the settings, the seed and k.  Every process of a
job draws its own part on its own devices; nothing is communicated.
"""

import dataclasses
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from ldm_jax import peers, sharding
from ldm_jax.console import Console
from ldm_jax.diffusion.guidance import GuidanceOptions
from ldm_jax.diffusion.sample_options import SampleOptions
from ldm_jax.errors import ConfigError
from ldm_jax.files import check_outdir
from ldm_jax.images import suffix_of, write_image
from ldm_jax.sampling import output, settings
from ldm_jax.sampling.conditions import collect_conditions, make_batch, warn_of_cuts
from ldm_jax.sampling.options import RunOptions, check, complete, record_of
from ldm_jax.sampling.output import write_contact_sheet
from ldm_jax.sampling.program import fetch, make_draw
from ldm_jax.sampling.task import Task, class_names, make_task
from ldm_jax.tiling import one_behind
from ldm_jax.trained import Trained


def run(
    trained: Trained,
    outdir: Any,
    flag_values: Mapping[str, Sequence[str] | None] | None = None,
    run_options: RunOptions = RunOptions(),
    sample_options: SampleOptions | None = None,
) -> pathlib.Path:
    """Draws samples 0 to `num_samples` - 1, those that `outdir` does not hold yet.

    Args:
      trained: A Trained.
      outdir: Folder of the images.
      flag_values: The conditions: flag -> list of strings, such as labels, prompts or
        files; see `flag_values.flag_rows`.
      run_options: What to draw.
      sample_options: How to sample; None is the config's, see `options.complete`.

    Returns:
      Path of the grid.

    Raises:
      ConfigError: If an option is wrong or the folder holds samples of other settings.
    """
    options = sample_options
    if options is None:
        options = complete(trained, invert=run_options.invert)
    check(trained, options, run_options.invert)
    if run_options.show_unguided and not options.guidance.acts:
        raise ConfigError(
            "--show_unguided: these samples are not guided; give --guidance_scale, or "
            "leave the flag out"
        )
    check_outdir(output.path_of(pathlib.Path(outdir), 0).parent)
    task = make_task(trained, flag_values or {}, run_options, options)
    warn_of_cuts(trained, task)
    todo = _Run(trained, pathlib.Path(outdir), task, run_options, options)
    suffix = suffix_of(trained.pixels)
    mine = range(jax.process_index(), task.count, jax.process_count())
    missing = [k for k in mine if not output.path_of(todo.outdir, k, suffix).exists()]
    if missing:
        _draw(todo, missing, len(mine))
    else:
        settings.claim(todo.outdir, _settings(todo))
        print(f"all of {len(mine)} samples are there already")
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("all samples are written")
    if jax.process_index() == 0:
        _collect(todo)
    return todo.outdir / "grid.png"


class _Run(NamedTuple):
    """What the parts of a run share."""

    trained: Trained
    outdir: pathlib.Path
    task: Task
    run_options: RunOptions
    sample_options: SampleOptions


def _settings(run):
    """What every sample of a folder has in common, for `settings.json`."""
    trained = run.trained
    return {
        "checkpoint": trained.source,
        "weights": trained.weights,
        "first_stage": trained.first_stage,
        "decoder": trained.decoder,
        "classifier": trained.classifier and trained.classifier.source,
        "lpips": trained.lpips and settings.digest(trained.lpips),
        "seed": run.run_options.seed,
        "conditions": run.task.record,
        "options": record_of(run.sample_options, trained.model),
    }


def _draw(run, missing, total):
    """Draws the missing samples batch by batch and writes each as it comes."""
    devices = jax.local_devices()
    mesh = sharding.make_mesh(devices=devices)
    size = min(run.run_options.batch_size, len(missing))
    size = -(-size // len(devices)) * len(devices)
    start = time.perf_counter()
    batches = _batches(run, missing, size)
    first = next(batches)
    draw = _lower(run, mesh, first[1])
    # Only now: what is wrong shall leave no folder behind.
    settings.claim(run.outdir, _settings(run))
    if len(missing) < total:
        print(f"{total - len(missing)} of {total} samples are there already")
    draw = draw()
    console, done = Console(len(missing), 0), 0
    drawn = ((*part, draw(part[1])) for part in _chain(first, batches))
    # While one batch is written, the devices work on the next.
    for indices, batch, images in one_behind(drawn):
        images = fetch(images, indices)
        if not done:
            seconds = time.perf_counter() - start
            console.line(f"first batch of {size}, with compilation: {seconds:.1f} s")
        _write(run, indices, batch, images, console)
        peers.progress()
        done += len(indices)
        console.line(f"{done}/{len(missing)} samples")
    console.close()
    seconds = time.perf_counter() - start
    print(f"{len(missing)} samples in {seconds:.1f} s ({len(missing) / seconds:.2f}/s)")


def _draw_unguided(run):
    """Draws what the contact sheet shows once more, from the same noise, unguided."""
    shown = range(min(run.task.count, output.MOST_ON_SHEET))
    suffix = suffix_of(run.trained.pixels)
    paths = {k: output.unguided_path_of(run.outdir, k, suffix) for k in shown}
    missing = [k for k, path in paths.items() if not path.exists()]
    if not missing:
        return
    options = dataclasses.replace(run.sample_options, guidance=GuidanceOptions())
    devices = jax.local_devices()
    mesh, start = sharding.make_mesh(devices=devices), time.perf_counter()
    size = -(-min(run.run_options.batch_size, len(missing)) // len(devices))
    batches = _batches(run, missing, size * len(devices))
    # Without guidance nothing is pushed away.
    batches = ((ks, batch | {"negative": {}}) for ks, batch in batches)
    first = next(batches)
    draw = _lower(run._replace(sample_options=options), mesh, first[1])()
    for indices, batch in _chain(first, batches):
        for k, image in zip(indices, fetch(draw(batch), indices), strict=True):
            write_image(paths[k], image, run.trained.pixels)
        peers.progress()
    seconds = time.perf_counter() - start
    print(f"{len(missing)} of them without guidance in {seconds:.1f} s")


def _write(run, indices, batch, images, console):
    """Writes the samples of a batch, and what held-out data has in their place."""
    pixels = run.trained.pixels
    suffix = suffix_of(pixels)
    for row, k in enumerate(indices):
        if run.task.source is not None:
            path = run.outdir / "reference" / f"{k:06d}{suffix}"
            write_image(path, batch["images"][row], pixels)
        write_image(output.path_of(run.outdir, k, suffix), images[row], pixels)
        console.advance()


def _batches(run, missing, size):
    """Yields (numbers of samples, their batch on the host)."""
    for first in range(0, len(missing), size):
        indices = missing[first : first + size]
        # The last batch is filled up, so that one program serves all.
        padded = np.resize(np.asarray(indices, np.int32), size)
        seed = run.run_options.seed
        yield indices, make_batch(run.trained, run.task, seed, padded)


def _chain(first, others):
    yield first
    yield from others


def _lower(run, mesh, batch):
    """Traces the program; returns what compiles it to a function of host batches."""
    split = sharding.batch_sharding(mesh)
    seed = run.run_options.seed
    draw, weights = make_draw(run.trained, mesh, run.task, seed, run.sample_options)
    try:
        lowered = draw.lower(weights, jax.device_put(batch, split))
    except ValueError as error:
        raise ConfigError(str(error)) from error

    def compiled():
        program = lowered.compile()
        return lambda batch: program(weights, jax.device_put(batch, split))

    return compiled


def _collect(run):
    """Writes the grid, the contact sheet and the array for evaluators."""
    trained, outdir, task, options, _ = run
    labels = task.values.get("label")
    # On a path all samples have the same conditions.
    labels = None if task.path else labels and labels.values
    names, pixels = class_names(trained), trained.pixels
    output.write_grid(outdir, task.count, labels, names, pixels)
    if options.show_unguided:
        _draw_unguided(run)
    write_contact_sheet(trained, task, options.seed, outdir)
    if options.npz:
        conditions = collect_conditions(trained, task, options.seed)
        output.write_array(outdir, task.count, conditions, pixels)
