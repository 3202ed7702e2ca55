"""One training example of a config, made of shapes alone: no data is read."""

from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
from ml_collections import ConfigDict

from ldm_jax.annotations import Shaped
from ldm_jax.config import entries_of
from ldm_jax.data.encoded import MEAN, STD
from ldm_jax.data.inputs import make_inputs
from ldm_jax.data.orders.buckets import bucket_shapes, make_buckets
from ldm_jax.errors import ConfigError
from ldm_jax.ranges import read_whole

# Channels of what a data set gives beside images, by its key.
_MAPS = {"segmentation": ((), np.int32), "depth": ((1,), np.float32)}


def image_shapes(data: ConfigDict) -> list[tuple[int, int]]:
    """Lists the shapes of training images.

    Args:
      data: Config section `data`.

    Returns:
      (height, width) in pixels, that of the most pixels first.

    Raises:
      ConfigError: If the section is wrong.
    """
    buckets = make_buckets(data)
    if buckets is None:
        return [(data.image_size, data.image_size)]
    shapes = [tuple(map(int, shape)) for shape in bucket_shapes(buckets)]
    return sorted(shapes, key=lambda shape: -shape[0] * shape[1])


def make_example(
    config: ConfigDict,
    size: tuple[int, int],
    channels: int,
    features: Mapping[str, tuple[int, ...]],
) -> dict[str, Shaped[np.ndarray, "..."]]:
    """Makes an example of zeros, as the data of a run would have it.

    Args:
      config: ConfigDict of any stage.
      size: (height, width) of its image in pixels.
      channels: Channels of the images.
      features: Batch key of an input of kind "feature" -> shape, which only the data
        know.

    Returns:
      Batch of one: dict of arrays [1, ...] with "image", "label" and the inputs.

    Raises:
      ConfigError: If an input's shape follows from the data alone and is not given.
    """
    example = {"image": np.zeros((*size, channels), np.uint8), "label": np.int32(0)}
    example |= {"boxes": np.zeros((1, 4), np.float32)}
    example |= {"box_labels": np.zeros(1, np.int32)}
    for key, (tail, dtype) in _MAPS.items():
        example[key] = np.zeros((*size, *tail), dtype)
    made = {key: example[key] for key in ("image", "label")}
    for key, entry in entries_of(config.data.get("inputs")).items():
        made[key] = _make_input(key, entry, example, features)
    return {key: np.asarray(value)[None] for key, value in made.items()}


def _make_input(key, entry, example, features):
    """What an input makes; a tokenizer, which may be far away, is not asked."""
    if entry["kind"] == "caption" and "max_length" in entry:
        return np.zeros(entry["max_length"], np.int32)
    if entry["kind"] == "feature":
        if key not in features:
            raise ConfigError(
                f"data.inputs.{key} is a feature, whose shape the data alone have: "
                f"give it, as --feature={key}=20x768"
            )
        return np.zeros(features[key], np.float32)
    make = make_inputs({key: entry})[key]
    missing = make.missing(example)
    if missing is not None:
        raise ConfigError(
            f"data.inputs.{key} is made of {missing!r}, whose shape the data alone "
            f"have: give that of the input, as --feature={key}=256x256x1"
        )
    return make(example, np.random.default_rng(0))


def as_latents(
    example: Mapping[str, Shaped[np.ndarray, "..."]],
    moments: tuple[Any, Any],
) -> dict[str, Shaped[np.ndarray, "..."]]:
    """Puts latents that `ldm-encode` would write in place of the image.

    Args:
      example: Batch of one with "image" [1, H, W, C].
      moments: Shapes of what the first stage says of it: mean [1, h, w, c], and
        standard deviation or None.

    Returns:
      Batch of one with the moments, bfloat16.
    """
    rest = {key: value for key, value in example.items() if key != "image"}
    found = zip((MEAN, STD), moments, strict=True)
    return rest | {
        key: np.zeros(moment.shape, ml_dtypes.bfloat16)
        for key, moment in found
        if moment is not None
    }


def read_features(texts: list[str]) -> dict[str, tuple[int, ...]]:
    """Reads `--feature`.

    Args:
      texts: As "embedding=20x768".

    Returns:
      Batch key -> shape.

    Raises:
      ConfigError: If one is not of that form.
    """
    found: dict[str, Any] = {}
    for text in texts:
        key, _, shape = text.partition("=")
        sides = tuple(read_whole(side, 1) for side in shape.lower().split("x"))
        if not key or None in sides:
            raise ConfigError(
                f"--feature={text} must be KEY=SHAPE, as embedding=20x768"
            )
        found[key] = sides
    return found
