"""Kernels of attention: which is chosen where, and that each computes the same."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ldm_jax.errors import ConfigError
from ldm_jax.models.attention import Attention
from ldm_jax.models.operations.attend import attend_in_blocks
from ldm_jax.models.operations.dot_product import dot_product_attention, noted
from ldm_jax.models.operations.flash import flash
from ldm_jax.models.operations.kernels import (
    KERNELS,
    TABLE,
    Device,
    Shape,
    choose,
    this_device,
)
from ldm_jax.models.unet import UNet
from ldm_jax.sharding import make_mesh, on_mesh
from tests.common import assert_close

H100, A100, T4 = (Device("cuda", c) for c in ((9, 0), (8, 0), (7, 5)))
B200, TPU, CPU = Device("cuda", (10, 0)), Device("tpu"), Device("cpu")


def shape(length, source, width, heads=8, dtype="bfloat16", masked=False):
    return Shape(4, heads, length, source, width, dtype, masked)


def test_narrow_heads_of_many_tokens_go_to_cudnn_on_gpus():
    """The attentions of SD-1 and of LDM-4's U-Net, and what cuDNN does not take."""
    sd1 = shape(4096, 4096, 40)
    assert choose(sd1, device=H100) == choose(sd1, device=A100) == "cudnn"
    assert choose(shape(1024, 1024, 80), device=H100) == "cudnn"
    for length, source, width in ((4096, 77, 40), (81, 81, 40), (256, 77, 128)):
        given = shape(length, source, width)
        assert choose(given, device=H100) == choose(given, device=A100) == "cudnn"
    wide = shape(256, 256, 160)
    assert (
        choose(wide, device=H100) == "cudnn" and choose(wide, device=A100) == "einsum"
    )
    wider = shape(1024, 1024, 384, heads=1)
    for other in (wider, shape(4096, 4096, 44), shape(4096, 5, 40), shape(49, 77, 40)):
        assert choose(other, device=H100) == "einsum", other
    for changed in (sd1._replace(dtype="float32"), sd1._replace(masked=True)):
        assert choose(changed, device=H100) == "einsum", changed
    for device in (T4, CPU, Device("rocm")):
        assert choose(sd1, device=device) == "einsum", device


@pytest.mark.parametrize(
    "asked, given, device, reason",
    [
        ("cudnn", shape(256, 256, 160), A100, "a multiple of 8 channels, 128 at most"),
        ("cudnn", shape(256, 256, 160), B200, "128 at most"),
        ("cudnn", shape(256, 256, 264), H100, "256 at most"),
        ("cudnn", shape(64, 64, 40, dtype="float32"), H100, "bfloat16 and float16"),
        ("cudnn", shape(64, 64, 40), T4, "capability 8.0"),
        ("cudnn", shape(64, 64, 40), CPU, "NVIDIA's GPUs, and this is a cpu"),
        ("cudnn", shape(64, 64, 40, masked=True), H100, "no mask"),
        ("flash", shape(64, 64, 40), H100, "TPUs, and this is a cuda"),
        ("flash", shape(64, 64, 40, dtype="float16"), TPU, "bfloat16 and float32"),
    ],
)
def test_a_kernel_that_cannot_run_is_refused_with_those_that_can(
    asked, given, device, reason
):
    with pytest.raises(ConfigError) as error:
        choose(given, asked, device)
    message = str(error.value)
    assert f"attention_kernel={asked}" in message and reason in message
    assert "set it to auto" in message and "einsum" in message
    assert "\n" not in message


def test_what_is_asked_for_runs_where_the_table_has_another():
    assert choose(shape(256, 256, 160), "cudnn", H100) == "cudnn"
    assert choose(shape(4096, 77, 40), "flash", TPU) == "flash"
    assert choose(shape(4096, 4096, 40), "einsum", H100) == "einsum"


def test_unknown_kernels_are_refused_where_a_network_is_made():
    with pytest.raises(ConfigError, match="choose one of auto, einsum, cudnn, flash"):
        UNet(4, 32, num_heads=1, attention_kernel="cuddn")


def test_rows_of_the_table_are_kernels_that_can_compute_what_they_are_for():
    devices = {"cuda": H100, "tpu": TPU}
    for row in TABLE:
        given = shape(row.tokens, row.tokens, row.width)
        assert not KERNELS[row.kernel].refuses(given, devices[row.platform]), row


def draw(length, source, width, dtype="float32", batch=2, heads=2):
    keys = jax.random.split(jax.random.key(0), 4)
    sizes = (length, source, source, length)
    return [
        jax.random.normal(key, (batch, heads, size, width)).astype(dtype)
        for key, size in zip(keys, sizes, strict=True)
    ]


@pytest.mark.parametrize(
    "length, source, width, dtype, tolerance",
    [
        (200, 77, 40, "float32", 2e-5),
        (128, 640, 128, "bfloat16", 0.03),
    ],
)
def test_flash_computes_what_einsum_does(length, source, width, dtype, tolerance):
    """Tokens and channels that fill no tile, and several blocks of keys."""
    *inputs, cotangent = draw(length, source, width, dtype, batch=1)

    def run(function, *inputs):
        y, pull = jax.vjp(function, *inputs)
        return y, *pull(cotangent.astype(y.dtype))

    with pltpu.force_tpu_interpret_mode():
        ours = jax.jit(lambda *x: run(flash, *x))(*inputs)
    exact = [x.astype(jnp.float32) for x in inputs]
    for a, b in zip(ours, run(attend_in_blocks, *exact), strict=True):
        assert a.dtype == dtype and a.shape == b.shape
        assert_close(a.astype(jnp.float32), b, tolerance)


