"""What is in memory at once, against counts by hand."""

import jax
import jax.numpy as jnp

from ldm_jax.planning.flatten import flatten
from ldm_jax.planning.liveness import Lifetimes
from ldm_jax.planning.order import with_sums_last

ROWS = 127


def _trace(function, *shapes):
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return jax.make_jaxpr(function)(*arguments)


def _peak(function, *shapes, rows=2, split=lambda shape: 1, sums_last=False):
    jaxpr = _trace(function, *shapes)
    return Lifetimes(jaxpr, ROWS, split, sums_last).peak(rows)


def test_what_is_elementwise_takes_nothing_of_its_own():
    def network(x, w):
        return jnp.tanh(jnp.exp(jnp.sin(x @ w) + 1) * 2).sum()

    assert _peak(network, (ROWS, 8), (8, 16), rows=3).total == 4 * 3 * 16


def test_a_product_reads_arrays():
    def network(x, w):
        y = x @ w
        return (jnp.sin(y) @ w).sum()

    # y, then sin(y) beside it, then the result beside that.
    assert _peak(network, (ROWS, 8), (8, 8), rows=3).total == 2 * 4 * 3 * 8


def test_of_what_platforms_do_in_their_ways_gpus_are_planned():
    def network(x, w):
        two = dict(cuda=lambda y: jnp.sin(y), default=lambda y: jnp.sin(y @ w) @ w)
        return jax.lax.platform_dependent(x @ w, **two).sum()

    jaxpr = _trace(network, (ROWS, 8), (8, 8))
    assert "cond" in {eqn.primitive.name for eqn in jaxpr.eqns}
    names = [step.name for step in flatten(jaxpr).steps]
    assert "cond" not in names and names.count("dot_general") == 1


def test_what_the_backward_pass_reads_is_kept():
    def network(w, x):
        for _ in range(5):
            x = jnp.sin(x @ w)
        return x.sum()

    peak = _peak(jax.grad(network), (8, 8), (ROWS, 8), rows=100)
    # Of each layer what the product gives and what the next one takes, at its peak.
    one = 4 * 100 * 8
    assert 9 * one <= peak.total <= 11 * one
    assert peak.activations + peak.moving > 0.9 * peak.total


def test_what_is_computed_again_is_not_kept():
    def layer(x, w):
        for _ in range(4):
            x = jnp.sin(x @ w)
        return x

    def loss(layer):
        def network(w, x):
            for _ in range(4):
                x = layer(x, w)
            return x.sum()

        return jax.grad(network)

    shapes = (8, 8), (ROWS, 8)
    plain = _peak(loss(layer), *shapes, rows=100).total
    again = _peak(loss(jax.checkpoint(layer)), *shapes, rows=100).total
    assert again < plain / 2


def test_a_gradient_is_split_as_its_parameter_is():
    def network(x, y):
        gradient = x.T @ y
        return gradient * jnp.sin(gradient).sum()

    shapes = (ROWS, 64), (ROWS, 32)
    assert _peak(network, *shapes).total == 4 * 64 * 32 + 4
    assert _peak(network, *shapes, split=lambda shape: 4).total == 64 * 32 + 1


def test_a_split_parameter_is_gathered_for_its_products():
    def network(x, w):
        return (jnp.sin(x @ w) @ w).sum()

    shapes, rows = ((ROWS, 8), (8, 8)), 4 * 3 * 8
    assert _peak(network, *shapes, rows=3).total == 2 * rows
    gathered = _peak(network, *shapes, rows=3, split=lambda shape: 2)
    assert gathered.total == 2 * rows + 4 * 8 * 8


def test_a_loop_takes_what_its_body_takes():
    def loop(w, x):
        def body(total, row):
            return total + jax.grad(lambda w: jnp.sin(row @ w).sum())(w), None

        return jax.lax.scan(body, jnp.zeros_like(w), x)[0]

    peak = _peak(loop, (8, 8), (4, ROWS, 8), rows=10)
    assert peak.total >= 4 * 10 * 8


def test_of_a_part_of_what_is_computed_the_sources_parts_are_kept():
    def network(x, w):
        y, z = x @ w, jnp.sin(x) @ w
        head, tail = jnp.split(y * z, [4], axis=1)
        # Of the tail more is needed once the head is done with.
        return (jnp.sin(head) @ jnp.ones((4, 64))).sum() + tail.sum()

    # Of y and of z the tail, beside the wide product of the head.
    peak = _peak(network, (ROWS, 8), (8, 16), rows=3)
    assert peak.activations == 4 * 3 * 2 * (16 - 4)


def test_a_kernel_is_copied_for_its_convolutions():
    def network(x, kernel):
        for _ in range(2):
            x = jax.lax.conv_general_dilated(
                x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
        return x.sum()

    peak = _peak(network, (ROWS, 4, 4, 8), (3, 3, 8, 8), rows=2)
    assert peak.fixed + peak.moving == 4 * (3 * 3 * 8 * 8 + 2 * 2 * 4 * 4 * 8)


def _tower(v, w, x):
    """Two products and a mean, which a gradient needs no value of."""
    return jnp.sin(jnp.sin(x @ v) @ w).mean()


def test_sums_over_the_batch_come_last_on_several_devices():
    program = flatten(_trace(jax.grad(_tower, (0, 1)), (8, 16), (16, 32), (ROWS, 8)))
    ordered = with_sums_last(program, ROWS)
    assert sorted(map(id, ordered.steps)) == sorted(map(id, program.steps))
    products = [
        ordered.avals[step.outputs[0]].shape
        for step in ordered.steps
        if step.name == "dot_general"
    ]
    # Two forward, one back to the first activations, and then what has no rows.
    assert products[:3] == [(ROWS, 16), (ROWS, 32), (ROWS, 16)]
    assert sorted(map(sorted, products[3:])) == [[8, 16], [16, 32]]
    made = set(program.arguments)
    for step in ordered.steps:
        assert made.issuperset(step.inputs)
        made.update(step.outputs)


def test_what_a_sum_over_devices_reads_is_kept_to_the_end():
    shapes, rows = ((8, 32), (32, 8), (ROWS, 8)), 4 * 1000
    alone = _peak(jax.grad(_tower, (0, 1)), *shapes, rows=1000)
    several = _peak(jax.grad(_tower, (0, 1)), *shapes, rows=1000, sums_last=True)
    # The first product, and the gradients behind and before its sine.
    assert alone.total == rows * (32 + 32 + 32)
    # The product and the gradient behind its sine, and what the gradient of the other
    # weights still reads: that sine and the gradient of the second product.
    assert several.total == rows * (32 + 32 + 32 + 8)
