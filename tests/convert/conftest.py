"""Shapes of the parameters of one config are found once for all tests of a worker."""

import json

import jax
import numpy as np
import pytest

from ldm_jax.convert.compvis import read as compvis_read
from ldm_jax.convert.diffusers import read as diffusers_read
from tests.convert import exported

_FOUND = {}


def _once(find):
    """Wraps a pure function of configs and example arrays, which traces a network."""

    def found(*args):
        shapes = jax.tree.map(np.shape, args[3:])
        key = find.__name__, json.dumps([args[:3], shapes], sort_keys=True, default=str)
        if key not in _FOUND:
            _FOUND[key] = find(*args)
        # A copy of the dicts, which are the caller's own.
        return jax.tree.map(lambda leaf: leaf, _FOUND[key])

    return found


@pytest.fixture(autouse=True, scope="module")
def shapes_found_once():
    with pytest.MonkeyPatch.context() as patch:
        for module in (compvis_read, diffusers_read, exported):
            for name in ("diffusion_shapes", "first_stage_shapes"):
                patch.setattr(module, name, _once(getattr(module, name)))
        yield
