r"""Memory of an evaluation by its number of images, and the time of its metrics.

    python -m benchmarks.evaluation --folder=/tmp/evaluation --source=npz
    python -m benchmarks.evaluation --folder=/tmp/evaluation --source=folder
    python -m benchmarks.evaluation --folder=/tmp/evaluation --source=drawn \
        --workdir=runs/class
    python -m benchmarks.evaluation --folder=/tmp/evaluation --source=frechet

Images of 256 px in an npz (9.8 GB for 50,000) or as PNG files, or a model's samples, go
through the whole of `ldm-evaluate`, except that a matrix product with Inception's taps
and widths replaces the network, so that 50,000 images take minutes on two cores. Each
number of images is measured in its own process, with its peak of resident memory, and
how much this is above the memory after three batches. With `--kill` another evaluation
is killed after two fifths of the images and resumed.

`frechet` times the trace of the root of two covariances of 2048 features.
"""

import argparse
import json
import multiprocessing
import os
import pathlib
import resource
import shutil
import time

import jax
import numpy as np
from PIL import Image

from ldm_jax import sharding
from ldm_jax.errors import UserError
from ldm_jax.evaluation.compare import Comparison, compare
from ldm_jax.evaluation.drawn import Drawing, Plan, draw_set
from ldm_jax.evaluation.image_sets import open_images
from ldm_jax.evaluation.references import measure_reference
from ldm_jax.metrics.features import FEATURES, Loaded
from ldm_jax.metrics.measurement import Measurement
from ldm_jax.metrics.set_metrics.frechet import frechet
from ldm_jax.metrics.statistics import Moments
from ldm_jax.sampling import load_model
from ldm_jax.sampling.options import complete
from ldm_jax.store import as_path

SIDE, GRID = 256, 16
# Number of different PNG files; the others are links to them.
FILES = 500
BATCH = 100
STATE = "evaluation.partial.npz"


