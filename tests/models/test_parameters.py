"""Parameters that are drawn together are those that flax draws one by one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.traverse_util import flatten_dict

from ldm_jax.models.layers import conv, dense
from ldm_jax.models.operations.parameters import (
    initialise,
    kernel_init,
    variable_shapes,
)

KEY = jax.random.key(1)


class Block(nn.Module):
    @nn.compact
    def __call__(self, x):
        return conv(4, name="conv")(x)


class Network(nn.Module):
    """Equal layers, some of them recomputed; one parameter and one count by flax."""

    remat: bool

    @nn.compact
    def __call__(self, x):
        block = nn.remat(Block) if self.remat else Block
        x = block(name="one")(block(name="other")(x))
        x = conv(4, zero=True, name="zero")(x) + dense(4, name="dense")(x)
        self.variable("counts", "calls", lambda: jnp.float32(7))
        return x * self.param("own", nn.initializers.normal(1.0), x.shape)


@pytest.mark.parametrize("remat", [False, True])
def test_the_tree_is_that_of_flax(remat):
    network, x = Network(remat), jnp.zeros((1, 4, 4, 4))
    output, shapes = initialise(network, None, x)
    assert shapes == variable_shapes(network, x) == jax.eval_shape(network.init, KEY, x)
    ours = jax.jit(lambda key: initialise(network, key, x)[1])(KEY)
    theirs = network.init(KEY, x)
    kinds = [jax.tree.map(lambda a: (a.shape, a.dtype), t) for t in (ours, theirs)]
    assert kinds[0] == kinds[1]
    assert output.shape == x.shape and ours["counts"] == theirs["counts"]
    params = flatten_dict(ours["params"], sep="/")
    for name in ("zero/kernel", "zero/bias", "one/conv/bias"):
        assert not params[name].any()
    # Flax's own; and as many draws as there are kernels.
    np.testing.assert_array_equal(params["own"], theirs["params"]["own"])
    kernels = [params[f"{name}/kernel"] for name in ("other/conv", "one/conv", "dense")]
    for key, kernel in zip(jax.random.split(KEY, 3), kernels, strict=True):
        expected = kernel_init(key, kernel.shape, kernel.dtype)
        np.testing.assert_allclose(kernel, expected, rtol=1e-6)


def test_what_has_no_parameters():
    output, variables = initialise(nn.Dropout(0.5, deterministic=True), KEY, 3.0)
    assert output.shape == () and not variables


def test_a_fault_leaves_flax_as_it_was():
    with pytest.raises(ValueError):
        initialise(Network(False), KEY, jnp.zeros(()))
    params = Block().init(KEY, jnp.zeros((1, 4, 4, 4)))["params"]
    assert params["conv"]["kernel"].any()


class Stacked(nn.Module):
    """One convolution for each number of channels."""

    channels: list[int]

    @nn.compact
    def __call__(self, x):
        for index, channels in enumerate(self.channels):
            x = conv(channels, name=f"conv_{index}")(x)
        return x


def test_shapes_are_told_once_of_equal_modules(monkeypatch):
    calls = []
    call = Stacked.__call__
    monkeypatch.setattr(Stacked, "__call__", lambda *a: calls.append(0) or call(*a))
    x = jnp.zeros((1, 4, 4, 4))
    found = variable_shapes(Stacked((3, 5)), x)
    found["params"].clear()
    again = variable_shapes(Stacked((3, 5)), x)
    assert len(calls) == 1
    assert again["params"]["conv_1"]["kernel"].shape == (3, 3, 3, 5)
    assert again == variable_shapes(Stacked([3, 5]), x)
