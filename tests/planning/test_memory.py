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


def _memory(overrides):
    """Memory of three layers of one shape, on two devices that split parameters."""
    config = ConfigDict({"train": {"accumulate_steps": 1}})
    config.train.sharding_overrides = overrides
    shape = jax.ShapeDtypeStruct((WIDTH, WIDTH), jnp.float32)
    params = dict.fromkeys("abc", shape)
    count = jax.ShapeDtypeStruct((), jnp.int32)
    state = TrainState(step=count, params=params, ema_params={}, opt_state={}, stats={})

    def train_step(state, frozen, batch):
        def loss(params):
            x = batch["x"]
            for name in sorted(params):
                x = jnp.sin(x @ params[name])
            return x.sum()

        grads = jax.grad(loss)(state.params)
        # All gradients are needed at once, as for their norm.
        norm = sum(jnp.sum(jnp.square(grad)) for grad in grads.values())
        new = {k: state.params[k] - grads[k] / norm for k in params}
        return state.replace(params=new), norm

    stage = types.SimpleNamespace(train_step=train_step, frozen={})
    example = {"x": np.zeros((1, WIDTH), np.float32)}
    planned = Planned(config, None, stage, state, [example])
    return MemoryOf(planned).on(AbstractMesh((1, 2), ("data", "fsdp")), 2, 1)


def test_gradients_are_split_as_overrides_say():
    # So small an array is whole, unless an override splits it.
    whole, split = _memory(()), _memory([("params", 0)])
    mixed = _memory([("params/a", 0), ("params/b", 1)])
    assert whole.parameters == 3 * KERNEL
    assert split.parameters == 1.5 * KERNEL
    assert mixed.parameters == mixed.gradients == 2 * KERNEL
    assert whole.fixed + whole.moving == pytest.approx(3 * KERNEL, abs=2048)
    assert split.temporary < mixed.temporary < whole.temporary
