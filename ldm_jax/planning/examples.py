"""A training example of a config, made from shapes only: no data is read."""

from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
from ml_collections import ConfigDict

from ldm_jax.annotations import Shaped
from ldm_jax.config import entries_of, suggest
from ldm_jax.data.encoded import MEAN, STD
from ldm_jax.data.inputs import make_inputs
from ldm_jax.data.inputs.caption import MAX_LENGTH
from ldm_jax.data.orders.buckets import bucket_shapes, make_buckets
from ldm_jax.errors import ConfigError
from ldm_jax.ranges import read_whole

# Key of a map of a data set -> its channels and type.
_MAPS = {"segmentation": ((), np.int32), "depth": ((1,), np.float32)}


def image_shapes(data: ConfigDict) -> list[tuple[int, int]]:
    """Lists the shapes of training images.

    Args:
      data: Config section `data`.

    Returns:
      (height, width) in pixels, that with the most pixels first.

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
    """Makes an example of zeros with the shapes of a run's data.

    Args:
      config: ConfigDict of any stage.
      size: (height, width) of its image in pixels.
      channels: Channels of the images.
      features: Batch key of an input -> shape, for inputs whose shape only the data
        have.

    Returns:
      Batch of one: dict of arrays [1, ...] with "image", "label" and the inputs.

    Raises:
      ConfigError: If the shape of such an input is not given, or one is given that is
        not needed.
    """
    example = {"image": np.zeros((*size, channels), np.uint8), "label": np.int32(0)}
    example |= {"boxes": np.zeros((1, 4), np.float32)}
    example |= {"box_labels": np.zeros(1, np.int32)}
    for key, (tail, dtype) in _MAPS.items():
        example[key] = np.zeros((*size, *tail), dtype)
    made = {key: example[key] for key in ("image", "label")}
    entries = entries_of(config.data.get("inputs"))
    lacking = {key: _lacks(key, entry, example) for key, entry in entries.items()}
    _refuse_others(features, [key for key in entries if lacking[key] is not None])
    for key, entry in entries.items():
        if lacking[key] is None:
            made[key] = _make_input(key, entry, example)
        else:
            made[key] = _make_feature(key, entry, lacking[key], features)
    return {key: np.asarray(value)[None] for key, value in made.items()}


def _lacks(key, entry, example):
    """The key that an input needs and only real data have; None if there is none."""
    if entry["kind"] == "caption":
        return None
    if entry["kind"] == "feature":
        return entry.get("feature") or key
    return make_inputs({key: entry})[key].missing(example)


def _refuse_others(features, known):
    """Refuses shapes of inputs that the config lacks, or whose shape it determines."""
    for key, shape in features.items():
        if key in known:
            continue
        which = suggest(key, known) if known else "leave it out"
        raise ConfigError(
            f"--feature={key}={'x'.join(map(str, shape))}: the config has no input "
            f"{key} whose shape the data alone have; {which}"
        )


def _make_input(key, entry, example):
    """The value of an input; no tokenizer is loaded, as it may need a download."""
    if entry["kind"] == "caption":
        return np.zeros(entry.get("max_length", MAX_LENGTH), np.int32)
    return make_inputs({key: entry})[key](example, np.random.default_rng(0))


def _make_feature(key, entry, lacking, features):
    """The value of an input that only the data have, in the given shape."""
    is_map = entry["kind"] == "map"
    if key not in features:
        raise ConfigError(
            f"data.inputs.{key} is made of {lacking!r}, whose shape the data alone "
            "have: give that of the input, as "
            f"--feature={key}={'256x256x1' if is_map else '20x768'}"
        )
    # A map without channels holds classes.
    classes = is_map and len(features[key]) == 2 and not entry.get("stretch")
    return np.zeros(features[key], np.int32 if classes else np.float32)


def as_latents(
    example: Mapping[str, Shaped[np.ndarray, "..."]],
    moments: tuple[Any, Any],
) -> dict[str, Shaped[np.ndarray, "..."]]:
    """Replaces the image of an example by latents as `ldm-encode` writes them.

    Args:
      example: Batch of one with "image" [1, H, W, C].
      moments: Shapes of the first stage's posterior: mean [1, h, w, c], and standard
        deviation or None.

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
    """Parses `--feature`.

    Args:
      texts: Strings like "embedding=20x768".

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
