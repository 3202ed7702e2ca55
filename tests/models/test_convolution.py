"""Convolutions and their gradients, on a CPU products of matrices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax import flops, sharding
from ldm_jax.models.operations import convolution, im2col, kernel_gradient
from ldm_jax.models.operations.convolution import conv_general_dilated

NAMES = ("NHWC", "HWIO", "NHWC")
SAME = ((1, 1), (1, 1))
XLA = functools.partial(
    jax.lax.conv_general_dilated, window_strides=(1, 1), dimension_numbers=NAMES
)


def _arrays(size=(8, 8), window=(3, 3), channels=16):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4, *size, channels), np.float32)
    kernel = rng.standard_normal((*window, channels, 8), np.float32)
    return jnp.asarray(x), jnp.asarray(kernel)


def _alone(function):
    """Has a function traced for the first of the simulated devices."""
    return sharding.on_mesh(function, sharding.make_mesh(1, 1, jax.devices()[:1]))


def _ours(x, kernel, padding=SAME, strides=(1, 1), **named):
    named = {"dimension_numbers": NAMES} | named
    return conv_general_dilated(x, kernel, strides, padding, **named)


def _gradient(convolve, of=(0, 1), **named):
    return jax.grad(lambda *xs: jnp.sum(jnp.sin(convolve(*xs, **named))), of)


def _has_products(x, kernel, on=_alone, **named):
    traced = jax.make_jaxpr(on(_gradient(_ours, **named)))(x, kernel)
    return "branches_platforms=(('cpu',), None)" in str(traced)


any_window = pytest.mark.parametrize(
    ("size", "window", "padding"),
    [
        ((8, 8), (3, 3), SAME),
        ((9, 7), (3, 3), SAME),
        ((6, 6), (3, 3), ((0, 0), (0, 0))),
        ((8, 8), (2, 2), ((1, 0), (0, 1))),
        ((12, 5), (4, 4), SAME),
        ((10, 6), (3, 1), ((2, 0), (0, 0))),
        ((6, 5), (2, 3), ((3, 2), (-1, 4))),
        ((3, 40), (1, 3), ((0, 0), (0, 2))),
        ((4, 4), (3, 3), ((0, 0), (-1, 0))),
    ],
)


@any_window
@pytest.mark.parametrize("pixels", [16, 64, 1024])
def test_products_are_the_gradient(monkeypatch, size, window, padding, pixels):
    """Whatever the blocks: lines of an image, several images, or all at once."""
    monkeypatch.setattr(kernel_gradient, "_PIXELS", pixels)
    x, kernel = _arrays(size, window)
    y, pull = jax.vjp(lambda kernel: XLA(x, kernel, padding=padding), kernel)
    (expected,) = pull(jnp.sin(y))
    found = kernel_gradient.by_products(x, jnp.sin(y), padding)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@any_window
def test_few_pixels_are_convolved_alike(size, window, padding):
    x, kernel = _arrays(size, window)
    expected, pull = jax.vjp(lambda x: XLA(x, kernel, padding=padding), x)
    found = im2col.convolve(x, kernel, padding)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    gradient = jnp.sin(expected)
    found = im2col.gradient_by_input(kernel, gradient, padding)
    np.testing.assert_allclose(found, pull(gradient)[0], rtol=1e-4, atol=1e-4)


def test_sums_of_taps_are_rounded_once():
    x, kernel = (array.astype(jnp.bfloat16) for array in _arrays())
    gradient = jnp.sin(XLA(x, kernel, padding=SAME))
    found = im2col.gradient_by_input(kernel, gradient, SAME)
    wide = (array.astype(jnp.float32) for array in (kernel, gradient))
    expected = im2col.gradient_by_input(*wide, SAME)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_array_equal(found, expected.astype(jnp.bfloat16))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_few_pixels_with_a_wide_kernel_are_one_product(monkeypatch, dtype):
    """By the input, and in bfloat16 forward; others are left to XLA."""
    monkeypatch.setattr(im2col, "_WEIGHTS", 16 * 8)
    of_input = lambda x, kernel: _gradient(_ours, of=0)(x, kernel)  # noqa: E731
    few, kernel = (array.astype(dtype) for array in _arrays((1, 2)))
    forward = int(dtype == jnp.float32)
    for size, function, left in (
        ((1, 2), _ours, forward),
        ((1, 3), _ours, 1),
        ((1, 2), of_input, forward),
        # In float32 products by the input of up to sixteen pixels. In bfloat16 they go
        # with those of the forward pass, of up to eight.
        ((1, 3), of_input, 1 + (dtype == jnp.bfloat16)),
        ((1, 4), of_input, 1 + (dtype == jnp.bfloat16)),
        ((1, 5), of_input, 2),
    ):
        x = _arrays(size)[0].astype(dtype)
        text = jax.jit(_alone(function)).lower(x, kernel).as_text()
        assert text.count("stablehlo.convolution") == left, (size, function)
    expected = XLA(few, kernel, padding=SAME)
    tolerance = 1e-2 if dtype == jnp.bfloat16 else 1e-5
    np.testing.assert_allclose(
        _alone(_ours)(few, kernel).astype(jnp.float32),
        expected.astype(jnp.float32),
        rtol=tolerance,
        atol=tolerance,
    )


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_accelerators_keep_their_convolutions(monkeypatch, dtype):
    monkeypatch.setattr(im2col, "_WEIGHTS", 16 * 8)
    both = jax.jit(_alone(jax.value_and_grad(lambda *xs: _ours(*xs).sum(), (0, 1))))
    traced = both.trace(*(array.astype(dtype) for array in _arrays((1, 2))))
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("stablehlo.convolution") == 3
    assert "stablehlo.dot_general" not in text
    # On a CPU: forward in float32, by the kernel in bfloat16.
    assert traced.lower().as_text().count("stablehlo.convolution") == 1


@pytest.mark.parametrize("padding", [SAME, "SAME", "VALID", ((2, 1), (0, 3))])
def test_both_gradients_are_those_of_xla(padding):
    x, kernel = _arrays((9, 7))
    assert _has_products(x, kernel, padding=padding)
    found = _alone(_gradient(_ours, padding=padding))(x, kernel)
    expected = _gradient(XLA, padding=padding)(x, kernel)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("weights", [1, im2col._WEIGHTS])
def test_nothing_comes_out_of_images_smaller_than_the_window(monkeypatch, weights):
    monkeypatch.setattr(im2col, "_WEIGHTS", weights)
    x, kernel = _arrays((1, 5))
    assert _alone(_ours)(x, kernel, padding="VALID").shape == (4, 0, 3, 8)
    for found, like in zip(
        _alone(_gradient(_ours, padding="VALID"))(x, kernel), (x, kernel), strict=True
    ):
        np.testing.assert_array_equal(found, np.zeros_like(like))


def test_a_compiled_gradient_has_no_convolution_for_the_kernel():
    x, kernel = _arrays((64, 64))
    compiled = jax.jit(_alone(_gradient(_ours, of=1))).lower(x, kernel).compile()
    # That of the forward pass is left.
    assert compiled.as_text().count(" convolution(") == 1
    assert " while(" in compiled.as_text()


@pytest.mark.parametrize("of", [0, 1, (0, 1)])
def test_what_is_frozen_has_no_gradient(of):
    """Nor operations, which a step is measured by: they are those of XLA's."""
    x, kernel = _arrays()
    ours, theirs = (
        flops.count_flops(jax.make_jaxpr(function)(x, kernel))
        for function in (_alone(_gradient(_ours, of)), _gradient(XLA, of, padding=SAME))
    )
    assert ours == theirs


