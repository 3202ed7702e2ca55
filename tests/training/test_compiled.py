"""What a compiled step says of itself."""

import jax
import jax.numpy as jnp
import pytest

from ldm_jax import sharding
from ldm_jax.console import Console
from ldm_jax.models.operations.dot_product import dot_product_attention
from ldm_jax.training.compiled import CompiledStep, jit_step
from ldm_jax.training.step import accumulate


class Lines(Console):
    """A console that keeps its lines."""

    def __init__(self):
        self.kept = []

    def line(self, text):
        self.kept.append(text)


@pytest.mark.parametrize("parts", [1, 2])
def test_a_step_says_its_attentions_and_its_operations(parts):
    """Micro-batches, one after the other, count as often as they are computed."""

    def gradients(batch, index, carry):
        x = batch["image"].reshape(-1, 1, 16, 8)
        return dot_product_attention(x, x, x).sum(), carry

    @jax.jit
    def step(state, frozen, batch):
        del state
        return accumulate(gradients, batch, frozen, parts)

    lines = Lines()
    batch = {"image": jnp.ones((2, 4, 4, 8))}
    compiled = CompiledStep(step, 2, 1, lines)
    compiled.prepare(jnp.float32(0), (), batch)
    assert lines.kept[0] == "attention: einsum 16x16 1x8"
    assert lines.kept[1].startswith("compiled the training step for 4 x 4 in ")
    (_, flops), *_ = compiled._programs.values()
    assert flops == 2 * 2 * 2 * 16 * 16 * 8


def test_a_second_run_of_a_stage_traces_nothing():
    traced, mesh = [], sharding.make_mesh()

    def train_step(state, frozen, batch):
        traced.append(batch)
        return state, frozen

    for _ in range(2):
        step = jit_step(train_step, sharding.replicated(mesh), mesh)
        step(jnp.zeros(()), jnp.ones(()), jnp.ones(()))
    assert len(traced) == 1
