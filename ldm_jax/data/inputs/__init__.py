"""Inputs of the conditions, made from each example on the host.

The config section `data.inputs` lists them by batch key:

    inputs=dict(
        caption=dict(kind="caption", tokenizer="shapes", max_length=40),
        low_res=dict(kind="low_res", factor=4, degradation="bsrgan_light"),
    )

Each takes what it `needs` from the example, after crop, resize and mirroring, and makes
one array without batch axis, under its key. The entry of the same key in `conditions`
defines what the model does with it. If the example already contains what an input would
draw or compute, that is used: `sample.py` makes an example from the user's flags and
runs the same inputs.

An instance can be pickled; randomness comes from the generator that is passed in.
"""

import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from ldm_jax.config import build_row, choose, entries_of
from ldm_jax.data.inputs.caption import Caption
from ldm_jax.data.inputs.image_input import Image, LowRes, MaskedImage
from ldm_jax.data.inputs.kind import Input
from ldm_jax.data.inputs.layout_input import Layout
from ldm_jax.data.inputs.map_input import Depth, Map, Segmentation
from ldm_jax.data.inputs.vector_input import Feature, SizeAndCrop
from ldm_jax.errors import ConfigError

# Batch keys that are not inputs: the image, its class, the mask of rows that count,
# failures, notes on what was left out, and errors.
RESERVED = ("image", "label", "mask", "failures", "notes", "error")

# Names of options in version 0.1.0 -> current names.
_OLD_OPTIONS = {"min_share": "min_fraction", "max_share": "max_fraction"}


def make_inputs(section: Mapping[str, Any] | ConfigDict | None) -> dict[str, Input]:
    """Makes the inputs of the config section `data.inputs`.

    Args:
      section: Batch key -> {"kind": row of INPUTS, options of that row}; entries of the
        kind "none" are off. None for no inputs.

    Returns:
      Dict of batch key -> Input, in alphabetical order of the keys.

    Raises:
      ConfigError: On an unknown kind or option, or an invalid value.
    """
    inputs = {}
    for key, entry in sorted(entries_of(section).items()):
        name = f"data.inputs.{key}"
        if key in RESERVED:
            raise ConfigError(f"{name}: batches have another {key}; rename the input")
        kind = entry.pop("kind", None)
        entry = {_OLD_OPTIONS.get(k, k): value for k, value in entry.items()}
        row = choose(INPUTS, kind, f"{name}.kind")
        own_key = {"key": key} if "key" in inspect.signature(row).parameters else {}
        inputs[key] = build_row(row, kind, entry, name, **own_key)
    return inputs


def needed_keys(inputs: Mapping[str, Input]) -> list[str]:
    """Lists the keys that the source must provide besides the image.

    Args:
      inputs: Dict of batch key -> Input.

    Returns:
      Keys of the example, sorted.
    """
    return sorted({key for make in inputs.values() for key in make.needs} - {"image"})


def optional_keys(inputs: Mapping[str, Input]) -> list[str]:
    """Lists the needed keys that an example may lack.

    Args:
      inputs: Dict of batch key -> Input.

    Returns:
      Keys of the example, sorted, that no input requires.
    """
    some = {key for make in inputs.values() for key in make.optional}
    strict = {
        k for make in inputs.values() for k in make.needs if k not in make.optional
    }
    return sorted(some - strict)


def held_out_inputs(inputs: Mapping[str, Input]) -> dict[str, Input]:
    """Makes the inputs for everything but training.

    Args:
      inputs: Dict of batch key -> Input.

    Returns:
      The same without dropout.
    """
    return {key: make.held_out() for key, make in inputs.items()}


def inputs_of(inputs: Mapping[str, Input], modality: str) -> dict[str, Input]:
    """Finds the inputs that can be made from a modality.

    Args:
      inputs: Dict of batch key -> Input.
      modality: Row of MODALITIES.

    Returns:
      The matching entries of `inputs`.
    """
    return {
        key: make
        for key, make in inputs.items()
        if any(modality in way for way in make.ways)
    }


def apply_inputs(
    inputs: Mapping[str, Input],
    example: Mapping[str, Any],
    rng: np.random.Generator | None,
) -> dict[str, Any]:
    """Makes all inputs of an example, in the order of `inputs`.

    Args:
      inputs: Dict of batch key -> Input.
      example: Dict as `transforms.transform` makes it.
      rng: NumPy generator.

    Returns:
      Dict of the example's "image" and "label", if it has them, and the inputs.

    Raises:
      ValueError: If the example lacks what an input needs, or has invalid values.
    """
    result = {key: example[key] for key in ("image", "label") if key in example}
    for key, make in inputs.items():
        need = make.missing(example)
        if need is not None:
            raise ValueError(f'the example has no "{need}" for input "{key}"')
        result[key] = make(example, rng)
    return result


def truncated_inputs(
    inputs: Mapping[str, Input], example: Mapping[str, Any], made: Mapping[str, Any]
) -> list[str]:
    """Lists the inputs that were truncated.

    Args:
      inputs: Dict of batch key -> Input.
      example: Dict as `transforms.transform` makes it.
      made: Result of `apply_inputs`.

    Returns:
      Their batch keys.
    """
    return [
        key for key, make in inputs.items() if make.is_truncated(example, made[key])
    ]


# Kinds of inputs, by their name in configs.
INPUTS = {
    "caption": Caption,
    "layout": Layout,
    "map": Map,
    "segmentation": Segmentation,
    "depth": Depth,
    "low_res": LowRes,
    "masked_image": MaskedImage,
    "image": Image,
    "size_and_crop": SizeAndCrop,
    "feature": Feature,
}
