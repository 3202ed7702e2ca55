"""`ldm-evaluate` of a first stage: measures it, or reconstructs image files."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax

from ldm_jax import peers, sharding
from ldm_jax.batches import Images
from ldm_jax.errors import ConfigError
from ldm_jax.evaluation.first_stage import (
    compile_codec,
    evaluate,
    make_lpips,
    name_outputs,
    reconstruct_file,
)
from ldm_jax.evaluation.published_numbers import TOLERANCE, find_published
from ldm_jax.evaluation.report import (
    compare_published,
    markdown,
    print_table,
    published_record,
    record_of_results,
    sampling_reasons,
)
from ldm_jax.evaluation.scoring import count_unreadable, read_finished
from ldm_jax.files import write_bytes, write_json
from ldm_jax.images import memory_limit, suffix_of, write_png
from ldm_jax.metrics.measurement import Measurement
from ldm_jax.models.first_stages import row_of
from ldm_jax.store import Place
from ldm_jax.trained import FirstStage

_UNITS = {"psnr": "dB"}


class OnImages(NamedTuple):
    """How a first stage is measured.

    Attributes:
      images: Arguments of `batches.Images` that replace keys of the run's data.
      batch_size: Global batch size.
      lpips_weights: File of LPIPS' weights, or two with a comma between, or None.
      metrics: Rows of SET_METRICS.
      weights: Row of FEATURES -> file of its weights.
      published: Row of PUBLISHED to compare with, or None.
    """

    images: Mapping[str, Any]
    batch_size: int
    lpips_weights: str | None
    metrics: Sequence[str]
    weights: Mapping[str, str]
    published: str | None


def reconstruct(
    first: FirstStage,
    outdir: Place,
    paths: Sequence[str],
    tile: int,
    overlap: int,
) -> None:
    """Writes `<name>_reconstructed.png`, or `.npy`, for each image file.

    Args:
      first: A `trained.FirstStage`.
      outdir: Folder of the results.
      paths: Image files.
      tile: Side of a tile in pixels.
      overlap: Pixels by which neighbouring tiles overlap.

    Raises:
      ConfigError: If a file cannot be read, or two would be written to one file.
    """
    pixels = first.pixels
    outputs = name_outputs(paths, outdir, suffix_of(pixels))
    codec, factor = compile_codec(first), first.module.downsampling_factor
    with memory_limit(first.config.data.get("max_image_gb")):
        for path, output in outputs.items():
            print(reconstruct_file(codec, factor, path, output, tile, overlap, pixels))
            peers.progress()


def measure_first_stage(first: FirstStage, outdir: Place, how: OnImages) -> None:
    """Measures a first stage, prints the table and writes the files.

    Args:
      first: A `trained.FirstStage`.
      outdir: Folder of the results.
      how: How it is measured.

    Raises:
      ConfigError: If the images or the weights cannot be read, or do not fit.
      DataError: If no image can be read.
    """
    mesh = sharding.make_mesh()
    published = how.published and find_published(how.published, {})
    images = Images(first.config.data, mesh, how.batch_size, **how.images)
    factor, side = first.module.downsampling_factor, images.image_size
    if side % factor:
        raise ConfigError(
            f"--image_size={side} is not divisible by the first stage's factor "
            f"{factor}; use --image_size={-(-side // factor) * factor}"
        )
    paths = how.lpips_weights or first.config.get("loss", {}).get("lpips_weights")
    if not paths:
        print("LPIPS is left out: its weights were not given, see --lpips_weights")
    perceptual = make_lpips(paths) if paths else None
    measurement = Measurement(how.metrics, mesh, how.weights)
    if first.pixels.describe():
        print(
            f"metrics of sets, LPIPS and image grids are of {first.pixels.describe()}"
        )
    record = first.record | images.record | {"images": images.fingerprint}
    record |= {"networks": measurement.record}
    # Announces that an older metrics.json is replaced while it can still be kept.
    read_finished(outdir / "metrics.json", record)
    batches = images.batches()
    results, grids = evaluate(first, batches, mesh, perceptual, measurement)
    if jax.process_index():
        return
    count = results["psnr"].count
    record |= {"num_images": count, **count_unreadable(images, count)}
    record |= record_of_results(results)
    verdicts, source = [], ""
    if published is not None:
        here = {"image_size": side, "num_images": results["psnr"].count}
        reasons = sampling_reasons(published, here, None)
        verdicts = compare_published(results, published, TOLERANCE, reasons)
        source = published.source
        record["published"] = published_record(how.published, verdicts, source)
    text = markdown(
        how.published or _title(record), results, verdicts, TOLERANCE, source
    )
    write_bytes(outdir / "metrics.md", text.encode())
    write_json(outdir / "metrics.json", record)
    units = _UNITS | row_of(first.module).measures.units
    print_table(_title(record), results, units)
    if count < images.count:
        print(
            f"{images.count - count} of {images.count} images could not be read and "
            "are left out; the log names them"
        )
    if images.left_out:
        more = len(images.left_out) - 1
        others = f", and {more} more, which metrics.json names" if more else ""
        print(f"left out when the data were opened: {images.left_out[0]}{others}")
    if published is not None:
        print(text, end="")
    print(f"numbers: {outdir / 'metrics.json'}")
    for name, grid in grids.items():
        if grid is not None:
            write_png(outdir / f"{name}.png", grid)
            print(f"images: {outdir / name}.png")


def _title(record: Mapping[str, Any]) -> str:
    """What was measured, in a line."""
    average = " (moving average)" if record["weights"] == "ema_params" else ""
    side = record["image_size"]
    return (
        f"{record['workdir']}, step {record['step']}{average}: {record['num_images']} "
        f"images of {side} x {side}, {record['data']}, split {record['split']}"
    )
