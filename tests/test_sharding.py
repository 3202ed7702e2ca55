"""The mesh, the parameter rule, and batches that do not divide."""

import functools
import gc
import pathlib
import re
import types
import weakref

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from ldm_jax import sharding
from ldm_jax.evaluation.shapes import probe
from ldm_jax.models.autoencoder import KLAutoencoder
from ldm_jax.models.operations.parameters import initialise
from tests.processes import run_pair


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


class Chip:
    """What a mesh asks of an accelerator."""

    platform, device_kind = "gpu", "chip"

    def __init__(self, index, slices, count=8):
        self.id = index
        self.process_index, self.slice_index = index // 2, index * slices // count

    def __repr__(self):
        return f"{self.id}"


@pytest.mark.parametrize("slices, fsdp", [(1, 4), (2, 4), (2, 2), (4, 1)])
def test_no_group_of_fsdp_crosses_slices(slices, fsdp):
    # Shuffled, as nothing says in which order devices of slices come.
    chips = [Chip(index, slices) for index in (5, 2, 7, 0, 3, 6, 1, 4)]
    mesh = sharding.make_mesh(fsdp=fsdp, devices=chips)
    groups = [{chip.slice_index for chip in row} for row in mesh.devices]
    assert all(len(group) == 1 for group in groups)
    # Slice by slice along `data`.
    order = [min(group) for group in groups]
    assert order == sorted(order) and len(set(order)) == slices


