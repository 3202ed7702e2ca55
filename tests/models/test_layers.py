"""Layers: norms against float64, resampling against its definition, paddings."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import errors
from flax import linen as nn

from ldm_jax.models.layers import (
    Downsample,
    GroupNorm,
    LayerNorm,
    ResBlock,
    Upsample,
    average_pool,
    conv,
    dense,
    timestep_embedding,
    upsample_conv,
    upsample_nearest,
)
from ldm_jax.models.operations.sums import CUDA, DEFAULT
from tests.common import assert_close, load_case, use_sums


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def exact_group_norm(x, groups, epsilon):
    x = np.asarray(x, np.float64)
    y = x.reshape(x.shape[0], -1, groups, x.shape[-1] // groups)
    mean, variance = y.mean((1, 3), keepdims=True), y.var((1, 3), keepdims=True)
    return ((y - mean) / np.sqrt(variance + epsilon)).reshape(x.shape)


def outlier_row(x):
    return x.at[:, 0].set(1e4)


@pytest.mark.parametrize(
    "make, tolerance",
    [
        (lambda x: x, 1e-6),
        (lambda x: 1000 + 3 * x, 1e-4),
        (outlier_row, 1e-5),
        (lambda x: x.at[..., ::2].add(1e4), 1e-4),
        (lambda x: x + 1e3 * jnp.arange(64.0)[None, None, None], 1e-4),
        (lambda x: 0 * x + 7, 1e-6),
    ],
    ids=["standard", "mean 1000", "row an outlier", "outliers", "apart", "constant"],
)
@pytest.mark.parametrize("groups", [8, 32])
@pytest.mark.parametrize("sums", [None, CUDA, DEFAULT], ids=["jitted", "cuda", "cpu"])
def test_group_norm_is_exact_however_large_the_mean(
    make, tolerance, groups, sums, monkeypatch
):
    x = make(normal(0, 2, 16, 8, 64))
    norm = GroupNorm(num_groups=groups, epsilon=1e-6)
    variables = norm.init(jax.random.key(0), x)
    if sums:
        use_sums(monkeypatch, "group_norm", sums)
    with jax.disable_jit(sums is not None):
        y = norm.apply(variables, x)
    expected = exact_group_norm(x, groups, 1e-6)
    np.testing.assert_allclose(y, expected, atol=tolerance * 4)


def test_group_norm_gradient_is_that_of_flax():
    x, cotangent = 5 + normal(0, 2, 4, 4, 64), normal(1, 2, 4, 4, 64)
    params = {"scale": normal(2, 64), "bias": normal(3, 64)}
    flax_norm = nn.GroupNorm(32, epsilon=1e-5, use_fast_variance=False)

    def gradients(function):
        return jax.jit(lambda p, x: jax.vjp(function, p, x)[1](cotangent))(params, x)

    ours = gradients(lambda p, x: GroupNorm(silu=True).apply({"params": p}, x))
    flax = gradients(lambda p, x: nn.silu(flax_norm.apply({"params": p}, x)))
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(flax), strict=True):
        assert_close(a, b, 1e-5)


def test_group_norm_modulates_before_silu():
    x, scale, shift = normal(0, 2, 4, 4, 32), normal(1, 2, 32), normal(2, 2, 32)
    norm = GroupNorm(silu=True)
    variables = norm.init(jax.random.key(0), x)
    scales, shifts = scale[:, None, None], shift[:, None, None]
    y = exact_group_norm(x, 32, 1e-5) * (1 + scales) + shifts
    assert_close(norm.apply(variables, x, (scale, shift)), nn.silu(y), 1e-5)


def test_group_norm_takes_statistics_in_float32():
    x = (100 + normal(0, 1, 16, 16, 32)).astype(jnp.bfloat16)
    norm = GroupNorm(dtype=jnp.bfloat16)
    y = norm.apply(norm.init(jax.random.key(0), x), x)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(
        y.astype(jnp.float32), exact_group_norm(x, 32, 1e-5), atol=0.03
    )


def test_group_norm_names_channels_that_do_not_divide():
    with pytest.raises(ValueError, match="48 channels do not divide into 32 groups"):
        GroupNorm().init(jax.random.key(0), jnp.zeros((1, 2, 2, 48)))


@pytest.mark.parametrize("features", [128, 63])
def test_timestep_embedding_matches_compvis(features):
    case = load_case("schedules")
    timesteps = jnp.array([0, 1, 17, 999])  # by the cosines of the case
    expected = case.arrays[f"timestep_embedding_{features}"]
    # A frequency's last bit, which differs between processors, times 999.
    assert_close(timestep_embedding(timesteps, features), expected, 6e-5)


@pytest.mark.parametrize("shape", [(2, 4, 4, 3), (1, 5, 2, 4), (1, 1, 1, 2)])
def test_upsample_conv_is_a_convolution_of_the_repeated(shape):
    x, kernel = normal(0, *shape), normal(1, 3, 3, shape[-1], 6)

    def direct(x, kernel):
        y = upsample_nearest(x)
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            y, kernel, (1, 1), ((1, 1), (1, 1)), dimension_numbers=numbers
        )

    batch, height, width, _ = shape
    cotangent = normal(2, batch, 2 * height, 2 * width, 6)

    def values(function):
        def both(x, kernel):
            output, pull = jax.vjp(function, x, kernel)
            return output, *pull(cotangent)

        return jax.jit(both)(x, kernel)

    for a, b in zip(values(upsample_conv), values(direct), strict=True):
        assert_close(a, b, 1e-5)


def test_nearest_up_and_pooling_down_are_inverse():
    x = normal(0, 2, 3, 5, 4)
    assert_close(average_pool(upsample_nearest(x)), x, 1e-6)
    np.testing.assert_array_equal(upsample_nearest(x)[:, 1::2, ::2], x)


@pytest.mark.parametrize("padding, first", [((1, 1), 4), ((0, 1), 9)])
def test_downsample_pads_where_compvis_does(padding, first):
    """An all-ones kernel counts the pixels under the window: padding shows."""
    down = Downsample(padding=padding)
    x = jnp.ones((1, 4, 4, 1))
    params = {"conv": {"kernel": jnp.ones((3, 3, 1, 1)), "bias": jnp.zeros(1)}}
    y = down.apply({"params": params}, x)
    assert y.shape == (1, 2, 2, 1) and y[0, 0, 0, 0] == first


def test_resampling_without_convolution_has_no_parameters():
    x = jnp.ones((1, 4, 4, 2))
    for module, size in ((Downsample(False), 2), (Upsample(False), 8)):
        y, variables = module.init_with_output(jax.random.key(0), x)
        assert y.shape == (1, size, size, 2) and not variables


def test_kernels_start_at_unit_gain():
    layer = conv(256)
    params = layer.init(jax.random.key(0), jnp.zeros((1, 4, 4, 64)))["params"]
    np.testing.assert_allclose(params["kernel"].std(), 1 / np.sqrt(9 * 64), rtol=0.02)
    assert not params["bias"].any()


@pytest.mark.parametrize("resample, size", [(None, 4), ("up", 8), ("down", 2)])
@pytest.mark.parametrize("scale_shift_norm", [False, True])
def test_res_block_shapes_and_embedding(resample, size, scale_shift_norm):
    block = ResBlock(64, scale_shift_norm=scale_shift_norm, resample=resample)
    x, embedding = normal(0, 2, 4, 4, 32), normal(1, 2, 16)
    y, variables = jax.jit(block.init_with_output)(jax.random.key(0), x, embedding)
    assert y.shape == (2, size, size, 64)
    assert variables["params"]["embedding"]["bias"].size == 64 * (1 + scale_shift_norm)
    other = jax.jit(block.apply)(variables, x, 2 * embedding)
    assert np.abs(y - other).max() > 1e-3


def test_zero_initialised_res_block_is_the_identity():
    x = normal(0, 2, 4, 4, 32)
    block = ResBlock(32, zero_init=True)
    y, _ = jax.jit(block.init_with_output)(jax.random.key(0), x)
    np.testing.assert_array_equal(y, x)


def test_dropout_is_live_in_training_only():
    block, x = ResBlock(32, dropout=0.5), normal(0, 2, 4, 4, 32)
    variables = jax.jit(block.init)(jax.random.key(0), x)
    still = block.apply(variables, x)

    @jax.jit
    def dropped(key):
        return block.apply(variables, x, None, True, rngs={"dropout": key})

    draw = [dropped(jax.random.key(i)) for i in (0, 0, 1)]
    np.testing.assert_array_equal(draw[0], draw[1])
    assert np.abs(draw[0] - draw[2]).max() > 0.01 < np.abs(draw[0] - still).max()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("affine", [True, False])
def test_layer_norm_and_its_gradient_are_those_of_flax(dtype, affine):
    x = (5 + normal(0, 2, 4, 64)).astype(dtype)
    outer = normal(1, 2, 4, 64)
    params = {"scale": normal(2, 64), "bias": normal(3, 64)} if affine else {}
    theirs = nn.LayerNorm(
        1e-5, dtype, use_bias=affine, use_scale=affine, use_fast_variance=False
    )

    def run(norm):
        def loss(params, x):
            y = norm.apply({"params": params}, x)
            assert y.dtype == dtype
            return jnp.sum(outer * y.astype(jnp.float32))

        return jax.jit(jax.value_and_grad(loss, (0, 1)))(params, x)

    # Theirs adds up two gradients of x in bfloat16.
    tolerance = 1e-5 if dtype == "float32" else 1e-2
    found, expected = run(LayerNorm(affine, dtype=dtype)), run(theirs)
    jax.tree.map(lambda a, b: assert_close(a, b, tolerance), found, expected)


@pytest.mark.parametrize("layer", [conv(8), dense(8), GroupNorm(4), LayerNorm()])
def test_a_parameter_of_another_shape_is_refused(layer):
    variables = layer.init(jax.random.key(0), jnp.zeros((1, 4, 4, 8)))
    with pytest.raises(errors.ScopeParamShapeError):
        layer.apply(variables, jnp.zeros((1, 4, 4, 16)))


@pytest.mark.parametrize("norm", [GroupNorm(4), LayerNorm()])
def test_norms_of_one_shape_are_traced_once(norm):
    x = jnp.zeros((1, 4, 4, 8))
    variables = norm.init(jax.random.key(0), x)

    def twice(variables, x):
        return norm.apply(variables, norm.apply(variables, x)).sum()

    calls = jax.make_jaxpr(jax.grad(twice, (0, 1)))(variables, x).eqns
    bodies = [id(e.params["jaxpr"].jaxpr) for e in calls if e.primitive.name == "jit"]
    # A forward and a backward pass of each of two.
    assert len(bodies) >= 4 and len(set(bodies)) <= len(bodies) - 2
