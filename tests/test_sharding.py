"""The mesh, the parameter rule, and batches that do not divide."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from ldm_jax import sharding


@pytest.mark.parametrize(
    "shape, expected",
    [
        ((3, 3, 256, 512), P(None, None, None, "fsdp")),
        ((3, 3, 512, 256), P(None, None, "fsdp")),
        ((512, 512), P(None, "fsdp")),
        ((1024, 513), P("fsdp")),
        ((1023, 513), P()),
        ((512,), P()),
        ((), P()),
    ],
)
def test_parameter_rule_splits_the_largest_divisible_dimension(shape, expected):
    assert sharding.parameter_spec(shape, fsdp=4) == expected


def test_one_device_along_fsdp_replicates_everything():
    assert sharding.parameter_spec((512, 512), fsdp=1) == P()


def test_overrides_win_by_path_and_are_checked():
    mesh = sharding.make_mesh(data=2, fsdp=4)
    tree = {"backbone": {"kernel": np.zeros((512, 512)), "bias": np.zeros(8)}}
    rows = [("kernel", None), ("bias", 0)]
    specs = jax.tree.map(lambda s: s.spec, sharding.tree_shardings(tree, mesh, rows))
    assert specs == {"backbone": {"kernel": P(), "bias": P("fsdp")}}
    with pytest.raises(ValueError, match="axis 1 of backbone/bias"):
        sharding.tree_shardings(tree, mesh, [("bias", 1)])


def test_mesh_that_does_not_cover_the_devices_is_an_error():
    with pytest.raises(ValueError, match="3 x fsdp=2 does not cover 8 devices"):
        sharding.make_mesh(data=3, fsdp=2)
    with pytest.raises(ValueError, match="train.mesh"):
        sharding.make_mesh(fsdp=3)


def test_batch_size_error_names_the_nearest_that_works():
    mesh = sharding.make_mesh()
    sharding.check_batch_size(16, mesh)
    with pytest.raises(ValueError, match="train.batch_size=8$"):
        sharding.check_batch_size(10, mesh)
    with pytest.raises(ValueError, match="train.batch_size=16$"):
        sharding.check_batch_size(8, mesh, parts=2)


def test_batches_and_trees_arrive_whole():
    mesh = sharding.make_mesh(data=4, fsdp=2)
    batch = {"image": np.arange(32, dtype=np.uint8).reshape(16, 2)}
    put = sharding.put_batch(batch, mesh)["image"]
    np.testing.assert_array_equal(put, batch["image"])
    assert put.sharding.shard_shape(put.shape) == (2, 2)
    tree = {"a": np.arange(2**18, dtype=np.float32).reshape(512, 512), "b": np.ones(3)}
    shardings = sharding.tree_shardings(tree, mesh)
    placed = sharding.put_tree(tree, shardings)
    assert placed["a"].sharding.shard_shape((512, 512)) == (512, 256)
    jax.tree.map(np.testing.assert_array_equal, placed, tree)
    total = jax.jit(lambda t: jnp.sum(t["a"]))(placed)
    np.testing.assert_allclose(total, tree["a"].sum(dtype=np.float64), rtol=1e-5)
