r"""Loads weights of LPIPS from published files.

    python -m ldm_jax.weights.lpips vgg16-397923af.pth vgg.pth lpips_vgg16.safetensors

reads torchvision's VGG16 and the published linear heads once and writes one file, for
`loss.lpips_weights` of a config. A checkpoint of a first stage of CompVis contains
both: give only that.
"""

import os
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax import cli
from ldm_jax.errors import ConfigError, ConversionError
from ldm_jax.models.lpips import BLOCKS, LPIPS, MIN_SIZE, SCALE, SHIFT
from ldm_jax.models.operations.parameters import variable_shapes
from ldm_jax.weights.files import read_weights, write_weights
from ldm_jax.weights.state_dict import (
    CONV,
    Row,
    StateDict,
    Transform,
    layer_rows,
    to_params,
    to_state_dict,
)

WHERE = (
    "LPIPS takes torchvision's VGG16 (download.pytorch.org/models/vgg16-397923af.pth) "
    "and the linear heads (lpips/weights/v0.1/vgg.pth of "
    "github.com/richzhang/PerceptualSimilarity); make one file of them with `python -m "
    "ldm_jax.weights.lpips VGG16 HEADS OUTPUT.safetensors`"
)

_HEAD = Transform(lambda a: (a.reshape(-1),), lambda a: a.reshape(1, -1, 1, 1))


def lpips_rows() -> list[Row]:
    """Maps CompVis's `perceptual_loss` (Zhang et al. 2018) to LPIPS.

    Returns:
      List of Rows.
    """
    rows = [
        Row(f"scaling_layer.{name}", (), _constant(values))
        for name, values in (("shift", SHIFT), ("scale", SCALE))
    ]
    for block, (_, count) in enumerate(BLOCKS, start=1):
        for i, index in enumerate(_indices(block, count), start=1):
            theirs = f"net.slice{block}.{index}"
            rows += layer_rows(theirs, f"conv{block}_{i}", CONV)
        rows.append(Row(f"lin{block - 1}.model.1.weight", (f"head{block}",), _HEAD))
    return rows


def _constant(values):
    """A Transform for values that files store and that are constants in our module."""
    array = np.array(values, np.float32).reshape(1, -1, 1, 1)
    return Transform(lambda a: (), lambda: array)


def _indices(block, count):
    """Indices of a block's convolutions among torchvision's layers."""
    # A ReLU follows each convolution, and a pooling each block but the last.
    start = sum(2 * n + 1 for _, n in BLOCKS[: block - 1])
    return range(start, start + 2 * count, 2)


def convert_lpips(*state_dicts: StateDict) -> dict[str, Any]:
    """Reads weights of LPIPS.

    Args:
      *state_dicts: One dict with all weights, or one of VGG16 and one of the heads,
        with the names of torchvision, the lpips package or CompVis. Other keys are
        ignored.

    Returns:
      The parameters of LPIPS.

    Raises:
      ValueError: If a weight is missing or has a wrong shape.
    """
    found = {}
    for state_dict in state_dicts:
        found |= {_name(key): array for key, array in state_dict.items()}
    rows = lpips_rows()
    known = {row.theirs for row in rows}
    images = jax.ShapeDtypeStruct((1, MIN_SIZE, MIN_SIZE, 3), jnp.float32)
    target = variable_shapes(LPIPS(), images, images)["params"]
    return to_params(rows, {k: v for k, v in found.items() if k in known}, target)


def _name(key):
    """Converts names of all sources to those of CompVis."""
    key = re.sub(r"^(.*\.)?perceptual_loss\.", "", key)
    key = re.sub(r"^lins\.(\d)\.", r"lin\1.", key)
    place = re.fullmatch(r"features\.(\d+)\.(weight|bias)", key)
    if not place:
        return key
    for block, (_, count) in enumerate(BLOCKS, start=1):
        if int(place[1]) in _indices(block, count):
            return f"net.slice{block}.{place[1]}.{place[2]}"
    return key


def load_lpips(*paths: str | os.PathLike) -> dict[str, Any]:
    """Reads the parameters of LPIPS from files.

    Args:
      *paths: One file with all weights, or those of VGG16 and of the heads.

    Returns:
      The parameters of LPIPS, NumPy.

    Raises:
      ConversionError: If a file is missing, unreadable or has other weights.
    """
    try:
        return convert_lpips(*(read_weights(path).tensors for path in paths))
    except ValueError as error:
        names = ", ".join(map(str, paths))
        raise ConversionError(f"{names}: {error}. {WHERE}") from error


def read_lpips(paths: str, option: str, advice: str = "") -> dict[str, Any]:
    """Reads the parameters of LPIPS from the files that an option names.

    Args:
      paths: File with all weights, or those of VGG16 and of the heads, separated by a
        comma.
      option: Flag or config key that named them, for the error.
      advice: End of the error message, for example how to do without LPIPS.

    Returns:
      The parameters of LPIPS, NumPy.

    Raises:
      ConfigError: If a file is missing, unreadable or has other weights.
    """
    try:
        return load_lpips(*paths.split(","))
    except ConversionError as error:
        advice = advice and f"; {advice}"
        raise ConfigError(f"{option}: {error}{advice}") from error


def _main(argv: list[str]) -> None:
    """Converts weights: arguments are the files to read, then the file to write."""
    *sources, target = argv[1:] or [""]
    if len(sources) not in (1, 2):
        raise ConversionError(
            "give one or two files to read and the file to write; --help has examples"
        )
    params = load_lpips(*sources)
    write_weights(target, to_state_dict(lpips_rows(), params))
    print(f"wrote {target}")


def main() -> None:
    """Runs the command."""
    cli.run(_main, __doc__, arguments="SOURCE [SOURCE] TARGET", uses_jax=False)


if __name__ == "__main__":
    main()
