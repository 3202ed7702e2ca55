"""What a run's arrays take when they are split, of a stage made by hand."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh
from ml_collections import ConfigDict

from ldm_jax.checkpoint import TrainState
from ldm_jax.planning.abstract import Planned
from ldm_jax.planning.memory import MemoryOf

WIDTH = 64
KERNEL = 4 * WIDTH * WIDTH


def _products(params, x):
    """Products of one input."""
    return sum(jnp.sin(x @ kernel).sum() for kernel in params.values())


def _layers(params, x):
    """Products of which each reads the last one's."""
    for kernel in params.values():
        x = jnp.sin(x @ kernel)
    return x.sum()


def _memory(overrides=(), loss=_products, mesh=(1, 2), rows=1):
    """Memory of three kernels of one shape, with some rows a device."""
    config = ConfigDict({"train": {"accumulate_steps": 1}})
    config.train.sharding_overrides = overrides
    shape = jax.ShapeDtypeStruct((WIDTH, WIDTH), jnp.float32)
    params = dict.fromkeys("abc", shape)
    count = jax.ShapeDtypeStruct((), jnp.int32)
    state = TrainState(step=count, params=params, ema_params={}, opt_state={}, stats={})

    def train_step(state, frozen, batch):
        grads = jax.grad(loss)(state.params, batch["x"])
        # All gradients are needed at once, as for their norm.
        norm = sum(jnp.sum(jnp.square(grad)) for grad in grads.values())
        new = {k: state.params[k] - grads[k] / norm for k in params}
        return state.replace(params=new), norm

    stage = types.SimpleNamespace(train_step=train_step, frozen={})
    example = {"x": np.zeros((1, WIDTH), np.float32)}
    planned = Planned(config, None, stage, state, [example])
    mesh = AbstractMesh(mesh, ("data", "fsdp"))
    return MemoryOf(planned).on(mesh, rows * mesh.size, 1)


def test_gradients_are_split_as_overrides_say():
    # So small an array is intact, unless an override splits it.
    whole, split = _memory(()), _memory([("params", 0)])
    mixed = _memory([("params/a", 0), ("params/b", 1)])
    assert whole.parameters == 3 * KERNEL
    assert split.parameters == 1.5 * KERNEL
    assert mixed.parameters == mixed.gradients == 2 * KERNEL
    # All gradients are the most that is there at once.
    for memory, gradients in (whole, 3), (mixed, 2), (split, 1.5):
        assert memory.temporary == pytest.approx(gradients * KERNEL, abs=2048)


def test_on_several_devices_gradients_of_weights_wait():
    def memory(*mesh):
        return _memory(loss=_layers, mesh=mesh, rows=1000)

    alone, several = memory(1, 1), memory(2, 1)
    # One array of activations more, see test_liveness.py for which.
    more = several.temporary - alone.temporary
    assert more == pytest.approx(4 * 1000 * WIDTH, rel=0.1)
    assert memory(1, 4).temporary == several.temporary