@pytest.mark.parametrize(
    "change",
    [
        {"strides": (2, 2)},
        {"rhs_dilation": (2, 2)},
        {"lhs_dilation": (2, 2)},
        {"precision": "highest"},
        {"dimension_numbers": ("NHWC", "WHIO", "NHWC")},
    ],
)
def test_others_are_left_to_xla(change):
    assert _has_products(*_arrays())
    assert not _has_products(*_arrays(), **change)


def test_few_channels_and_other_types_are_left_to_xla():
    few = convolution._CHANNELS
    assert _has_products(*_arrays(channels=few))
    assert not _has_products(*_arrays(channels=few - 1))
    assert not _has_products(*(array.astype(jnp.bfloat16) for array in _arrays()))
    assert not _has_products(*_arrays(window=(1, 1)), padding="VALID")


def test_a_batch_that_may_be_split_is_left_to_xla():
    """Blocks would gather it."""
    split = lambda f: sharding.on_mesh(f, sharding.make_mesh(2, 1, jax.devices()[:2]))  # noqa: E731
    assert not _has_products(*_arrays(), on=split)
    assert not _has_products(*_arrays(), on=lambda function: function)


def test_a_precision_of_the_context_is_kept():
    with jax.default_matmul_precision("highest"):
        assert not _has_products(*_arrays())
