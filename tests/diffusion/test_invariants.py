"""What no step of a loop changes is computed before it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.diffusion.grids import make_points
from ldm_jax.diffusion.guidance import guide
from ldm_jax.diffusion.invariants import hoist_invariants
from ldm_jax.diffusion.samplers import make_sampler
from ldm_jax.diffusion.schedule import make_schedule
from ldm_jax.diffusion.solve import invert, sample
from ldm_jax.flops import inner_jaxprs
from ldm_jax.models.unet import UNet
from tests.common import random_variables


def equations(jaxpr):
    """(name, shape of what is made, depth in loops) of all equations."""
    found = []
    for eqn in jaxpr.eqns:
        deeper = eqn.primitive.name in ("scan", "while")
        found += [(eqn.primitive.name, v.aval.shape, 0) for v in eqn.outvars]
        for inner in inner_jaxprs(eqn):
            found += [(n, s, depth + deeper) for n, s, depth in equations(inner)]
    return found


def test_casts_and_products_leave_a_loop_and_what_only_grows_stays():
    # Whole numbers, which bfloat16 has exactly.
    keys = jax.random.split(jax.random.key(0), 3)
    whole = [jax.random.randint(key, (6, 6), -2, 3).astype(float) for key in keys[:2]]
    given = *whole, keys[2]

    def run(change, weights, context, rng):
        def body(carry, index):
            values = context.astype(jnp.bfloat16) @ weights.astype(jnp.bfloat16)
            wide = jnp.broadcast_to(weights[:1], (3, 6))
            # A token of zeros more, as cuDNN has it of a caption.
            wide += jnp.pad(context, ((0, 1), (0, 0)))[4:]
            x = jnp.sin(carry["x"] @ values.astype(jnp.float32)) + wide * index
            x += jax.random.normal(jax.random.fold_in(carry["rng"], index), (3, 6))
            return carry | {"x": x, "count": carry["count"] + 1}, {"a": 2, "b": index}

        carry = {"x": jnp.ones((3, 6)), "count": 0, "rng": rng}
        indices = jnp.arange(3)
        carry, made = jax.lax.scan(change(body, carry, indices[0]), carry, indices)
        return carry | {"rng": jax.random.key_data(carry["rng"])}, made

    plain = functools.partial(run, lambda body, *examples: body)
    hoisted = functools.partial(run, hoist_invariants)
    ours, expected = jax.jit(hoisted)(*given), jax.jit(plain)(*given)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=1e-5)
    assert jax.tree.structure(ours) == jax.tree.structure(expected)
    before = equations(jax.make_jaxpr(plain)(*given))
    after = equations(jax.make_jaxpr(hoisted)(*given))
    # Two casts, the product and one that widens it again.
    for name in ("convert_element_type", "dot_general"):
        assert (name, (6, 6), 1) in before and (name, (6, 6), 0) in after
    assert ("dot_general", (6, 6), 1) not in after
    assert ("dot_general", (3, 6), 1) in after
    assert ("broadcast_in_dim", (3, 6), 1) in after
    assert ("pad", (7, 6), 1) in before and ("pad", (7, 6), 0) in after
    with jax.disable_jit():
        assert hoist_invariants(run, 1.0) is run


@pytest.mark.parametrize("inverted", [False, True])
@pytest.mark.parametrize("interval", [None, (200.0, 800.0)])
def test_a_sampler_casts_weights_and_reads_a_context_once(interval, inverted):
    options = dict(channels=32, channel_mult=(1,), num_res_blocks=1, num_heads=1)
    network = UNet(3, **options, attention_factors=(1,), transformer_depth=1)
    latents, context = jnp.zeros((1, 4, 4, 3)), jnp.ones((1, 7, 5))
    variables = random_variables(network, latents, jnp.zeros(1), context)
    network = network.clone(dtype="bfloat16")
    points = make_points(make_schedule(), 3)

    def draw(variables, context, rngs):
        def of(context):
            def output(latents, point):
                time = jnp.broadcast_to(point.timestep, latents.shape[:1])
                return network.apply(variables, latents, time, context)

            return output

        output = guide(of, [0 * context, context], [3.0], interval)

        def predict(latents, point):
            return latents, output(latents, point)

        if inverted:
            return invert(predict, latents, points, iterations=2)
        return sample(make_sampler("ddim"), predict, latents, points, rngs)

    rngs = jax.random.split(jax.random.key(0), 1)
    found = equations(jax.make_jaxpr(draw)(variables, context, rngs))
    kernels = {leaf.shape for leaf in jax.tree.leaves(variables) if leaf.ndim > 1}
    casts = {(s, depth) for n, s, depth in found if n == "convert_element_type"}
    assert {(shape, 0) for shape in kernels} <= casts
    assert not kernels & {shape for shape, depth in casts if depth}
    # Keys and values of the context, alone and beside that of no condition.
    rows = {(s[0], depth) for n, s, depth in found if n == "dot_general"}
    assert (14, 0) in rows and not rows & {(7, 1), (14, 1), (7, 2), (14, 2)}
