"""Draws example i of the built-in data set `shapes`; names and checks its configs."""

import zlib
from typing import Any

import numpy as np

from ldm_jax.data.shapes import captions, scenes
from ldm_jax.errors import ConfigError

VERSION = "1.0.0"

MAX_SHAPES = 4


def draw_example(
    seed: int,
    split: str,
    index: int,
    image_size: int,
    max_shapes: int = MAX_SHAPES,
) -> dict[str, Any]:
    """Draws example `index` of a split.

    Args:
      seed: Seed of the data set, >= 0.
      split: Name of the split.
      index: Position in the split, >= 0; the class is `index` modulo the number of
        classes.
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


def config_name(image_size: int, max_shapes: int = MAX_SHAPES) -> str:
    """Returns the config name of a copy of the data set.

    Args:
      image_size: Side of its images in pixels.
      max_shapes: Largest number of shapes in a scene.

    Returns:
      The name after the slash: "64", "64_single" (one shape each) or "64_max2".
    """
    if max_shapes == MAX_SHAPES:
        return str(image_size)
    return (
        f"{image_size}_single" if max_shapes == 1 else f"{image_size}_max{max_shapes}"
    )


def metadata(config: Any) -> dict[str, int]:
    """Collects the fields of a config that a copy of it must have in common with it.

    Args:
      config: A `builder.ShapesConfig`.

    Returns:
      Dict of field -> value.
    """
    fields = ("image_size", "num_train", "num_validation", "max_shapes", "seed")
    return {field: getattr(config, field) for field in fields}


# Arguments of functions that write scenes -> smallest and largest value, None for any.
_RANGES = {
    "image_size": (16, 4096),
    "num_train": (1, None),
    "num_validation": (0, None),
    "num_images": (1, None),
    "max_shapes": (1, MAX_SHAPES),
    "factor": (2, 8),
    "seed": (0, None),
}


def check_ranges(**arguments: int) -> None:
    """Checks the ranges of arguments.

    Args:
      **arguments: Row of _RANGES -> value.

    Raises:
      ConfigError: If one is out of range.
    """
    for name, value in arguments.items():
        least, most = _RANGES[name]
        if value < least or (most is not None and value > most):
            limit = f">= {least}" if most is None else f"from {least} to {most}"
            raise ConfigError(f"{name} must be {limit}, got {value}")
