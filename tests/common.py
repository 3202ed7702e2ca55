"""What several test files share: the reference cases and their stand-in weights."""

import gzip
import json
import pathlib
from typing import NamedTuple

import jax
import numpy as np

from ldm_jax.diffusion.sample_options import from_flat
from ldm_jax.generate import Given
from ldm_jax.models.operations.parameters import variable_shapes
from tests.reference.reference_weights import reference_state_dict

REFERENCE = pathlib.Path(__file__).parent / "reference"


class Case(NamedTuple):
    """One reference case: what the original implementation computed on a tiny model."""

    meta: dict
    arrays: dict
    state_dict: dict


def load_case(name):
    """Reads `tests/reference/<name>.npz` and draws the weights its manifest names.

    Args:
      name: File name without suffix.

    Returns:
      A Case; arrays are in PyTorch layout (NCHW, OIHW), `state_dict` is empty where the
      case needs no weights.
    """
    with np.load(REFERENCE / f"{name}.npz") as file:
        arrays = {key: file[key] for key in file.files}
    meta = json.loads(str(arrays.pop("meta")))
    weights = reference_state_dict(meta.get("manifest", {}), meta.get("salt", 0))
    return Case(meta, arrays, weights)


def load_manifest(name):
    """Reads the shapes of a published checkpoint: dict of its keys -> list."""
    with gzip.open(REFERENCE / "manifests" / f"{name}.json.gz", "rt") as file:
        return json.load(file)


def random_weights(shapes, scale=None, seed=0):
    """Weights drawn in NumPy, so that nothing is compiled; no part stays silent.

    Args:
      shapes: Tree of ShapeDtypeStructs.
      scale: Standard deviation of all; None for that of variance 1 / fan-in, and for
        the scales of norms to lie about 1.
      seed: Seed of the draws.

    Returns:
      The tree, of arrays.
    """
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        fan_in = max(np.prod(leaf.shape[:-1]), 1)
        value = rng.normal(0, fan_in**-0.5 if scale is None else scale, leaf.shape)
        if scale is None and path[-1].key == "scale":
            value = 1 + 0.1 * value
        return value.astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def random_variables(module, *args, **options):
    """Variables of a module that is called with `args`, by `random_weights`."""
    return random_weights(variable_shapes(module, *args), **options)


def nhwc(array):
    """Moves channels last: [B, C, H, W] -> [B, H, W, C]."""
    return np.moveaxis(array, 1, -1)


def assert_close(actual, expected, tolerance=2e-5):
    """Checks max |difference| <= tolerance x max |expected|."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape, (actual.shape, expected.shape)
    difference = np.max(np.abs(actual - expected))
    limit = tolerance * np.max(np.abs(expected))
    assert difference <= limit, f"max difference {difference:.3g} > {limit:.3g}"


def use_sums(monkeypatch, norm, sums):
    """Has a norm, by the name of its file, sum as a platform does.

    Call it under `jax.disable_jit`: what is jitted may be in memory with other sums.
    """

    def here(function, *arguments):
        return function(sums, *arguments)

    monkeypatch.setattr(f"ldm_jax.models.operations.{norm}.on_platform", here)


def options_and_given(**options):
    """SampleOptions and Given from the names of both, as in a config."""
    given = {key: options.pop(key) for key in Given._fields if key in options}
    size = options.pop("size", None)
    return from_flat(options, size), Given(**given)
