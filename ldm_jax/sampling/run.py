"""A sampling run: from flags to files of images, resumable, the same on any devices.

Sample k is a function of the weights, the settings, the seed and k.  Every process of a
job draws its own part on its own devices; they only exchange their settings, to check
that these agree.
"""

import contextlib
import dataclasses
import itertools
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax

from ldm_jax import peers
from ldm_jax.config import choose
from ldm_jax.console import Console
from ldm_jax.diffusion.guidance import GuidanceOptions
from ldm_jax.diffusion.sample_options import SampleOptions
from ldm_jax.errors import ConfigError
from ldm_jax.files import check_outdir
from ldm_jax.images import suffix_of, write_image
from ldm_jax.lock import hold_outdir, require_held
from ldm_jax.sampling import output, settings
from ldm_jax.sampling.array import write_array
from ldm_jax.sampling.conditions import warn_of_crops
from ldm_jax.sampling.options import RunOptions, check, complete, record_of
from ldm_jax.sampling.output import write_contact_sheet
from ldm_jax.sampling.program import fetch
from ldm_jax.sampling.sample_files import OUTPUTS
from ldm_jax.sampling.sample_pixels import PIXELS, settings_of
from ldm_jax.sampling.sampler import Job, Sampler
from ldm_jax.sampling.task import class_names, make_task, warn_of_cut, warn_of_turns
from ldm_jax.store import Place, as_path, exists, for_each
from ldm_jax.trained import Trained

# Seconds between lines of progress.
_QUIET = 10.0


def run(
    trained: Trained | Sampler,
    outdir: Any,
    flag_values: Mapping[str, Sequence[str] | None] | None = None,
    run_options: RunOptions = RunOptions(),
    sample_options: SampleOptions | None = None,
) -> Place:
    """Draws those of samples 0 to `num_samples` - 1 that `outdir` does not have yet.

    Args:
      trained: A Trained; or a Sampler, which keeps its programs.
      outdir: Folder of the images.
      flag_values: The conditions: flag -> list of strings, such as labels, prompts or
        files; see `flag_values.flag_rows`.
      run_options: What to draw.
      sample_options: How to sample; None uses the config's, see `options.complete`.

    Returns:
      Path of the grid.

    Raises:
      ConfigError: If an option is wrong or the folder holds samples of other settings.
      WorkdirInUse: If another command works in the folder.
    """
    sampler = trained if isinstance(trained, Sampler) else Sampler(trained)
    trained, options = sampler.trained, sample_options
    if options is None:
        options = complete(trained, invert=run_options.invert)
    else:
        check(trained, options, run_options.invert)
    if run_options.show_unguided and not options.guidance.acts:
        raise ConfigError(
            "--show_unguided: these samples are not guided; give --guidance_scale, or "
            "leave the flag out"
        )
    outdir = as_path(outdir)
    check_outdir(outdir / "samples")
    task = make_task(trained, flag_values or {}, run_options, options)
    warn_of_crops(trained, task)
    warn_of_turns(task)
    warn_of_cut(trained, task)
    make = choose(OUTPUTS, run_options.output, "--output")
    store = make(outdir, trained, task, run_options.shard_size)
    job = Job(task, run_options.seed, options)
    record = _settings(trained, store.record, job)
    _compare_processes({"num_samples": task.count} | record)
    todo = _Run(sampler, outdir, store, run_options, job, record)
    count, parts = store.missing(jax.process_index(), jax.process_count())
    with contextlib.ExitStack() as stack:
        if parts:
            _draw(todo, parts, count, stack)
        else:
            _claim(todo, stack, begun=count > 0)
            print(f"all of {count} samples are there already")
        peers.gather("all samples are written")
        if jax.process_index() == 0:
            _collect(todo)
    return todo.outdir / "grid.png"


class _Run(NamedTuple):
    """Values that the functions of a run share."""

    sampler: Sampler
    outdir: Place
    store: Any
    run_options: RunOptions
    job: Job
    record: Mapping[str, Any]


def _claim(run, stack, begun):
    """Locks the folder, and records the settings or compares them with those there."""
    stack.enter_context(hold_outdir(run.outdir, run.run_options.take_outdir))
    # A process knows only its own samples.
    begun = str(True) in peers.gather(str(begun))
    settings.claim(run.outdir, run.record, (PIXELS,), begun)


def _compare_processes(asked):
    """Raises ConfigError if a process has other settings than process 0."""
    # Hashes, as the messages between processes must be short.
    digests = {key: settings.digest_json(value)[:8] for key, value in asked.items()}
    first, *others = map(json.loads, peers.gather(json.dumps(digests)))
    for process, other in enumerate(others, 1):
        difference = settings.first_difference(first, other)
        if difference is not None:
            raise ConfigError(
                f"process {process} is to draw other samples than process 0: they do "
                f"not agree in {difference[0]}; give all of them the same flags and "
                "files"
            )


