"""Writes scenes of `shapes` as files, each with the conditions it gives beside it.

    python -m ldm_jax.data.shapes.files --outdir=runs/images --num_images=8

writes 00000.png, 00000.txt, 00000.json, 00000.segmentation.png, 00000.depth.png,
00000.mask.png, 00000.low_res.png and so on: what `sample.py` takes, as files or as the
whole folder, and what `data.source=folder` trains on (`sidecars.py`). They are the
held-out scenes that `python -m ldm_jax.data.shapes` prepares.
"""

import json
import os

import numpy as np
from absl import flags

from ldm_jax import cli
from ldm_jax.data.degradation import degrade
from ldm_jax.data.masks import random_mask
from ldm_jax.data.modalities import MODALITIES
from ldm_jax.data.shapes import examples, scenes
from ldm_jax.errors import ConfigError
from ldm_jax.files import check_outdir, write_bytes
from ldm_jax.images import write_png
from ldm_jax.store import local_only


def write(
    outdir: str | os.PathLike[str],
    num_images: int = 8,
    image_size: int = 32,
    max_shapes: int = examples.MAX_SHAPES,
    split: str = "validation",
    factor: int = 4,
    seed: int = 0,
) -> None:
    """Writes the first scenes of a split as files.

    Args:
      outdir: Folder, created if needed; files of the same names are replaced.
      num_images: How many, >= 1.
      image_size: Side in pixels, >= 16 and divisible by `factor`.
      max_shapes: Largest number of shapes in a scene, as in the data set.
      split: Name of the split of the data set.
      factor: Side of an image over that of its small version, 2 to 8.
      seed: Seed of the data set.

    Raises:
      ConfigError: If an argument is out of range.
    """
    examples.check_ranges(
        num_images=num_images,
        image_size=image_size,
        max_shapes=max_shapes,
        factor=factor,
        seed=seed,
    )
    if image_size % factor:
        raise ConfigError(f"image_size={image_size} does not divide by factor={factor}")
    folder = local_only(outdir, "--outdir", "write there and copy")
    check_outdir(folder)
    os.makedirs(folder, exist_ok=True)
    for index in range(num_images):
        example = examples.draw_example(seed, split, index, image_size, max_shapes)
        rng = np.random.default_rng([seed, index])
        stem = str(folder / f"{index:05d}")
        write_png(stem + ".png", example["image"])
        for name, map_ in _maps(example, factor, rng).items():
            write_png(stem + MODALITIES[name].suffix, map_)
        for name, text in _texts(example).items():
            write_bytes(stem + MODALITIES[name].suffix, (text + "\n").encode())


def _maps(example, factor, rng):
    image = example["image"]
    return {
        "segmentation": example["segmentation"],
        "depth": example["depth"],
        "mask": np.uint8(255) * random_mask(*image.shape[:2], rng),
        "low_res": degrade(image, factor, "bicubic", rng),
    }


def _texts(example):
    names = [scenes.CLASS_NAMES[label] for label in example["box_labels"]]
    boxes = np.round(example["boxes"].astype(float), 4).tolist()
    pairs = zip(names, boxes, strict=True)
    layout = [{"label": name, "box": box} for name, box in pairs]
    return {"caption": example["caption"], "layout": json.dumps(layout)}


def main() -> None:
    """Runs the command; its flags are defined here, as others import this module."""
    with cli.group("what to draw"):
        shapes = [
            cli.shared("num_images", default=8),
            cli.shared("image_size", default=32),
            cli.shared("max_shapes"),
            cli.shared("split", default="validation"),
            flags.DEFINE_integer(
                "factor", 4, "Downsampling factor of the small images, 2 to 8."
            ),
            cli.shared("seed"),
        ]
    with cli.group("output"):
        outdir = cli.shared("outdir", required=True)

    def command(argv):
        del argv
        values = {holder.name: holder.value for holder in shapes}
        write(outdir.value, **values)
        print(f"wrote {values['num_images']} images to {outdir.value}")

    cli.run(command, __doc__, uses_jax=False, lower="--image_size")


if __name__ == "__main__":
    main()
