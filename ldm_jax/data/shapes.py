"""Prepares the embedded data set `shapes`, of any size, without TensorFlow.

    python -m ldm_jax.data.shapes --data_dir ~/tensorflow_datasets --image_size 64 \
        --num_train 10000 --num_validation 500

writes `shapes/64`, a TFDS data set in array_record files. Example i of a split depends
on (seed, split, i) alone: a larger copy begins with the smaller one, and another
image size shows the same scenes.
"""

import argparse
import contextlib
import io
import json
import os
import pathlib
import shutil
import sys
import tempfile
import time
import zlib

import numpy as np

from ldm_jax.data import captions, scenes

VERSION = "1.0.0"
MAX_SHAPES = 4


def example(seed, split, index, image_size, max_shapes=MAX_SHAPES):
    """Draws example `index` of a split.

    Args:
      seed: Seed of the data set, >= 0.
      split: Name of the split.
      index: Position in the split, >= 0; the class is `index` modulo their number.
      image_size: Side S of the image in pixels.
      max_shapes: Largest number of shapes in a scene.

    Returns:
      Dict of "image" uint8 [S, S, 3]; "label" int, the class of the main shape;
      "caption" str; "segmentation" uint8 [S, S], 0 for the ground and k + 1 for class
      k; "depth" uint8 [S, S], distance with the ground at 255; "boxes" float32 [n, 4]
      as (ymin, xmin, ymax, xmax) in [0, 1] and "box_labels" int64 [n], main shape
      first.
    """
    rng = np.random.default_rng([seed, zlib.crc32(split.encode()), index])
    label = index % len(scenes.CLASS_NAMES)
    scene = scenes.sample_scene(rng, scenes.CLASS_NAMES[label], max_shapes)
    drawing = scenes.draw_scene(scene, image_size)
    kinds = [scenes.CLASS_NAMES.index(shape.kind) for shape in drawing.visible]
    return {
        "image": drawing.image,
        "label": label,
        "caption": captions.describe(scene, drawing),
        "segmentation": drawing.segmentation,
        "depth": drawing.depth,
        "boxes": drawing.boxes,
        "box_labels": np.asarray(kinds),
    }


def config_name(image_size, max_shapes=MAX_SHAPES):
    """Name after the slash: "64", "64_single" (one shape each) or "64_max2"."""
    if max_shapes == MAX_SHAPES:
        return str(image_size)
    return (
        f"{image_size}_single" if max_shapes == 1 else f"{image_size}_max{max_shapes}"
    )


def metadata(config):
    """What a copy must have in common with what is asked for, to be that copy."""
    fields = ("image_size", "num_train", "num_validation", "max_shapes", "seed")
    return {field: getattr(config, field) for field in fields}


def prepare(
    data_dir=None,
    image_size=64,
    num_train=10_000,
    num_validation=500,
    max_shapes=MAX_SHAPES,
    seed=0,
    overwrite=False,
):
    """Writes the data set, unless the very same is there.

    It is written beside its place and then moved there whole, so that an interrupted
    call leaves nothing that could be taken for a data set.

    Args:
      data_dir: Root of the TFDS data sets; None is TFDS's own default.
      image_size: Side in pixels, >= 16.
      num_train: Number of training examples, >= 1.
      num_validation: Number of validation examples; 0 leaves the split out.
      max_shapes: Largest number of shapes in a scene, 1 to 4.
      seed: Seed of the scenes, >= 0.
      overwrite: Replace a copy that differs, instead of refusing to.

    Returns:
      (path, written): folder of the data set, and whether it was written now.

    Raises:
      ValueError: If an argument is out of range, or a copy is there that differs.
    """
    check_ranges(
        image_size=image_size,
        num_train=num_train,
        num_validation=num_validation,
        max_shapes=max_shapes,
        seed=seed,
    )
    import tensorflow_datasets as tfds

    from ldm_jax.data import shapes_builder

    config = shapes_builder.ShapesConfig(
        name=config_name(image_size, max_shapes),
        image_size=image_size,
        num_train=num_train,
        num_validation=num_validation,
        max_shapes=max_shapes,
        seed=seed,
    )
    data_dir = data_dir and os.path.expanduser(data_dir)
    with _quiet():
        builder = shapes_builder.Shapes(
            config=config, data_dir=data_dir, file_format="array_record"
        )
    path = pathlib.Path(builder.data_dir)
    if path.exists():
        found = _found(path)
        if found == metadata(config):
            return path, False
        if not overwrite:
            raise ValueError(_explain(path, found, metadata(config)))
        _remove(path)
    tfds.disable_progress_bar()
    with _quiet(), tempfile.TemporaryDirectory() as downloads:
        builder.download_and_prepare(download_dir=downloads)
    return path, True


@contextlib.contextmanager
def _quiet():
    """Silences TFDS, which speaks of downloads and of an unknown config."""
    from absl import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(verbosity)


# Arguments of what writes scenes -> least and largest value; None is any.
_RANGES = {
    "image_size": (16, 4096),
    "num_train": (1, None),
    "num_validation": (0, None),
    "num_images": (1, None),
    "max_shapes": (1, MAX_SHAPES),
    "factor": (2, 8),
    "seed": (0, None),
}


def check_ranges(**arguments):
    """Raises ValueError if an argument, by its name in _RANGES, is out of range."""
    for name, value in arguments.items():
        least, most = _RANGES[name]
        if value < least or (most is not None and value > most):
            limit = f">= {least}" if most is None else f"from {least} to {most}"
            raise ValueError(f"{name} must be {limit}, got {value}")


def _found(path):
    """Reads what a prepared copy holds; {} where it does not say."""
    try:
        return json.loads((path / "metadata.json").read_text())
    except (OSError, ValueError):
        return {}


def _explain(path, found, wanted):
    changes = ", ".join(
        f"{name}={found.get(name, 'unknown')} instead of {value}"
        for name, value in wanted.items()
        if found.get(name) != value
    )
    return (
        f"{path} was prepared with {changes}; give --overwrite to replace it, or "
        "another --data_dir"
    )


def _remove(path):
    """Takes a data set away in one move first, so that no half of it stays in place."""
    doomed = path.with_name(f"incomplete.{os.getpid()}_{path.name}")
    path.rename(doomed)
    shutil.rmtree(doomed)


def main(argv=None):
    """Prepares the data set from the command line; see the module's docstring."""
    parser = argparse.ArgumentParser(
        prog="python -m ldm_jax.data.shapes", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--data_dir", help="default: TFDS's own")
    parser.add_argument("--image_size", type=int, default=64)
    parser.add_argument("--num_train", type=int, default=10_000)
    parser.add_argument("--num_validation", type=int, default=500)
    parser.add_argument("--max_shapes", type=int, default=MAX_SHAPES)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--overwrite", action="store_true")
    arguments = parser.parse_args(argv)
    start = time.perf_counter()
    try:
        path, written = prepare(**vars(arguments))
    except ValueError as error:
        sys.exit(f"error: {error}")
    name = f"shapes/{config_name(arguments.image_size, arguments.max_shapes)}"
    size = f"{arguments.num_train:,} + {arguments.num_validation:,} images"
    if written:
        seconds = time.perf_counter() - start
        print(f"{name}: wrote {size} to {path} in {seconds:.0f} s")
    else:
        print(f"{name}: {size} already prepared in {path}")


if __name__ == "__main__":
    main()
