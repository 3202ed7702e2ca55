"""What a traced program multiplies, against counts by hand."""

import jax
import jax.numpy as jnp
import pytest

from ldm_jax.flops import count_flops
from ldm_jax.models.operations.kernels import KERNELS


def _count(function, *shapes):
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return count_flops(jax.make_jaxpr(function)(*arguments))


def _conv(x, kernel, stride=1):
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def test_a_product_of_matrices():
    assert _count(jnp.dot, (3, 5), (5, 7)) == 2 * 3 * 5 * 7
    batched = _count(
        lambda a, b: jnp.einsum("bij,bjk->bik", a, b), (2, 3, 5), (2, 5, 7)
    )
    assert batched == 2 * 2 * 3 * 5 * 7


@pytest.mark.parametrize("stride", [1, 2])
def test_either_gradient_of_a_convolution_costs_as_much_as_the_convolution(stride):
    shapes = (2, 8, 8, 3), (3, 3, 3, 5)
    forward = 2 * 2 * (8 // stride) ** 2 * 5 * 9 * 3
    assert _count(lambda x, k: _conv(x, k, stride), *shapes) == forward

    def loss(x, kernel):
        return _conv(x, kernel, stride).sum()

    for argument in (0, 1):
        both = _count(jax.value_and_grad(loss, argument), *shapes)
        assert both == 2 * forward


def test_loops_branches_and_what_is_computed_twice():
    once = 2 * 4**3

    def loop(x):
        return jax.lax.scan(lambda c, _: (c @ x, None), x, length=3)[0]

    def branch(x):
        return jax.lax.cond(x[0, 0] > 0, lambda x: x @ x @ x, lambda x: x @ x, x)

    def twice(x):
        return jax.grad(lambda x: jnp.sin(jax.checkpoint(jnp.sin)(x @ x)).sum())(x)

    assert _count(loop, (4, 4)) == 3 * once
    assert _count(branch, (4, 4)) == 2 * once
    assert _count(twice, (4, 4)) == 3 * once
    # Inside of what is computed again a product counts again.
    again = jax.grad(
        lambda x: jax.checkpoint(lambda x: jnp.sin(jnp.sin(x @ x)))(x).sum()
    )
    assert _count(again, (4, 4)) == 4 * once


@pytest.mark.parametrize("name, backward", [("cudnn", 5), ("flash", 7)])
def test_an_attention_by_a_kernel_counts_its_products(name, backward, monkeypatch):
    """Kernels compute scores again, the one for TPUs in each of two."""
    cudnn = "jax._src.cudnn.fused_attention_stablehlo"
    monkeypatch.setattr(f"{cudnn}.check_cudnn_version", lambda: 91000)
    query = jax.ShapeDtypeStruct((2, 3, 256, 128), jnp.bfloat16)
    key = jax.ShapeDtypeStruct((2, 3, 384, 128), jnp.bfloat16)

    def run(query, key, value):
        return KERNELS[name].run(query, key, value, None).astype(jnp.float32).sum()

    product = 2 * 2 * 3 * 256 * 384 * 128
    forward = count_flops(jax.make_jaxpr(run)(query, key, key))
    assert forward == pytest.approx(2 * product, rel=0.02)
    both = count_flops(jax.make_jaxpr(jax.grad(run, (0, 1, 2)))(query, key, key))
    assert both == pytest.approx((2 + backward) * product, rel=0.02)
