"""Both stages on simulated devices, split along either axis of the mesh."""

import jax
import numpy as np
import pytest

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


def _assert_same_up_to_rounding(name, shapes_dir, one, other):
    assert other[0] == pytest.approx(one[0], rel=1e-4)
    gaps = jax.tree.map(lambda a, b: np.abs(a - b), one[1], other[1])
    # Adam's first steps turn the rounding of a gradient near zero into its sign.
    rate = tiny_config(name, shapes_dir).train.learning_rate
    assert max(gap.max() for gap in jax.tree.leaves(gaps)) <= 4.1 * rate
    assert np.mean([gap.mean() for gap in jax.tree.leaves(gaps)]) < 0.05 * rate