def _settings(trained, form, job):
    """Settings common to all samples of a folder, for `settings.json`."""
    return (
        form
        | settings_of(trained.pixels)
        | {
            "checkpoint": trained.source,
            "weights": trained.weights,
            "first_stage": trained.first_stage,
            "decoder": trained.decoder,
            "classifier": trained.classifier and trained.classifier.source,
            "lpips": trained.lpips and settings.digest(trained.lpips),
            "seed": job.seed,
            "conditions": job.task.record,
            "options": record_of(job.options, trained.model),
        }
    )


def _draw(run, parts, total, stack):
    """Draws the missing samples batch by batch, and writes each part."""
    sampler, job, missing = run.sampler, run.job, sum(map(len, parts))
    size = run.store.batch_size(run.run_options.batch_size, missing)
    start = time.perf_counter()
    first = next(sampler.batches(job, parts[0], size))
    compiled = sampler.lower(job, first[1])
    # Only now, so that errors before leave no folder behind.
    _claim(run, stack, begun=missing < total)
    if missing < total:
        print(f"{total - missing} of {total} samples are there already")
    compiled()
    console = Console(missing, 0)
    if sampler.attentions:
        console.line(f"attention: {sampler.attentions}")
    drawn = sampler.draw(job, parts, size)
    drawn = _watched(run, drawn, console, (missing, size, start))
    for part in parts:
        # All batches of this part; no batch is in two parts.
        count = -(-len(part) // sampler.round_up(size))
        run.store.write(part, itertools.islice(drawn, count))
    console.close()
    seconds = time.perf_counter() - start
    print(f"{missing} samples in {seconds:.1f} s ({missing / seconds:.2f}/s)")


def _watched(run, drawn, console, begun):
    """Yields the batches, reports progress, and writes reference images of the data."""
    (missing, size, start), done, said = begun, 0, time.monotonic()
    pixels = run.sampler.trained.pixels
    for indices, batch, images in drawn:
        if not done:
            seconds = time.perf_counter() - start
            console.line(f"first batch of {size}, with compilation: {seconds:.1f} s")
        if run.job.task.source is not None:
            folder, rows = run.outdir / "reference", range(len(indices))

            def write(row, indices=indices, images=batch["images"], folder=folder):
                name = f"{indices[row]:06d}{suffix_of(pixels)}"
                write_image(folder / name, images[row], pixels)

            for _ in for_each(write, rows, run.outdir):
                pass
        # Before the yield: after the last batch the generator is not resumed.
        done += len(indices)
        console.advance(len(indices))
        require_held()
        if done == missing or time.monotonic() - said > _QUIET:
            console.line(f"{done}/{missing} samples")
            said = time.monotonic()
        yield indices, images


def _draw_unguided(run):
    """Draws the samples of the contact sheet again, unguided, from the same noise."""
    shown = range(min(run.job.task.count, output.MOST_ON_SHEET))
    pixels = run.sampler.trained.pixels
    suffix = suffix_of(pixels)
    paths = {k: output.unguided_path_of(run.outdir, k, suffix) for k in shown}
    missing = [k for k, path in paths.items() if not exists(path)]
    if not missing:
        return
    options = dataclasses.replace(run.job.options, guidance=GuidanceOptions())
    job, start = run.job._replace(options=options), time.perf_counter()
    size = min(run.run_options.batch_size, len(missing))
    for indices, batch in run.sampler.batches(job, missing, size):
        # Negative prompts have no effect without guidance.
        batch = batch | {"negative": {}}
        images = fetch(run.sampler.lower(job, batch)()(batch), indices)
        for k, image in zip(indices, images, strict=True):
            write_image(paths[k], image, pixels)
        peers.progress()
    seconds = time.perf_counter() - start
    print(f"{len(missing)} of them without guidance in {seconds:.1f} s")


def _collect(run):
    """Writes the grid, the contact sheet and the array for evaluators."""
    trained, task, outdir = run.sampler.trained, run.job.task, run.outdir
    run.store.tidy()
    labels = task.values.get("label")
    # On a path all samples have the same conditions.
    labels = None if task.path else labels and labels.values
    names, pixels = class_names(trained), trained.pixels
    output.write_grid(outdir, run.store, labels, names, pixels)
    if run.run_options.show_unguided:
        _draw_unguided(run)
    write_contact_sheet(trained, task, run.job.seed, outdir, run.store)
    if run.run_options.npz:
        write_array(trained, task, run.job.seed, outdir, run.store)
