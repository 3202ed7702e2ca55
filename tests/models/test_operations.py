"""Operations with gradients of their own, against differentiation of plain forms."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.accelerators.moved import COLLECTIVES
from ldm_jax.models.operations.attend import attend
from ldm_jax.models.operations.convolution import conv_general_dilated
from ldm_jax.models.operations.geglu import geglu, gelu
from ldm_jax.models.operations.group_norm import GroupNormOptions, group_norm
from ldm_jax.models.operations.join import join
from ldm_jax.models.operations.layer_norm import layer_norm
from ldm_jax.models.operations.parameters import variable_shapes
from ldm_jax.models.operations.sums import CUDA, DEFAULT
from ldm_jax.models.unet import UNet
from ldm_jax.sharding import make_mesh, on_mesh
from tests.common import assert_close, use_sums


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def plain_group_norm(x, scale, bias, modulation, added, options):
    groups, epsilon, silu, dtype = options
    x = x.astype(jnp.float32)
    x = x if added is None else x + added[:, None, None]
    parts = x.reshape(x.shape[0], -1, groups, x.shape[-1] // groups)
    mean = jnp.mean(parts, axis=(1, 3), keepdims=True)
    variance = jnp.var(parts, axis=(1, 3), keepdims=True)
    y = ((parts - mean) / jnp.sqrt(variance + epsilon)).reshape(x.shape)
    y = y * scale[None, None, None] + bias[None, None, None]
    if modulation is not None:
        scale, shift = (m[:, None, None] for m in modulation)
        y = y * (1 + scale) + shift
    return (jax.nn.silu(y) if silu else y).astype(dtype)


@pytest.mark.parametrize("dtype, tolerance", [("float32", 2e-5), ("bfloat16", 0.02)])
@pytest.mark.parametrize(
    "modulated, added, silu", [(True, False, True), (False, True, False), (1, 1, True)]
)
def test_group_norm_has_the_gradients_of_the_plain_form(
    dtype, tolerance, modulated, added, silu
):
    modulation = (normal(3, 2, 12), normal(4, 2, 12)) if modulated else None
    added = 3 * normal(6, 2, 12) if added else None
    parameters = normal(1, 12), normal(2, 12)
    inputs = 2 + normal(0, 2, 5, 3, 12), *parameters, modulation, added
    cotangent = normal(5, 2, 5, 3, 12).astype(dtype)

    @jax.jit
    def run(x, *others):
        def values(function):
            options = GroupNormOptions(4, 1e-5, silu, dtype)
            call = lambda *inputs: function(*inputs, options)  # noqa: E731
            y, pull = jax.vjp(call, x.astype(dtype), *others)
            return y, *pull(cotangent)

        return values(group_norm), values(plain_group_norm)

    ours, plain = run(*inputs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(plain), strict=True):
        assert a.dtype == b.dtype
        assert_close(a.astype(jnp.float32), b.astype(jnp.float32), tolerance)


def test_group_norm_differentiates_twice_in_batches_and_recomputed():
    x, scale, bias = normal(0, 3, 4, 2, 8), 1 + normal(1, 8), normal(2, 8)
    options = None, normal(3, 1, 8), GroupNormOptions(2, 1e-5, True, "f4")

    def penalty(function):
        def total(x):
            return jnp.sum(jnp.sin(function(x, scale, bias, *options)))

        return jax.grad(lambda x: jnp.sum(jnp.square(jax.grad(total)(x))))

    one_by_one = jax.vmap(jax.checkpoint(penalty(group_norm)))
    ours, expected = jax.jit(
        lambda x: (one_by_one(x[:, None])[:, 0], penalty(plain_group_norm)(x))
    )(x)
    assert_close(ours, expected, 1e-4)


def group_norm_loss(x, scale, bias, vector):
    options = GroupNormOptions(4, 1e-5, True, "float32")
    return group_norm(x, scale, bias, (vector, vector), vector, options).sum()


def layer_norm_loss(x, scale, bias, vector):
    return jnp.sum(layer_norm(x, scale, bias, 1e-5, "float32") * vector[:, None, None])


@pytest.mark.parametrize("loss", [group_norm_loss, layer_norm_loss])
def test_norms_of_a_split_batch_send_sums_for_their_parameters_alone(loss):
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()[:2]), "data")
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    shapes = jax.ShapeDtypeStruct((4, 3, 3, 8), jnp.float32, sharding=rows)
    vector = jax.ShapeDtypeStruct((4, 8), jnp.float32, sharding=rows)
    whole = jax.ShapeDtypeStruct((8,), jnp.float32)
    arguments = shapes, whole, whole, vector
    program = jax.jit(jax.grad(loss, (0, 1, 2, 3))).lower(*arguments).compile()
    text = program.as_text()
    assert "all-reduce" in text
    for name in set(COLLECTIVES) - {"all-reduce"}:
        assert name not in text


def test_group_norm_keeps_its_input_and_nothing_of_its_size():
    x = jax.ShapeDtypeStruct((2, 8, 8, 32), jnp.bfloat16)
    row = jax.ShapeDtypeStruct((32,), jnp.float32)

    def kept(x, scale, bias):
        options = None, None, GroupNormOptions(8, 1e-5, True, jnp.bfloat16)
        _, pull = jax.vjp(lambda *a: group_norm(*a, *options), x, scale, bias)
        return [leaf for leaf in jax.tree.leaves(pull) if hasattr(leaf, "dtype")]

    leaves = jax.eval_shape(kept, x, row, row)
    large = [(leaf.shape, leaf.dtype) for leaf in leaves if leaf.size >= x.size]
    assert large == [(x.shape, x.dtype)]


def test_sums_of_the_backward_pass_are_one_on_gpus_and_the_same():
    pair = normal(0, 2, 5, 3, 8), normal(1, 2, 5, 3, 8)
    one, both = (sums.parts(sums.both(*pair, (1, 2))) for sums in (CUDA, DEFAULT))
    for a, b in zip(one, both, strict=True):
        assert_close(a, b, 1e-5)
    values = normal(2, 2, 3, 12)
    assert_close(CUDA.fold(values, 4), DEFAULT.fold(values, 4), 1e-6)
    x = jax.ShapeDtypeStruct((2, 4, 4, 8), jnp.bfloat16)
    row = jax.ShapeDtypeStruct((8,), jnp.float32)

    def loss(x, scale, bias):
        options = None, None, GroupNormOptions(4, 1e-5, True, jnp.bfloat16)
        return group_norm(x, scale, bias, *options).astype(jnp.float32).sum()

    traced = jax.jit(jax.grad(loss)).trace(x, row, row)
    for platform in ("cuda", "cpu", "tpu"):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert ("complex<f32>" in text) == (platform == "cuda"), platform


def plain_layer_norm(x, scale, bias, epsilon, dtype):
    row = lambda values: values.reshape((1,) * (x.ndim - 1) + (-1,))  # noqa: E731
    mean, variance = (f(x, axis=-1, keepdims=True) for f in (jnp.mean, jnp.var))
    y = (x - mean) / jnp.sqrt(variance + epsilon)
    y = y if scale is None else y * row(scale)
    return (y if bias is None else y + row(bias)).astype(dtype)


@pytest.mark.parametrize("sums", [CUDA, DEFAULT], ids=["cuda", "default"])
@pytest.mark.parametrize("shape", [(8,), (3, 8), (2, 3, 8), (2, 2, 2, 3, 8)])
@pytest.mark.parametrize("scaled, moved", [(True, True), (False, True), (True, False)])
def test_layer_norm_has_the_gradients_of_the_plain_form(
    sums, shape, scaled, moved, monkeypatch
):
    use_sums(monkeypatch, "layer_norm", sums)
    scale, bias = normal(1, 8) if scaled else None, normal(2, 8) if moved else None
    x, outer = 3 + normal(0, *shape), normal(3, *shape)

    def run(function):
        def loss(x, scale, bias):
            return jnp.sum(outer * function(x, scale, bias, 1e-5, jnp.float32))

        return jax.grad(loss, (0, 1, 2))(x, scale, bias)

    with jax.disable_jit():
        found, expected = run(layer_norm), run(plain_layer_norm)
    jax.tree.map(lambda a, b: assert_close(a, b, 1e-4), found, expected)


@pytest.mark.parametrize("modulated", [True, False])
def test_group_norm_is_the_same_by_the_sums_of_gpus(modulated, monkeypatch):
    x, scale, bias = 2 + normal(0, 2, 4, 3, 8), normal(1, 8), normal(2, 8)
    modulation = (normal(3, 2, 8), normal(4, 2, 8)) if modulated else None
    added = None if modulated else normal(5, 2, 8)

    def run(sums):
        use_sums(monkeypatch, "group_norm", sums)
        options = GroupNormOptions(4, 1e-5, True, jnp.float32)
        call = lambda *a: group_norm(*a, options)  # noqa: E731
        with jax.disable_jit():
            y, pull = jax.vjp(call, x, scale, bias, modulation, added)
            return y, pull(jnp.cos(y))

    jax.tree.map(lambda a, b: assert_close(a, b, 1e-5), run(CUDA), run(DEFAULT))


def test_what_is_added_before_a_norm_is_swept_over_in_no_pass():
    """As much is summed as without it, forward and backward."""
    x, row = jnp.zeros((2, 8, 8, 32)), jnp.zeros(32)

    def sweeps(added):
        def loss(x, added):
            options = GroupNormOptions(8, 1e-5, True, "f4")
            return group_norm(x, row, row, None, added, options).sum()

        jaxpr = jax.make_jaxpr(jax.grad(loss, (0, 1)))(x, added)
        return str(jaxpr).count("axes=(1, 2)")

    assert sweeps(jnp.zeros((2, 32))) == sweeps(None) > 0


@pytest.mark.parametrize("fsdp", [1, 2])
def test_gradients_of_kernels_lie_as_they_do_on_gpus_that_hold_all(fsdp):
    """XLA gathers what is split for the constraint."""
    x, kernel = normal(0, 2, 5, 4, 3), normal(1, 3, 3, 3, 6)
    options = (1, 1), "SAME"
    names = dict(dimension_numbers=("NHWC", "HWIO", "NHWC"))

    def gradients(convolve, *inputs):
        y, pull = jax.vjp(lambda *a: convolve(*a, *options, **names), *inputs)
        return y, pull(jnp.cos(y))

    mesh = make_mesh(2 // fsdp, fsdp, jax.devices()[:2])
    ours = jax.jit(on_mesh(lambda *a: gradients(conv_general_dilated, *a), mesh))
    plain = jax.jit(lambda *a: gradients(jax.lax.conv_general_dilated, *a))
    jax.tree.map(np.testing.assert_array_equal, ours(x, kernel), plain(x, kernel))
    for platform in ("cuda", "cpu", "tpu"):
        traced = ours.trace(x, kernel).lower(lowering_platforms=(platform,))
        constrained = "LayoutConstraint" in traced.as_text()
        assert constrained == (platform == "cuda" and fsdp == 1), platform


def test_kernels_of_networks_get_gradients_that_lie_as_they_do():
    options = dict(channel_mult=(1, 2), num_res_blocks=1, num_heads=1)
    network = UNet(3, 32, **options)
    latents, time = jnp.zeros((1, 8, 8, 3)), jnp.zeros(1)
    variables = variable_shapes(network, latents, time)

    def loss(variables):
        return network.apply(variables, latents, time).sum()

    traced = jax.jit(jax.grad(loss)).trace(variables)
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    turned = re.findall(r"@LayoutConstraint\(.*-> tensor<([\dx]+)xf32>", text)
    kernels = {leaf.shape for leaf in jax.tree.leaves(variables) if leaf.ndim == 4}
    # The one behind an enlargement is computed as four of 2 x 2.
    kernels = kernels | {(2, 2, 64, 64)}
    assert {tuple(map(int, shape.split("x"))) for shape in turned} == kernels


def test_maps_are_joined_once_and_their_gradients_are_parts():
    x, skip = normal(0, 2, 3, 3, 4), normal(1, 2, 3, 3, 2)
    joined, pull = jax.vjp(join, x, skip)
    np.testing.assert_array_equal(joined, jnp.concatenate([x, skip], axis=-1))
    for part, given in zip(pull(joined), (x, skip), strict=True):
        np.testing.assert_array_equal(part, given)
    # One barrier: the gradient has none.
    both = jax.jit(lambda *x: jax.vjp(join, *x)[1](join(*x)))
    assert both.lower(x, skip).as_text().count("optimization_barrier") == 1


@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-5), ("bfloat16", 0.02)])
def test_geglu_has_the_gradients_of_the_plain_form(dtype, tolerance):
    x, outer = 3 * normal(0, 2, 5, 16), normal(1, 2, 5, 8)

    def plain(x):
        value, gate = jnp.split(x, 2, axis=-1)
        return value * jax.nn.gelu(gate, approximate=False)

    @jax.jit
    def run(x):
        ours, pull = jax.vjp(geglu, x.astype(dtype))
        theirs, pull_plain = jax.vjp(plain, x.astype(dtype).astype(jnp.float32))
        pulled = pull(outer.astype(dtype)), pull_plain(outer)
        assert ours.dtype == pulled[0][0].dtype == dtype
        return (ours, theirs), (pulled[0][0], pulled[1][0])

    for found, expected in run(x):
        assert_close(found.astype(jnp.float32), expected, tolerance)
    # Far out, too, where one form of it would divide zeros.
    far = jnp.asarray([-1e4, -30.0, 30.0, 1e4])
    np.testing.assert_array_equal(gelu(far), [0, 0, 30, 1e4])
    slopes = jax.vjp(geglu, jnp.concatenate([jnp.ones(4), far]))[1](jnp.ones(4))[0]
    np.testing.assert_array_equal(slopes, [0, 0, 30, 1e4, 0, 0, 1, 1])


def test_gelu_rounds_once():
    x = jnp.linspace(-6, 6, 500).astype(jnp.bfloat16)
    exact = jax.nn.gelu(x.astype(jnp.float32), approximate=False)
    np.testing.assert_allclose(
        gelu(x).astype(jnp.float32), exact, rtol=2**-8, atol=1e-6
    )


def test_geglu_keeps_its_input_and_differentiates_twice():
    x = normal(0, 3, 8)
    _, pull = jax.vjp(geglu, x)
    kept = [leaf for leaf in jax.tree.leaves(pull) if hasattr(leaf, "shape")]
    assert [leaf.shape for leaf in kept] == [x.shape]

    def curved(x):
        return jnp.sum(jnp.square(jax.grad(lambda x: jnp.sum(geglu(x)))(x)))

    slope, along = jax.grad(curved)(x), normal(1, 3, 8)
    step = 1e-2 * along
    expected = (curved(x + step) - curved(x - step)) / 2e-2
    assert_close(jnp.sum(slope * along), expected, 1e-3)


def plain_attend(query, key, value, mask):
    scores = jnp.einsum("bhtd,bhsd->bhts", query, key)
    weights = jax.nn.softmax(jnp.where(mask, scores, -jnp.inf), axis=-1)
    return jnp.einsum("bhts,bhsd->bhtd", weights, value)


@pytest.mark.parametrize("dtype, tolerance", [("float32", 2e-5), ("bfloat16", 0.02)])
def test_attention_has_the_gradients_of_the_plain_form(dtype, tolerance):
    shapes = ((2, 3, 4, 5), (2, 3, 6, 5), (2, 3, 6, 5))
    inputs = [normal(i, *shape).astype(dtype) for i, shape in enumerate(shapes)]
    mask = jnp.arange(6)[None] <= jnp.arange(4)[:, None] + 1

    @jax.jit
    def run(*inputs):
        def values(function, inputs):
            y, pull = jax.vjp(lambda *a: function(*a, mask), *inputs)
            return y, *pull(normal(3, *y.shape).astype(y.dtype))

        exact = [x.astype(jnp.float32) for x in inputs]
        return values(attend, inputs), values(plain_attend, exact)

    for a, b in zip(*run(*inputs), strict=True):
        assert a.dtype == dtype
        assert_close(a.astype(jnp.float32), b, tolerance)
