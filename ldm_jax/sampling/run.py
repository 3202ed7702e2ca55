"""A sampling run: from flags to PNG files, resumable, the same on any devices.

Sample k is a function of the weights, the settings, the seed and k.  Every process of a
job draws its own share on its own devices; nothing is communicated.
"""

import pathlib
import time

import jax
import numpy as np
from jax.experimental import multihost_utils

from ldm_jax import sharding
from ldm_jax.console import Console
from ldm_jax.errors import ConfigError
from ldm_jax.images import write_png
from ldm_jax.sampling import output
from ldm_jax.sampling.conditions import collect_conditions, make_batch, warn_of_cuts
from ldm_jax.sampling.options import complete
from ldm_jax.sampling.output import write_contact_sheet
from ldm_jax.sampling.program import fetch, make_draw
from ldm_jax.sampling.task import class_names, make_task
from ldm_jax.tiling import one_behind


def run(
    trained,
    outdir,
    given=None,
    *,
    num_samples=None,
    size=(None, None),
    from_data=False,
    strength=None,
    invert=False,
    interpolate=None,
    classifier_scale=None,
    guide_scale=None,
    seed=0,
    batch_size=16,
    npz=False,
    **options,
):
    """Draws samples 0 to `num_samples` - 1, those that `outdir` does not hold yet.

    Args:
      trained: A Trained.
      outdir: Folder of the pictures.
      given: What gives the conditions: flag -> list of strings, such as labels,
        prompts or files; see `flag_values.flag_rows`.
      num_samples: How many samples the folder shall hold; None is 16, or one for each
        of what is given if that is more.
      size: (height, width) in pixels; None is the size of training.
      from_data: Whether held-out examples give what `given` does not; sample k gets
        example k.
      strength: Share of the steps to run on the given images, in [0, 1].
      invert: Whether to start from the noise that DDIM takes the given images to.
      interpolate: (first, last): samples lie on the way from the noise of sample
        `first` to that of sample `last`; all are told what sample `first` is.
      classifier_scale: Scale of the classifier that steers.
      guide_scale: Scale of the guiding by pictures.
      seed: Seed of the run.
      batch_size: Samples at a time over all devices of a process; rounded up to a
        multiple of their number.
      npz: Also write `samples.npz`: arr_0 uint8 [N, H, W, 3], and the conditions; see
        `conditions.collect_conditions`.
      **options: Options of `generate.sample_images`, such as `sampler`, `num_steps`,
        `guidance_scale`, `eta`; what is None is taken from the config.

    Returns:
      Path of the grid.

    Raises:
      ConfigError: If an option is wrong or the folder holds samples of other settings.
    """
    outdir = pathlib.Path(outdir)
    task = make_task(
        trained,
        given or {},
        num_samples=num_samples,
        size=size,
        from_data=from_data,
        strength=strength,
        invert=invert,
        interpolate=interpolate,
        classifier_scale=classifier_scale,
        guide_scale=guide_scale,
    )
    warn_of_cuts(trained, task)
    options = complete(trained, options | {"strength": strength}, invert)
    settings = {
        "checkpoint": trained.source,
        "weights": trained.weights,
        "first_stage": trained.first_stage,
        "decoder": trained.decoder,
        "classifier": trained.classifier and trained.classifier.source,
        "lpips": trained.lpips and output.digest(trained.lpips),
        "seed": seed,
        "conditions": task.record,
        "options": _ordered(options),
    }
    mine = range(jax.process_index(), task.count, jax.process_count())
    missing = [k for k in mine if not output.path_of(outdir, k).exists()]
    if missing:
        total = len(mine)
        _draw(trained, outdir, task, settings, options, missing, batch_size, total)
    else:
        output.claim(outdir, settings)
        print(f"all of {len(mine)} samples are there already")
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("all samples are written")
    if jax.process_index() == 0:
        _collect(trained, outdir, task, seed, npz)
    return outdir / "grid.png"


def _ordered(options):
    """The options for the record, where the order of several scales matters."""
    scale = options["guidance_scale"]
    pairs = [list(pair) for pair in scale.items()] if isinstance(scale, dict) else scale
    return options | {"guidance_scale": pairs}


def _draw(trained, outdir, task, settings, options, missing, batch_size, total):
    """Draws the missing samples batch by batch and writes each as it comes."""
    devices = jax.local_devices()
    mesh = sharding.make_mesh(devices=devices)
    size = -(-min(batch_size, len(missing)) // len(devices)) * len(devices)
    start = time.perf_counter()
    seed = settings["seed"]
    batches = _batches(trained, task, seed, missing, size)
    first = next(batches)
    draw = _lower(trained, task, seed, options, mesh, first[1])
    # Only now: what is wrong shall leave no folder behind.
    output.claim(outdir, settings)
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
        for row, k in enumerate(indices):
            if task.source is not None:
                write_png(outdir / "reference" / f"{k:06d}.png", batch["images"][row])
            write_png(output.path_of(outdir, k), images[row])
            console.advance()
        done += len(indices)
        console.line(f"{done}/{len(missing)} samples")
    console.close()
    seconds = time.perf_counter() - start
    print(f"{len(missing)} samples in {seconds:.1f} s ({len(missing) / seconds:.2f}/s)")


def _batches(trained, task, seed, missing, size):
    """Yields (numbers of samples, their batch on the host)."""
    for first in range(0, len(missing), size):
        indices = missing[first : first + size]
        # The last batch is filled up, so that one program serves all.
        padded = np.resize(np.asarray(indices, np.int32), size)
        yield indices, make_batch(trained, task, seed, padded)


def _chain(first, others):
    yield first
    yield from others


def _lower(trained, task, seed, options, mesh, batch):
    """Traces the program; returns what compiles it to a function of host batches."""
    split = sharding.batch_sharding(mesh)
    draw, weights = make_draw(trained, mesh, task, seed, options)
    try:
        lowered = draw.lower(weights, jax.device_put(batch, split))
    except ValueError as error:
        raise ConfigError(str(error)) from error

    def compiled():
        program = lowered.compile()
        return lambda batch: program(weights, jax.device_put(batch, split))

    return compiled


def _collect(trained, outdir, task, seed, npz):
    """Writes the grid, the contact sheet and the array for evaluators."""
    labels = task.values.get("label")
    # On a path all samples have the same conditions.
    labels = None if task.path else labels and labels.values
    output.write_grid(outdir, task.count, labels, class_names(trained))
    write_contact_sheet(trained, task, seed, outdir)
    if npz:
        conditions = collect_conditions(trained, task, seed)
        output.write_array(outdir, task.count, conditions)
