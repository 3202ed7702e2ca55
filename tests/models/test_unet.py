"""The U-Net's contract: shapes, conditions, precision, memory options, errors."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from ldm_jax.models import unet
from ldm_jax.models.classifier import Classifier
from ldm_jax.models.unet import UNet
from tests.common import assert_close, random_variables

TINY = dict(
    out_channels=4,
    channels=32,
    channel_mult=(1, 2),
    num_res_blocks=1,
    attention_factors=(2,),
    num_heads=4,
    norm_groups=8,  # with one channel a group, the bias before a norm would be idle
    transformer_depth=1,
)


def inputs(height=8, width=8):
    keys = jax.random.split(jax.random.key(0), 4)
    return dict(
        latents=jax.random.normal(keys[0], (2, height, width, 4)),
        timesteps=jnp.array([3, 977]),
        context=jax.random.normal(keys[1], (2, 5, 16)),
        concat=jax.random.normal(keys[2], (2, height, width, 3)),
        vector=jax.random.normal(keys[3], (2, 128)),
    )


@functools.cache
def random_params():
    """Parameters of TINY with nothing at zero, so that every path shows."""
    return random_variables(UNet(**TINY), *inputs().values())


@functools.cache
def make_apply(**changes):
    network = UNet(**TINY | changes)
    return jax.jit(lambda x: network.apply(random_params(), **x))


def output(**changes):
    return make_apply(**changes)(inputs())


def test_every_input_reaches_the_output():
    given, apply = inputs(), make_apply()
    base = apply(given)
    assert base.shape == (2, 8, 8, 4) and base.dtype == jnp.float32
    for name, value in given.items():
        changed = apply(given | {name: value + 1})
        assert np.abs(changed - base).max() > 1e-3, name


def test_starts_at_zero():
    fields = dict(channel_mult=(1,), attention_factors=(), transformer_depth=0)
    unet = UNet(**TINY | fields)
    given = inputs() | dict(context=None)
    output, _ = jax.jit(lambda x: unet.init_with_output(jax.random.key(0), **x))(given)
    assert not output.any()


@pytest.mark.parametrize("network", [UNet, Classifier])
@pytest.mark.parametrize("depth", [0, 1])
def test_all_weights_start_as_those_of_a_denoiser(network, depth, monkeypatch):
    drawn = []

    def draw(rng, shape, dtype=jnp.float32):
        drawn.append(shape)
        return jnp.zeros(shape, dtype)

    monkeypatch.setattr(unet, "denoiser_init", draw)
    made = network(**TINY | dict(transformer_depth=depth))
    given = list(inputs().values())[: 2 if network is Classifier or not depth else 3]
    shapes = jax.eval_shape(lambda: made.init(jax.random.key(0), *given))["params"]
    # What ends a residual branch starts at zero, but within a transformer.
    end = re.compile(
        r"(^|res_\d(_\d)?/)conv_out/|attention[_\d]*/(proj_out|attention/out)/"
    )
    kernels = [name for name in flatten_dict(shapes, sep="/") if "kernel" in name]
    assert len(drawn) == sum(not end.search(name) for name in kernels)


@pytest.mark.parametrize("remat", [False, True])
def test_adaptive_norms_of_transformer_blocks_take_the_place_of_plain_ones(remat):
    unet = UNet(**TINY, adaln_zero=True, remat=remat)
    shapes = jax.eval_shape(lambda: unet.init(jax.random.key(0), **inputs()))
    plain = flatten_dict(random_params()["params"], sep="/")
    paths = flatten_dict(shapes["params"], sep="/").keys()
    added, left_out = paths - plain.keys(), plain.keys() - paths
    assert added and all("/modulation_" in path for path in added)
    assert left_out and all("/block_0/norm_" in path for path in left_out)


def test_one_pixel_of_concat_is_the_same_everywhere():
    given = inputs()
    pixel = given["concat"][:, :1, :1]
    spread = jnp.broadcast_to(pixel, given["concat"].shape)
    one, all_over = (make_apply()(given | {"concat": c}) for c in (pixel, spread))
    np.testing.assert_array_equal(one, all_over)


def test_examples_do_not_mix():
    twice = jax.tree.map(lambda x: x[::-1], inputs())
    assert_close(make_apply()(twice)[::-1], output(), 1e-5)


def test_sizes_need_not_be_square():
    shape = jax.eval_shape(make_apply(), inputs(4, 10)).shape
    assert shape == (2, 4, 10, 4)


def test_bfloat16_is_close_with_float32_parameters_and_output():
    rough, exact = output(dtype="bfloat16"), output()
    assert rough.dtype == jnp.float32
    assert 0 < np.abs(rough - exact).max() < 0.1 * np.abs(exact).max()
    unet = UNet(**TINY, dtype="bfloat16")
    shapes = jax.eval_shape(lambda: unet.init(jax.random.key(0), **inputs()))
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}


def test_every_parameter_gets_a_gradient_and_remat_the_same():
    def run(remat):
        unet = UNet(**TINY, remat=remat)

        def loss(variables):
            return jnp.mean(jnp.square(unet.apply(variables, **inputs()) - 1))

        return jax.jit(jax.value_and_grad(loss))(random_params())

    (value, gradient), (again, same) = run(False), run(True)
    np.testing.assert_allclose(value, again, rtol=1e-6)
    for path, leaf in jax.tree.leaves_with_path(gradient):
        assert np.abs(leaf).max() > 0, path
    for a, b in zip(*map(jax.tree.leaves, (gradient, same)), strict=True):
        np.testing.assert_allclose(a, b, atol=3e-5 * np.abs(a).max())


def _program(**changes):
    network = UNet(**TINY | changes)
    made = jax.make_jaxpr(lambda p, x: network.apply(p, **x))
    return str(made(random_params(), inputs()))


def test_per_level_fields_say_the_same_as_one_value():
    changes = dict(num_heads=(2, 4), num_res_blocks=(1, 1), transformer_depth=(3, 1))
    program = _program()
    assert _program(**changes) == program
    assert _program(num_heads=None, head_channels=16) == program
    assert np.abs(output(num_heads=(4, 2)) - output()).max() > 1e-4


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(num_heads=None), "set num_heads or head_channels"),
        (dict(num_heads=5), "5 heads of 12 channels do not make up the 64 channels"),
        (dict(num_heads=None, head_channels=48), "1 heads of 48 channels"),
        (dict(adaln_zero=True, transformer_depth=0), "modulates transformer blocks"),
    ],
)
def test_fields_that_do_not_fit_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        UNet(**TINY | changes)


def test_odd_sizes_are_named():
    with pytest.raises(ValueError, match="latents of 8 x 9 .* multiples of 2"):
        make_apply()(inputs(8, 9))


@pytest.mark.parametrize(
    "changes, given, message",
    [
        (dict(transformer_depth=0), {}, "set transformer_depth"),
        ({}, dict(concat=(2, 4, 8, 3)), "maps of 4 x 8 .* latents of 8 x 8"),
        ({}, dict(vector=(2, 1)), "a vector of 1 .* embedding of 128"),
    ],
)
def test_conditions_that_do_not_fit_are_named(changes, given, message):
    unet, given = UNet(**TINY | changes), {k: jnp.zeros(s) for k, s in given.items()}
    with pytest.raises(ValueError, match=message):
        unet.init(jax.random.key(0), **inputs() | given)
