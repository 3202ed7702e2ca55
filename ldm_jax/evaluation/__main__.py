"""Measures a trained first stage, or sends pictures through it.

    python -m ldm_jax.evaluation --workdir=runs/autoencoder --outdir=runs/evaluation
    python -m ldm_jax.evaluation --workdir=runs/autoencoder --outdir=runs/pictures \
        --image=large.jpg --tile=512

The first goes over the images that the run held out, or those of --data. It prints
PSNR, SSIM, L1, with --lpips_weights LPIPS, and the use of a codebook, and writes
`metrics.json` and `reconstructions.png`, images left and reconstructions right. The
second writes what comes back of picture files of any size.
"""

import json
import os
import pathlib

from absl import app, flags

from ldm_jax import cli
from ldm_jax.errors import ConfigError

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the trained first stage.")
_OUTDIR = flags.DEFINE_string("outdir", None, "Where numbers and pictures go.")
_STEP = flags.DEFINE_integer("step", None, "Checkpoint to use; the newest by default.")
_RAW = flags.DEFINE_bool("raw", False, "The weights themselves, not their average.")
_DATA = flags.DEFINE_string(
    "data", None, "Folder of images or name of a TensorFlow data set; else the run's."
)
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Where prepared data sets lie.")
_SPLIT = flags.DEFINE_string(
    "split", None, "Split of the data; the held-out one, or all of a folder."
)
_IMAGE_SIZE = flags.DEFINE_integer(
    "image_size", None, "Side in pixels; the run's by default.", lower_bound=16
)
_NUM_IMAGES = flags.DEFINE_integer(
    "num_images", None, "So many of the first images; all by default.", lower_bound=1
)
_BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", 16, "Images at a time, over all devices.", lower_bound=1
)
_LPIPS = flags.DEFINE_string(
    "lpips_weights", None, "File of LPIPS' weights; those of the run by default."
)
_IMAGE = flags.DEFINE_list("image", None, "Picture files to reconstruct at full size.")
_TILE = flags.DEFINE_integer("tile", 512, "With --image: side of a tile in pixels.")
_OVERLAP = flags.DEFINE_integer(
    "overlap", 128, "With --image: pixels that neighbouring tiles share."
)
flags.mark_flags_as_required(["workdir", "outdir"])

_UNITS = {"psnr": "dB"}


def main(argv):
    """Starts JAX and evaluates."""
    del argv
    cli.start_jax()
    from ldm_jax.trained import load_first_stage

    first = load_first_stage(
        _WORKDIR.value, _STEP.value, average=not _RAW.value, key="--workdir"
    )
    if first.config is None:
        raise ConfigError("--workdir=identity: it gives images back as they are")
    outdir = pathlib.Path(_OUTDIR.value)
    outdir.mkdir(parents=True, exist_ok=True)
    if _IMAGE.value:
        _reconstruct(first, outdir)
    else:
        _evaluate(first, outdir)


def _reconstruct(first, outdir):
    """Writes `<name>_reconstructed.png` for each picture."""
    from ldm_jax.evaluation.first_stage import (
        make_codec,
        name_outputs,
        reconstruct_file,
    )

    outputs = name_outputs(_IMAGE.value, outdir)
    codec, factor = make_codec(first), first.module.downsampling_factor
    for path, output in outputs.items():
        print(
            reconstruct_file(codec, factor, path, output, _TILE.value, _OVERLAP.value)
        )


def _evaluate(first, outdir):
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
    paths = _LPIPS.value or first.config.get("loss", {}).get("lpips_weights")
    if not paths:
        print("LPIPS is left out: its weights were not given, see --lpips_weights")
    perceptual = make_lpips(paths) if paths else None
    metrics, count, grid = evaluate(first, images.batches(), mesh, perceptual)
    if jax.process_index():
        return
    record = first.record | images.record | {"num_images": count, "metrics": metrics}
    temporary = outdir / "metrics.tmp"
    temporary.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, outdir / "metrics.json")
    _print_table(record, _UNITS | row_of(first.module).measures.units)
    print(f"numbers: {outdir / 'metrics.json'}")
    if grid is not None:
        write_png(outdir / "reconstructions.png", grid)
        print(f"pictures: {outdir / 'reconstructions.png'}")


def _print_table(record, units):
    average = " (moving average)" if record["weights"] == "ema_params" else ""
    side = record["image_size"]
    print(
        f"{record['workdir']}, step {record['step']}{average}: {record['num_images']} "
        f"images of {side} x {side}, {record['data']}, split {record['split']}"
    )
    for name, value in record["metrics"].items():
        print(f"  {name:<20}{value:>10.4f} {units.get(name, '')}".rstrip())


if __name__ == "__main__":
    app.run(cli.one_line_errors(main), flags_parser=cli.parse_flags)
