"""Finds the weights file in a folder of diffusers, transformers or OpenCLIP.

A folder may hold several: in half precision (`model.fp16.safetensors`), not averaged
(`model.non_ema.bin`), in shards with an index, in PyTorch's format.
"""

import os
import re
from collections.abc import Callable
from typing import Any

from ldm_jax.errors import ConversionError
from ldm_jax.store import Place, as_path, is_file


def find_weights(
    folder: str | os.PathLike,
    variant: str | None = None,
    log: Callable[[str], Any] | None = None,
) -> Place:
    """Finds the file of weights in a folder.

    Args:
      folder: Path of the folder.
      variant: Variant to use, such as "fp16"; by default the one without a name, else
        the first of fp32, bf16, fp16 and then in alphabetical order.
      log: Called with a line that names the chosen one of several; None for no log.

    Returns:
      Path for `read_weights`.

    Raises:
      ConversionError: If there is none, or none of that variant.
    """
    found = variants(folder)
    if not found:
        raise ConversionError(
            f"{folder} holds no weights: there is no {_NAMES[0]}.safetensors, "
            f"{_NAMES[1]}.safetensors or the like"
        )
    listed = ", ".join(name or "the one without a name" for name in found)
    if variant is not None and variant not in found:
        raise ConversionError(f"{folder} has no variant {variant!r} but {listed}")
    chosen = next(iter(found)) if variant is None else variant
    if log and len(found) > 1 and variant is None:
        log(f"{folder}: {found[chosen].name}, of the variants {listed}; see --variant")
    return found[chosen]


def variants(folder: str | os.PathLike) -> dict[str, Place]:
    """Lists the variants of the weights in a folder.

    Args:
      folder: Path of the folder.

    Returns:
      Dict of name, "" for the usual one -> path for `read_weights`; the preferred one
      first.
    """
    found = {}
    for path in as_path(folder).iterdir():
        parts = _FILE.fullmatch(path.name)
        if parts is None or not is_file(path):
            continue
        name, before, kind, index, after = parts.groups()
        rank = _NAMES.index(name), kind != "safetensors", index is not None
        entry = rank, path
        variant = before or after or ""
        found[variant] = min(found.get(variant, entry), entry)
    order = sorted(found, key=lambda name: (_PREFERRED.get(name, 9), name))
    return {name: found[name][1] for name in order}


# Names of weights files in folders of diffusers, transformers and OpenCLIP.
_NAMES = (
    "diffusion_pytorch_model",
    "model",
    "pytorch_model",
    "open_clip_model",
    "open_clip_pytorch_model",
)
# Name, variant, format, index of shards, and the position of the variant for shards.
# Shards themselves have a number after the variant, and are found through the index.
_FILE = re.compile(
    rf"({'|'.join(_NAMES)})(?:\.(?!.*-\d+-of-\d+)([\w-]+))?\.(safetensors|bin)"
    r"(\.index(?:\.([\w-]+))?\.json)?"
)
_PREFERRED = {"": 0, "fp32": 1, "bf16": 2, "fp16": 3}
