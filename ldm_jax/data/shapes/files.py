"""Writes scenes of `shapes` as files, each with all that can be told of it beside it.

    python -m ldm_jax.data.shapes.files --outdir=runs/pictures --num_images=8

writes 00000.png, 00000.txt, 00000.json, 00000.segmentation.png, 00000.depth.png,
00000.mask.png, 00000.low_res.png and so on: what `sample.py` takes, as files or as the
whole folder, and what `data.source=folder` trains on (`sidecars.py`). They are the
held-out scenes that `python -m ldm_jax.data.shapes` prepares.
"""

import argparse
import json
import os
import pathlib
import sys

import numpy as np
from PIL import Image

from ldm_jax.data.degradation import degrade
from ldm_jax.data.masks import draw_mask
from ldm_jax.data.shapes import examples, scenes
from ldm_jax.data.sidecars import suffix_of


def write(
    outdir,
    num_images=8,
    image_size=32,
    max_shapes=examples.MAX_SHAPES,
    split="validation",
    factor=4,
    seed=0,
):
    """Writes the first scenes of a split.

    Args:
      outdir: Folder, made if need be; files of the same names are replaced.
      num_images: How many, >= 1.
      image_size: Side in pixels, >= 16 and divisible by `factor`.
      max_shapes: Largest number of shapes in a scene, as in the data set.
      split: Name of the split of the data set.
      factor: Size of a picture over that of its small version, 2 to 8.
      seed: Seed of the data set.

    Raises:
      ValueError: If an argument is out of range.
    """
    examples.check_ranges(
        num_images=num_images,
        image_size=image_size,
        max_shapes=max_shapes,
        factor=factor,
        seed=seed,
    )
    if image_size % factor:
        raise ValueError(f"image_size={image_size} does not divide by factor={factor}")
    folder = pathlib.Path(outdir).expanduser()
    os.makedirs(folder, exist_ok=True)
    for index in range(num_images):
        example = examples.draw_example(seed, split, index, image_size, max_shapes)
        rng = np.random.default_rng([seed, index])
        stem = str(folder / f"{index:05d}")
        Image.fromarray(example["image"]).save(stem + ".png")
        for key, map_ in _maps(example, factor, rng).items():
            Image.fromarray(map_).save(stem + suffix_of(key))
        for key, text in _texts(example).items():
            pathlib.Path(stem + suffix_of(key)).write_text(text + "\n", "utf-8")


def _maps(example, factor, rng):
    image = example["image"]
    return {
        "segmentation": example["segmentation"],
        "depth": example["depth"],
        "mask": np.uint8(255) * draw_mask(*image.shape[:2], rng),
        "low_res": degrade(image, factor, "bicubic", rng),
    }


def _texts(example):
    names = [scenes.CLASS_NAMES[label] for label in example["box_labels"]]
    boxes = np.round(example["boxes"].astype(float), 4).tolist()
    pairs = zip(names, boxes, strict=True)
    layout = [{"label": name, "box": box} for name, box in pairs]
    return {"caption": example["caption"], "boxes": json.dumps(layout)}


def main(argv=None):
    """Writes files from the command line; see the module's docstring."""
    parser = argparse.ArgumentParser(
        prog="python -m ldm_jax.data.shapes.files", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--outdir", required=True)
    parser.add_argument("--num_images", type=int, default=8)
    parser.add_argument("--image_size", type=int, default=32)
    parser.add_argument("--max_shapes", type=int, default=examples.MAX_SHAPES)
    parser.add_argument("--split", default="validation")
    parser.add_argument("--factor", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    try:
        write(**vars(arguments))
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    print(f"wrote {arguments.num_images} pictures to {arguments.outdir}")


if __name__ == "__main__":
    main()
