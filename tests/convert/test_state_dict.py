"""Strictness of state-dict mappings, and transforms that undo themselves."""

import jax
import numpy as np
import pytest

from ldm_jax.weights.state_dict import (
    CONV,
    DENSE,
    POINTWISE_1D,
    POINTWISE_2D,
    SAME,
    Row,
    layer_rows,
    norm_rows,
    select,
    split_qkv,
    to_params,
    to_state_dict,
)

ROWS = [
    *layer_rows("conv", "a/conv", CONV),
    *norm_rows("norm", "a/norm"),
    *layer_rows("shortcut", "a/shortcut", POINTWISE_2D),  # only some models have it
]


def shape(*sizes):
    return jax.ShapeDtypeStruct(sizes, np.float32)


def target():
    return {
        "a": {
            "conv": {"kernel": shape(3, 3, 2, 5), "bias": shape(5)},
            "norm": {"scale": shape(5), "bias": shape(5)},
        }
    }


def theirs():
    rng = np.random.default_rng(0)
    shapes = {
        "conv.weight": (5, 2, 3, 3),
        "conv.bias": (5,),
        "norm.weight": (5,),
        "norm.bias": (5,),
    }
    return {k: rng.standard_normal(s, np.float32) for k, s in shapes.items()}


def test_round_trip():
    params = to_params(ROWS, theirs(), target())
    assert (
        params["a"]["conv"]["kernel"][2, 1, 0, 4] == theirs()["conv.weight"][4, 0, 2, 1]
    )
    back = to_state_dict(ROWS, params)
    assert back.keys() == theirs().keys()
    for key, array in theirs().items():
        np.testing.assert_array_equal(back[key], array)


def test_half_precision_is_read_as_float32():
    half = {k: v.astype(np.float16) for k, v in theirs().items()}
    params = to_params(ROWS, half, target())
    assert {x.dtype for x in jax.tree.leaves(params)} == {np.dtype("float32")}


def test_unread_keys_are_named():
    extra = theirs() | {
        "momentum": np.zeros(3),
        "shortcut.weight": np.zeros((5, 2, 1, 1)),
    }
    with pytest.raises(ValueError, match="2 keys that nothing reads: .*momentum"):
        to_params(ROWS, extra, target())


def test_missing_keys_are_named_with_our_path():
    short = theirs()
    del short["norm.bias"]
    with pytest.raises(
        ValueError, match=r"1 missing keys: norm.bias \(for a/norm/bias"
    ):
        to_params(ROWS, short, target())


def test_parameters_without_a_row_are_named():
    wide = target() | {"b": {"scale": shape(4)}}
    with pytest.raises(ValueError, match=r"\(for b/scale\)"):
        to_params(ROWS, theirs(), wide)
    params = to_params(ROWS, theirs(), target())
    with pytest.raises(ValueError, match="nothing writes: b/scale"):
        to_state_dict(ROWS, params | {"b": {"scale": np.zeros(4)}})


@pytest.mark.parametrize("wrong", [(5, 2, 1, 1), (2, 5, 3, 3), (5, 2), (90,)])
def test_wrong_shapes_are_named(wrong):
    with pytest.raises(
        ValueError, match="wrong shape: conv.weight .* for a/conv/kernel"
    ):
        to_params(ROWS, theirs() | {"conv.weight": np.zeros(wrong)}, target())


@pytest.mark.parametrize(
    "trailing, write", list(enumerate([DENSE, POINTWISE_1D, POINTWISE_2D]))
)
def test_dense_kernels_are_read_from_linear_and_1x1_layers(trailing, write):
    array = np.arange(6.0).reshape(2, 3, *(1,) * trailing)
    for read in (DENSE, POINTWISE_1D, POINTWISE_2D):
        (kernel,) = read.to_ours(array)
        np.testing.assert_array_equal(kernel, np.arange(6.0).reshape(2, 3).T)
    np.testing.assert_array_equal(write.to_theirs(kernel), array)
    with pytest.raises(ValueError):
        DENSE.to_ours(np.zeros((2, 3, 3, 3)))


@pytest.mark.parametrize("head_major", [True, False])
def test_qkv_is_split_head_by_head(head_major):
    """Their output channels are numbered; ours must hold each head's q, k and v."""
    heads, channels = 2, 3
    numbers = np.arange(3 * heads * channels)
    order = (heads, 3, channels) if head_major else (3, heads, channels)
    axis = 1 if head_major else 0
    transform = split_qkv(heads, head_major, SAME)
    for i, part in enumerate(transform.to_ours(numbers)):
        expected = numbers.reshape(order).take(i, axis).ravel()
        np.testing.assert_array_equal(part, expected)
    weights = np.random.default_rng(0).standard_normal((18, 6, 1))
    transform = split_qkv(heads, head_major, POINTWISE_1D)
    parts = transform.to_ours(weights)
    assert [part.shape for part in parts] == [(6, 6)] * 3
    np.testing.assert_array_equal(transform.to_theirs(*parts), weights)


def test_select_takes_the_prefix_off():
    state_dict = {"model.a.b": 1, "model_ema.a": 2, "other": 3}
    assert select(state_dict, "model.") == {"a.b": 1}


def test_rows_are_unique():
    assert len({row.theirs for row in ROWS}) == len(ROWS)
    assert isinstance(ROWS[0], Row)
