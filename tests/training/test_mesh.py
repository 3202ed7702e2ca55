"""Both stages on simulated devices, split along either axis of the mesh."""

import re

import jax
import numpy as np
import pytest

from benchmarks.accelerators.moved import COLLECTIVES
from ldm_jax.cli import load_config
from ldm_jax.planning.abstract import Given, make_planned
from ldm_jax.planning.ahead import lower_step
from ldm_jax.sharding import make_mesh
from tests.runs import (
    STAGES,
    VQ,
    stage_overrides,
    tiny_config,
    train,
    weights_of,
)


@pytest.mark.parametrize(
    "name, mesh, changes",
    [
        (STAGES[0], (4, 1), VQ),
        (STAGES[1], (2, 2), {}),
    ],
    ids=["vq", STAGES[1]],
)
def test_a_mesh_changes_nothing_but_rounding(
    name, mesh, changes, shapes_dir, first_stage, tmp_path, monkeypatch
):
    # Small enough that the tiny networks' kernels are split.
    monkeypatch.setattr("ldm_jax.sharding.MIN_SHARDED_ELEMENTS", 1024)
    extra = stage_overrides(name, first_stage) | changes
    extra |= {"train__num_steps": 2}
    runs = []
    for data, fsdp in ((1, 1), mesh):
        workdir = tmp_path / f"{data}x{fsdp}"
        axes = {"train__mesh__data": data, "train__mesh__fsdp": fsdp}
        metrics = train(name, shapes_dir, workdir, data * fsdp, **extra, **axes)
        runs.append((metrics["loss"], weights_of(workdir)))
    _assert_same_up_to_rounding(name, shapes_dir, *runs)


def test_kernels_are_gathered_and_activations_stay_where_they_are(monkeypatch):
    monkeypatch.setattr("ldm_jax.sharding.MIN_SHARDED_ELEMENTS", 1024)
    given = Given("shapes_autoencoder:tiny", num_classes=8)
    planned = make_planned(load_config("shapes_class:tiny"), given)
    mesh = make_mesh(2, 2, jax.devices()[:4])
    program = lower_step(planned, mesh, 8).compile().as_text()
    names = "|".join(COLLECTIVES)
    sent = re.findall(rf" = \w+(\[.*?\]).* ({names})(?:-start)?\((.*)", program)
    # Rows of the table of classes are looked up where they lie, and sent.
    sent = [(shape, name) for shape, name, rest in sent if "take" not in rest]
    state = jax.tree.leaves((planned.state.params, planned.stage.frozen))
    kernels = {str(list(leaf.shape)).replace(" ", "") for leaf in state}
    gathered = {shape for shape, name in sent if name == "all-gather"}
    assert len(gathered) > 9 and gathered <= kernels
    others = {name for _, name in sent} - {"all-gather"}
    assert others <= {"all-reduce", "reduce-scatter"}


def _assert_same_up_to_rounding(name, shapes_dir, one, other):
    assert other[0] == pytest.approx(one[0], rel=1e-4)
    gaps = jax.tree.map(lambda a, b: np.abs(a - b), one[1], other[1])
    # Adam's first steps turn the rounding of a gradient near zero into its sign.
    rate = tiny_config(name, shapes_dir).train.learning_rate
    assert max(gap.max() for gap in jax.tree.leaves(gaps)) <= 4.1 * rate
    assert np.mean([gap.mean() for gap in jax.tree.leaves(gaps)]) < 0.05 * rate