@pytest.mark.parametrize("batch, rows", [(4, 1), (6, 6)])
def test_each_device_of_a_mesh_runs_flash_on_its_rows(batch, rows):
    """Lowered for TPUs, which refuse a kernel that is left to XLA to split."""
    mesh = Mesh(np.asarray(jax.devices()[:4]).reshape(2, 2), ("data", "fsdp"))
    split = NamedSharding(mesh, P() if batch % 4 else P(("data", "fsdp")))
    like = jax.ShapeDtypeStruct((batch, 2, 256, 40), jnp.bfloat16, sharding=split)

    def loss(query, key, value):
        return jax.checkpoint(flash)(query, key, value).astype(jnp.float32).sum()

    def lower(function):
        traced = jax.jit(function).trace(like, like, like)
        return traced.lower(lowering_platforms=("tpu",)).as_text()

    text = lower(on_mesh(jax.grad(loss, (0, 1, 2)), mesh))
    assert text.count("tpu_custom_call") == 3
    assert f"{rows}x2x256x128xbf16" in text
    with pytest.raises(NotImplementedError, match="shard_map"):
        lower(jax.grad(loss, (0, 1, 2)))


def test_a_program_of_several_devices_without_a_mesh_has_no_flash():
    assert this_device().scattered
    mesh = Mesh(np.asarray(jax.devices()[:4]).reshape(2, 2), ("data", "fsdp"))
    assert not on_mesh(this_device, mesh)().scattered
    with pytest.raises(ConfigError, match="without the mesh"):
        choose(shape(64, 64, 40), "flash", Device("tpu", scattered=True))


def test_what_cudnn_cannot_compile_another_kernel_computes(monkeypatch):
    """As on this machine, which is taken for a GPU that has no cuDNN."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    sd1 = shape(1024, 1024, 40)
    chosen = []

    def traced(x):
        chosen.append(choose(sd1, device=H100))
        return 2 * x

    jax.grad(lambda x: jax.jit(on_mesh(traced, make_mesh()))(x).sum())(jnp.ones(8))
    assert chosen == ["einsum"]
    with pytest.raises(ConfigError, match=r"cuDNN cannot \(cuDNN"):
        choose(sd1, "cudnn", H100)


@pytest.mark.parametrize("length, source", [(6, 8), (6, 5), (7, 7)])
def test_cudnn_is_called_with_its_axes_and_scale(length, source, monkeypatch):
    """Its arguments, by JAX's own function with the implementation for all devices."""
    theirs = jax.nn.dot_product_attention

    def run(*rows, implementation, **named):
        assert implementation == "cudnn"
        # JAX has no gradient by cuDNN for others.
        assert all(x.shape[1] % 2 == 0 for x in rows)
        return theirs(*rows, implementation="xla", **named)

    monkeypatch.setattr(jax.nn, "dot_product_attention", run)
    *inputs, cotangent = draw(length, source, 8)

    def gradients(function):
        out, pull = jax.vjp(lambda *x: function(*x, None), *inputs)
        return out, *pull(cotangent)

    ours, plain = map(gradients, (KERNELS["cudnn"].run, attend_in_blocks))
    for a, b in zip(ours, plain, strict=True):
        assert_close(a, b, 1e-5)


@pytest.mark.parametrize("batch, split", [(4, True), (3, False)])
def test_all_that_cudnn_takes_and_gives_is_split_alike(batch, split, monkeypatch):
    """As its call wants it: over rows, where their number divides, or not at all."""
    theirs = jax.nn.dot_product_attention

    def run(*rows, implementation, **lengths):
        return theirs(*rows, implementation="xla", **lengths)

    monkeypatch.setattr(jax.nn, "dot_product_attention", run)
    inputs = draw(6, 5, 8, batch=batch)[:3]
    mesh = make_mesh(2, 2, jax.devices()[:4])
    call = on_mesh(lambda *x: KERNELS["cudnn"].run(*x, None), mesh)
    assert_close(jax.jit(call)(*inputs), attend_in_blocks(*inputs), 1e-5)
    constraints = [
        eqn.params["sharding"].spec
        for eqn in jax.make_jaxpr(call)(*inputs).eqns
        if eqn.primitive.name == "sharding_constraint"
    ]
    # Queries, keys and values, both lengths, and what comes out.
    assert constraints == [P(("data", "fsdp")) if split else P()] * 6


def test_attentions_are_noted_in_one_line():
    x, context = jnp.zeros((3, 6, 8)), jnp.zeros((3, 5, 8))
    module = Attention(2, 4)

    def twice(x):
        variables = module.init(jax.random.key(0), x)
        return module.apply(variables, x, context)

    with noted() as notes:
        jax.eval_shape(twice, x)
        jax.eval_shape(lambda *x: dot_product_attention(*x), *draw(6, 6, 4)[:3])
    jax.eval_shape(module.init, jax.random.key(0), x)
    assert str(notes) == "einsum 6x6 2x4, 6x5 2x4" and len(notes) == 3
    notes[:] = [("cudnn", shape(4096, 4096, 40)), *notes]
    assert str(notes) == "cudnn 4096x4096 8x40; einsum 6x6 2x4, 6x5 2x4"
