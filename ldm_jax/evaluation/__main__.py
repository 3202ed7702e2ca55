r"""Measures a trained first stage, or sends images through it.

    python -m ldm_jax.evaluation --workdir=runs/autoencoder --outdir=runs/evaluation
    python -m ldm_jax.evaluation --workdir=runs/autoencoder --outdir=runs/images \
        --image=large.jpg --tile=512

The first goes over the images that the run held out, or those of --data. It prints
PSNR, SSIM, L1, with --lpips_weights LPIPS, what the kind of first stage says of itself,
as the use of a codebook, and with --distances distances between images and
reconstructions as sets. It writes `metrics.json` and `reconstructions.png`, images left
and reconstructions right. The second writes the reconstructions of image files of any
size.
"""

import pathlib
from typing import Any

from absl import flags

from ldm_jax import cli
from ldm_jax.errors import ConfigError
from ldm_jax.files import check_outdir, write_json

with cli.group("what to evaluate"):
    _WORKDIR = cli.shared("workdir", required=True)
    _STEP = cli.shared("step")
    _EMA = cli.shared("ema")
    _LPIPS_WEIGHTS = cli.shared("lpips_weights")
    _DISTANCES = flags.DEFINE_list(
        "distances",
        [],
        "Rows of DISTANCES, as frechet, between images and reconstructions as sets.",
    )

with cli.group("data"):
    _DATA = flags.DEFINE_string(
        "data",
        None,
        "Folder of images or name of a TensorFlow data set; the run's if unset.",
    )
    _DATA_DIR = cli.shared("data_dir")
    _MAX_IMAGE_GB = cli.shared("max_image_gb")
    _SPLIT = cli.shared("split")
    _IMAGE_SIZE = cli.shared("image_size")
    _NUM_IMAGES = cli.shared("num_images")
    _BATCH_SIZE = cli.shared("batch_size")

with cli.group("images of any size"):
    _IMAGE = flags.DEFINE_list("image", None, "Image files to reconstruct.")
    _TILE = flags.DEFINE_integer("tile", 512, "Side of a tile in pixels.")
    _OVERLAP = flags.DEFINE_integer(
        "overlap", 128, "Pixels that neighbouring tiles have in common."
    )

with cli.group("output"):
    _OUTDIR = cli.shared("outdir", required=True)

cli.renamed("raw", "ema", use="--noema", translate=lambda raw: not raw)

_UNITS = {"psnr": "dB"}


def _main(argv: list[str]) -> None:
    """Evaluates."""
    del argv
    from ldm_jax.config import choose
    from ldm_jax.metrics.distances import DISTANCES
    from ldm_jax.trained import check_same_everywhere, load_first_stage

    # Before the model: what is misspelt shall not wait for it.
    check_outdir(_OUTDIR.value)
    for name in _DISTANCES.value:
        choose(DISTANCES, name, "--distances")
    if _OVERLAP.value > _TILE.value // 2:
        raise ConfigError(
            f"--overlap={_OVERLAP.value} is more than half of --tile={_TILE.value}"
        )
    first = load_first_stage(
        _WORKDIR.value, _STEP.value, average=_EMA.value, key="--workdir"
    )
    check_same_everywhere(first)
    if first.config is None:
        raise ConfigError("--workdir=identity: it gives images back as they are")
    if _MAX_IMAGE_GB.value is not None:
        first.config.data.max_image_gb = _MAX_IMAGE_GB.value
    outdir = pathlib.Path(_OUTDIR.value)
    outdir.mkdir(parents=True, exist_ok=True)
    if _IMAGE.value:
        _reconstruct(first, outdir)
    else:
        _evaluate(first, outdir)


def _reconstruct(first: Any, outdir: pathlib.Path) -> None:
    """Writes `<name>_reconstructed.png` for each image file."""
    from ldm_jax import peers
    from ldm_jax.evaluation.first_stage import (
        compile_codec,
        name_outputs,
        reconstruct_file,
    )
    from ldm_jax.images import memory_limit

    outputs = name_outputs(_IMAGE.value, outdir)
    codec, factor = compile_codec(first), first.module.downsampling_factor
    tiles = _TILE.value, _OVERLAP.value
    with memory_limit(first.config.data.get("max_image_gb")):
        for path, output in outputs.items():
            print(reconstruct_file(codec, factor, path, output, *tiles))
            peers.progress()


def _evaluate(first: Any, outdir: pathlib.Path) -> None:
    """Prints the table and writes the files."""
    import jax

    from ldm_jax import sharding
    from ldm_jax.batches import Images
    from ldm_jax.evaluation.first_stage import evaluate, make_lpips
    from ldm_jax.images import write_png
    from ldm_jax.models.first_stages import row_of

    mesh = sharding.make_mesh()
    images = Images(
        first.config.data,
        mesh,
        _BATCH_SIZE.value,
        name=_DATA.value,
        data_dir=_DATA_DIR.value,
        split=_SPLIT.value,
        image_size=_IMAGE_SIZE.value,
        num_images=_NUM_IMAGES.value,
    )
    factor, side = first.module.downsampling_factor, images.image_size
    if side % factor:
        raise ConfigError(
            f"--image_size={side} is not divisible by the first stage's factor "
            f"{factor}; use --image_size={-(-side // factor) * factor}"
        )
    paths = _LPIPS_WEIGHTS.value or first.config.get("loss", {}).get("lpips_weights")
    if not paths:
        print("LPIPS is left out: its weights were not given, see --lpips_weights")
    perceptual = make_lpips(paths) if paths else None
    results, pictures = evaluate(
        first, images.batches(), mesh, perceptual, _DISTANCES.value
    )
    if jax.process_index():
        return
    record = first.record | images.record
    record |= {
        "num_images": results["psnr"].count,
        "metrics": {name: result.value for name, result in results.items()},
        "details": {name: result._asdict() for name, result in results.items()},
    }
    write_json(outdir / "metrics.json", record)
    _print_table(record, _UNITS | row_of(first.module).measures.units)
    print(f"numbers: {outdir / 'metrics.json'}")
    for name, grid in pictures.items():
        if grid is not None:
            write_png(outdir / f"{name}.png", grid)
            print(f"images: {outdir / name}.png")


def _print_table(record: dict[str, Any], units: dict[str, str]) -> None:
    average = " (moving average)" if record["weights"] == "ema_params" else ""
    side = record["image_size"]
    print(
        f"{record['workdir']}, step {record['step']}{average}: {record['num_images']} "
        f"images of {side} x {side}, {record['data']}, split {record['split']}"
    )
    for name, value in record["metrics"].items():
        print(f"  {name:<20}{value:>10.4f} {units.get(name, '')}".rstrip())


def main() -> None:
    """Runs the command."""
    cli.run(_main, __doc__, lower="--batch_size, --image_size or --tile")


if __name__ == "__main__":
    main()