def pictures(start, count):
    """Coarse random images, seeded by the first number: uint8 [n, SIDE, SIDE, 3]."""
    rng = np.random.Generator(np.random.Philox(key=start))
    coarse = rng.integers(0, 256, (count, GRID, GRID, 3), np.uint8)
    return coarse.repeat(SIDE // GRID, axis=1).repeat(SIDE // GRID, axis=2)


def make_npz(path, count):
    """Writes an npz of images, unless it exists."""
    if path.exists():
        return
    shape = (count, SIDE, SIDE, 3)
    part = path.with_suffix(".npy")
    images = np.lib.format.open_memmap(part, "w+", np.uint8, shape)
    for start in range(0, count, BATCH):
        images[start : start + BATCH] = pictures(start, min(BATCH, count - start))
    del images
    np.savez(path, arr_0=np.load(part, mmap_mode="r"))
    part.unlink()


def make_folder(path, count):
    """Writes a folder of PNG files, unless it exists."""
    if path.is_dir():
        return
    path.mkdir(parents=True)
    for number, image in enumerate(pictures(0, min(FILES, count))):
        Image.fromarray(image).save(path / f"{number:06}.png", compress_level=1)
    for number in range(FILES, count):
        os.link(path / f"{number % FILES:06}.png", path / f"{number:06}.png")


def stand_in():
    """A cheap network with Inception's taps and widths."""
    row, rng = FEATURES["inception"], np.random.default_rng(0)
    params = {
        tap: rng.normal(0, 1 / GRID, (GRID * GRID * 3, width)).astype(np.float32)
        for tap, width in row.widths.items()
    }

    def apply(params, images, taps):
        batch, height, width, _ = images.shape
        grid = images.reshape(
            batch, GRID, height // GRID, GRID, width // GRID, 3
        ).astype("float32")
        means = grid.mean(axis=(2, 4)).reshape(batch, -1) / 127.5 - 1
        return {tap: jax.nn.relu(means @ params[tap]) for tap in taps}

    return row._replace(load=lambda path: Loaded(params, "stand-in"), apply=apply)


def gigabytes(name):
    """Resident memory in GB: `VmHWM`, the peak so far, or `VmRSS`, the present one."""
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def open_set(options, count, mesh):
    """Opens the images to measure."""
    folder = pathlib.Path(options.folder)
    if options.source == "drawn":
        trained = load_model(options.workdir)
        plan = Plan(count, batch_size=BATCH)
        sampling = complete(trained, {"num_steps": 1, "guidance_scale": 1.0})
        return draw_set(Drawing(trained, mesh), sampling, plan)[0]
    place = folder / ("images.npz" if options.source == "npz" else "images")
    return open_images(place, mesh, BATCH, count=count)


def evaluate(options, count, outdir):
    """Measures `count` images and prints a line of JSON, or makes the reference."""
    FEATURES["inception"] = stand_in()
    mesh, outdir = sharding.make_mesh(devices=jax.devices()[:1]), as_path(outdir)
    start, images = time.process_time(), open_set(options, count, mesh)
    distances = options.distances.split(",")
    reference = outdir.parent / f"reference_{options.reference}.npz"
    if not reference.exists():
        others = open_set(options, options.reference, mesh)
        measure_reference(others, Measurement(distances, mesh), reference, 10**9)
        return
    batches, early = images.batches, []

    def watched(position):
        for number, batch in enumerate(batches(position)):
            if number == 3:
                early.append(gigabytes("VmRSS"))
            yield batch

    images.batches = watched
    how = Comparison(distances, outdir, {}, reference=str(reference))
    results = compare(images, how, mesh)
    found = {name: result.value for name, result in results.items()}
    peak = gigabytes("VmHWM")
    record = {
        "images": count,
        "peak_gb": round(peak, 3),
        "beyond_gb": round(peak - early[0], 3) if early else None,
        "processor_s": round(time.process_time() - start),
        "results": found,
    }
    print(json.dumps(record), flush=True)
    (pathlib.Path(outdir) / "memory.json").write_text(json.dumps(record))


def job(options, count, outdir):
    """Starts a process that evaluates."""
    process = multiprocessing.get_context("spawn").Process(
        target=evaluate, args=(options, count, str(outdir))
    )
    process.start()
    return process


def finish(process):
    """Waits for a process, and ends the program if it failed."""
    process.join()
    if process.exitcode:
        raise SystemExit(f"an evaluation has ended with {process.exitcode}")


def kill_and_go_on(options, count, folder):
    """Kills an evaluation midway, and resumes it."""
    process, saved = job(options, count, folder), set()
    while process.is_alive() and len(saved) < 0.4 * count / 5_000:
        path = folder / STATE
        saved |= {path.stat().st_mtime_ns} if path.exists() else set()
        time.sleep(0.05)
    process.kill()
    process.join()
    print(f"killed after {len(saved)} states were saved", flush=True)
    if not (folder / STATE).exists():
        raise SystemExit("it was not cut midway")
    finish(job(options, count, folder))


def results_in(folder):
    """The results of an evaluation."""
    return json.loads((folder / "memory.json").read_text())["results"]


def time_frechet():
    """Processor seconds of a Fréchet distance, and of eigenvalues, of 2048 features."""
    sets = []
    for seed in (0, 1):
        moments, rng = Moments(2048), np.random.default_rng(seed)
        for _ in range(10):
            moments.add(rng.standard_normal((512, 2048), np.float32))
        sets.append(moments.statistics()._replace(half=None))
    for name, run in (
        ("eigenvalues", lambda: np.linalg.eigvalsh(sets[0].covariance)),
        ("Fréchet distance", lambda: frechet(*sets)),
    ):
        clock, processor = time.perf_counter(), time.process_time()
        run()
        seconds = time.perf_counter() - clock, time.process_time() - processor
        print("{}: {:.1f} s, {:.1f} s of processor time".format(name, *seconds))


def main():
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    sources = ("npz", "folder", "drawn", "frechet")
    parser.add_argument("--source", choices=sources, required=True)
    parser.add_argument("--folder", required=True)
    parser.add_argument("--workdir", help="second stage that draws")
    parser.add_argument("--counts", default="5000,20000,50000")
    parser.add_argument("--reference", type=int, default=10_000)
    parser.add_argument("--distances", default="fid,kid,inception_score")
    parser.add_argument("--kill", action="store_true")
    options = parser.parse_args()
    if options.source == "frechet":
        time_frechet()
        return
    counts = [int(count) for count in options.counts.split(",")]
    folder, most = pathlib.Path(options.folder), max(*counts, options.reference)
    folder.mkdir(parents=True, exist_ok=True)
    if options.source == "npz":
        make_npz(folder / "images.npz", most)
    elif options.source == "folder":
        make_folder(folder / "images", most)
    results = folder / options.source
    shutil.rmtree(results, ignore_errors=True)
    # The first process only makes the reference.
    finish(job(options, counts[0], results / "whole"))
    for count in counts:
        finish(job(options, count, results / f"{count}"))
    if options.kill:
        kill_and_go_on(options, count, results / "cut")
        same = results_in(results / "cut") == results_in(results / f"{count}")
        print(f"the same digits: {same}")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        raise SystemExit(f"error: {error}") from error