class Core(Chip):
    """One of the 4 x 4 chips of a slice of TPUs."""

    platform, device_kind, core_on_chip = "tpu", "TPU v5 lite", 0

    def __init__(self, index, slices):
        super().__init__(index, slices, 16 * slices)
        self.process_index = index // 4
        self.coords = (index % 4, index // 4 % 4, 0)


@pytest.mark.parametrize("slices", [1, 2])
@pytest.mark.parametrize("fsdp", [1, 2, 4, 8, 16])
def test_tpus_are_split_in_all_sizes(slices, fsdp):
    chips = [Core(index, slices) for index in range(16 * slices)]
    mesh = sharding.make_mesh(fsdp=fsdp, devices=chips)
    assert mesh.devices.shape == (16 * slices // fsdp, fsdp)
    assert {chip.id for chip in mesh.devices.flat} == set(range(16 * slices))
    for row in mesh.devices:
        assert len({chip.slice_index for chip in row}) == 1
        if fsdp == 4:
            # A line or a square of neighbours.
            sides = np.ptp([chip.coords for chip in row], 0)
            assert sorted(sides.tolist()) in ([0, 0, 3], [0, 1, 1])


def test_groups_of_fsdp_take_whole_slices(caplog):
    chips = [Chip(index, 4) for index in range(8)]
    mesh = sharding.make_mesh(fsdp=4, devices=chips)
    groups = [sorted(chip.slice_index for chip in row) for row in mesh.devices]
    assert groups == [[0, 0, 1, 1], [2, 2, 3, 3]]
    assert "fsdp=4 spans slices of 2 devices" in caplog.text
    chips = [Chip(index, 2, 6) for index in range(6)]
    with pytest.raises(ValueError, match="cuts slices of 3 devices apart"):
        sharding.make_mesh(fsdp=2, devices=chips)


def test_rows_of_a_process_are_those_of_its_devices():
    mesh = sharding.make_mesh(data=4, fsdp=2)
    assert sharding.own_rows(mesh, 16).tolist() == list(range(16))


JOB = """
import sys
import jax
import numpy as np
address, index = sys.argv[1], int(sys.argv[2])
jax.distributed.initialize(address, num_processes=2, process_id=index)
from ldm_jax import sharding
# Not process by process, as where the mesh follows the interconnect.
devices = np.array(jax.devices()).reshape(2, 2).T.ravel()
mesh = sharding.make_mesh(devices=list(devices))
rows = sharding.own_rows(mesh, 8)
batch = sharding.put_batch({"row": rows}, mesh)
print(rows.tolist(), sharding.gathered(batch["row"]).tolist())
"""


def test_rows_of_processes_that_alternate():
    whole = [0, 1, 2, 3, 4, 5, 6, 7]
    said = run_pair(JOB, devices=2)
    assert said == [f"[0, 1, 4, 5] {whole}", f"[2, 3, 6, 7] {whole}"]


def network(images, kernel):
    names = ("NHWC", "HWIO", "NHWC")
    y = jax.lax.conv_general_dilated(images, kernel, (1, 1), "SAME", None, None, names)
    return y @ kernel[0, 0]


def test_one_cpu_has_xlas_own_convolutions(monkeypatch):
    """What XLA leaves to its library, YNNPACK, is a computation by itself."""
    monkeypatch.setenv("XLA_FLAGS", "")
    shapes = (8, 16, 16, 64), (3, 3, 64, 64)
    like = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    text = sharding.jit(network).lower(*like).compile().as_text()
    others, whole = text.split("ENTRY")
    assert " convolution(" in whole and " convolution(" not in others
    assert " dot(" in others and " dot(" not in whole


def test_a_first_stage_runs_with_the_options_of_one_cpu(monkeypatch):
    """Without the flags of the other tests, which name the library."""
    monkeypatch.delenv("XLA_FLAGS")
    module = KLAutoencoder(
        channels=32, channel_mult=(1, 2), num_res_blocks=1, z_channels=4, embed_dim=4
    )
    images = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)
    _, variables = initialise(module, jax.random.key(0), jnp.zeros((1, 16, 16, 3)))
    reconstruct = functools.partial(
        probe.reconstruct, module, variables["params"], images, batch_size=2
    )
    found = reconstruct().astype(int)
    monkeypatch.setattr(sharding, "_compiler_options", lambda mesh: None)
    assert np.abs(found - reconstruct()).max() <= 1


def test_no_network_is_jitted_without_its_mesh():
    """Operations are jitted inside of programs; the others here call no network."""
    root = pathlib.Path(sharding.__file__).parent
    operations = root / "models" / "operations"
    others = (p for p in root.rglob("*.py") if operations not in p.parents)
    jits = (p for p in others if re.search(r"jax\.jit\b[^`]", p.read_text()))
    found = {str(path.relative_to(root)) for path in jits}
    assert found == {
        "batches/images_in_order.py",
        "sharding.py",
        "training/held_out/own_reference.py",
        "training/start/first_state.py",
    }


def mesh_of(*platforms):
    devices = [types.SimpleNamespace(platform=platform) for platform in platforms]
    return types.SimpleNamespace(devices=np.array([devices], object))


def test_options_of_the_compiler_are_for_one_cpu_and_versions_that_know_them(
    monkeypatch,
):
    chosen = sharding._compiler_options
    flags = "--xla_cpu_experimental_ynn_fusion_type=-individual_convolution"
    monkeypatch.setenv("XLA_FLAGS", flags)
    assert chosen(mesh_of("cpu")) is None
    monkeypatch.delenv("XLA_FLAGS")
    assert list(chosen(mesh_of("cpu"))) == ["xla_cpu_experimental_ynn_fusion_type"]
    assert chosen(mesh_of("gpu")) is chosen(mesh_of("cpu", "cpu")) is None
    monkeypatch.setattr(jaxlib.version, "__version_info__", (0, 13, 0))
    assert chosen(mesh_of("cpu")) is None


def test_what_a_program_holds_goes_with_it():

    def make(weights):
        return (lambda x: x + weights.sum()), weakref.ref(weights)

    program, gone = make(np.ones(1000))
    jitted, mesh = sharding.jit(program), sharding.make_mesh()
    assert jitted(jnp.ones(())) == 1001
    assert sharding.on_mesh(program, mesh) is sharding.on_mesh(program, mesh)
    wrapper = functools.wraps(program)(lambda x: x)
    assert sharding.on_mesh(wrapper, mesh)(1) == 1
    del jitted, program, wrapper
    gc.collect()
    assert gone() is None
