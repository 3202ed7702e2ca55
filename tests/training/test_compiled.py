"""What a compiled step says of itself."""

import jax
import jax.numpy as jnp
import pytest

from ldm_jax.models.operations import kernels
from ldm_jax.models.operations.dot_product import dot_product_attention
from ldm_jax.training.compiled import CompiledStep


class Lines(list):
    """A console that keeps its lines."""

    line = list.append


@pytest.mark.parametrize("counted", [True, False])
def test_the_attentions_of_a_step_are_said_in_a_line(counted, monkeypatch):
    """The operations of those that XLA does not see are added to what it counts."""

    @jax.jit
    def step(state, frozen, batch):
        x = batch["image"].reshape(2, 1, 16, 8)
        return state + dot_product_attention(x, x, x).sum(), frozen

    einsum = kernels.KERNELS["einsum"]._replace(counted=counted)
    monkeypatch.setitem(kernels.KERNELS, "einsum", einsum)
    lines = Lines()
    batch = {"image": jnp.ones((2, 4, 4, 8))}
    compiled = CompiledStep(step, 2, 1, lines)
    compiled.prepare(jnp.float32(0), (), batch)
    assert lines[1:] == ["attention: einsum 16x16 1x8"]
    (_, flops), *_ = compiled._programs.values()
    seen = step.lower(jnp.float32(0), (), batch).cost_analysis()["flops"]
    assert flops == seen + (0 if counted else 3 * 4 * 2 * 16 * 16 * 8)
