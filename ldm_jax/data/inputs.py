"""Inputs of the conditions, made of each example on the host.

The config section `data.inputs` lists them by batch key:

    inputs=dict(
        caption=dict(kind="caption", tokenizer="shapes", max_length=40),
        low_res=dict(kind="low_res", factor=4, degradation="bsrgan_light"),
    )

Each takes what it `needs` from the example, after crop, resize and mirroring, and gives
one array without batch axis, under its key. The entry of the same key in `conditions`
says what the model does with it. What an input would draw or compute, the example may
also hold: `sample.py` makes an example of what the user gives and runs the same inputs.

An instance can be pickled; what is random comes from the generator that is passed in.
"""

import inspect

from ldm_jax.config import ConfigError, build, choose, to_dict
from ldm_jax.data.input_kinds import (
    Caption,
    Depth,
    Feature,
    Image,
    Layout,
    LowRes,
    MaskedImage,
    Segmentation,
)

# Batch keys that are no inputs: the picture, its class, which rows count, what failed.
RESERVED = ("image", "label", "mask", "failures", "error")


def make_inputs(section):
    """Makes the inputs that the config section `data.inputs` lists.

    Args:
      section: Batch key -> {"kind": row of INPUTS, options of that row}; entries of the
        kind "none" are off. None for no inputs.

    Returns:
      Dict of batch key -> Input, in alphabetical order of the keys.

    Raises:
      ConfigError: On an unknown kind or option, or a wrong value.
    """
    inputs = {}
    for key, entry in sorted(to_dict(section or {}).items()):
        name, entry = f"data.inputs.{key}", dict(entry)
        if key in RESERVED:
            raise ConfigError(f"{name}: batches have another {key}; rename the input")
        kind = entry.pop("kind", None)
        if kind == "none":
            continue
        row = choose(INPUTS, kind, f"{name}.kind")
        own_key = {"key": key} if "key" in inspect.signature(row).parameters else {}
        inputs[key] = build(row, entry, name, **own_key)
    return inputs


def needed_keys(inputs):
    """Returns the keys that the source must give for `inputs`, sorted; not "image"."""
    return sorted({key for make in inputs.values() for key in make.needs} - {"image"})


def apply_inputs(inputs, example, rng):
    """Makes all inputs of an example, in the order of `inputs`.

    Args:
      inputs: Dict of batch key -> Input.
      example: Dict as `transforms.transform` makes it.
      rng: NumPy generator.

    Returns:
      Dict of the example's "image" and "label", as far as there, and the inputs.

    Raises:
      ValueError: If the example lacks what an input needs, or holds something else.
    """
    result = {key: example[key] for key in ("image", "label") if key in example}
    for key, make in inputs.items():
        for need in make.needs:
            if need not in example:
                raise ValueError(f'the example has no "{need}" for input "{key}"')
        result[key] = make(example, rng)
    return result


# What is made of an example, by the name that configs use.
INPUTS = {
    "caption": Caption,
    "layout": Layout,
    "segmentation": Segmentation,
    "depth": Depth,
    "low_res": LowRes,
    "masked_image": MaskedImage,
    "image": Image,
    "feature": Feature,
}
