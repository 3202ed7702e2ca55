"""The worked examples of docs/extending.md work as they stand there."""

import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax import build, sharding
from ldm_jax.conditioners import CONDITIONERS, make_conditioner
from ldm_jax.convert.formats import FORMATS, Options, convert
from ldm_jax.data.inputs import INPUTS, make_inputs
from ldm_jax.data.modalities import MODALITIES
from ldm_jax.data.open_source import open_source
from ldm_jax.data.sources import SOURCES
from ldm_jax.diffusion.grids import SPACINGS, make_points
from ldm_jax.diffusion.objective import LOSS_TYPES
from ldm_jax.diffusion.samplers import SAMPLERS, make_sampler
from ldm_jax.diffusion.schedule import BETAS, make_schedule
from ldm_jax.metrics.distances import DISTANCES
from ldm_jax.metrics.features import FEATURES
from ldm_jax.metrics.measurement import Measurement
from ldm_jax.metrics.reconstruction import METRICS
from ldm_jax.models.backbones import BACKBONES
from ldm_jax.models.first_stages import FIRST_STAGES
from ldm_jax.models.operations.dot_product import dot_product_attention
from ldm_jax.models.operations.kernels import KERNELS

PAGE = pathlib.Path(__file__).parent.parent / "docs" / "extending.md"
TABLES = [
    BACKBONES,
    BETAS,
    CONDITIONERS,
    DISTANCES,
    FEATURES,
    FIRST_STAGES,
    FORMATS,
    INPUTS,
    KERNELS,
    LOSS_TYPES,
    METRICS,
    MODALITIES,
    SAMPLERS,
    SOURCES,
    SPACINGS,
]


@pytest.fixture(scope="module", autouse=True)
def examples():
    """Runs all examples, each by itself, and takes their rows away again."""
    before = [dict(table) for table in TABLES]
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), flags=re.M | re.S)
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), {"__name__": "an_example"})
    yield
    for table, rows in zip(TABLES, before, strict=True):
        table.clear()
        table.update(rows)


def test_every_table_got_a_row(examples):
    for table in TABLES:
        assert any(_is_new(row) for row in table.values()), list(table)


def _is_new(row):
    parts = row if isinstance(row, tuple) else [row, *vars(row).values()]
    if isinstance(row, type) or callable(row):
        parts = [row]
    modules = {getattr(part, "__module__", None) for part in parts}
    return "an_example" in modules or row is MODALITIES.get("normals")


def test_a_backbone():
    backbone = build.make_backbone({"kind": "dit", "tiny": True}, out_channels=4)
    latents, timesteps = jnp.zeros((2, 8, 6, 4)), jnp.zeros(2, jnp.int32)
    vector = jnp.zeros((2, backbone.vector_width))
    output, _ = jax.eval_shape(
        lambda: backbone.init_with_output(
            jax.random.key(0), latents, timesteps, vector=vector
        )
    )
    assert output.shape == latents.shape and output.dtype == jnp.float32


def test_a_first_stage():
    fields = dict(channels=8, channel_mult=(1, 2), num_res_blocks=1, norm_groups=4)
    module = build.make_first_stage(
        {"kind": "plain", "z_channels": 3, "embed_dim": 3, **fields}
    )
    images = jnp.zeros((2, 16, 16, 3))
    params = jax.eval_shape(lambda: module.init(jax.random.key(0), images))["params"]
    row = FIRST_STAGES["plain"]
    assert params.keys() == {*row.latent_parts, *row.decoder_parts}


def test_a_conditioner():
    conditioner = make_conditioner({"score": {"kind": "score", "features": 8}})
    batch = {"score": np.array([[5.0], [1.0]], np.float32)}
    conditioner.check(batch)
    filled, _ = conditioner.init_with_output(jax.random.key(0), batch)
    assert filled.vector.shape == (2, 8) and filled.context is None
    with pytest.raises(ValueError, match="scores must be"):
        conditioner.check({"score": np.zeros((2, 3), np.float32)})


def test_an_input_and_a_modality():
    made = make_inputs({"edges": {"kind": "edges"}, "normals": {"kind": "map"}})
    image = np.zeros((6, 8, 3), np.uint8)
    image[:, 4:] = 255
    edges = made["edges"]({"image": image}, None)
    assert edges.shape == (6, 8, 1) and edges[:, 3:5].min() > 0 == edges[:, 0].max()
    normals = np.ones((6, 8, 3), np.float32)
    np.testing.assert_array_equal(made["normals"]({"normals": normals}, None), normals)


def test_a_source(tmp_path):
    images = np.zeros((20, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "images.npz", image=images, label=np.arange(20) % 3)
    section = dict(source="npz", name=str(tmp_path / "images.npz"))
    source = open_source(section, "train")
    assert len(source) == 18 and source.num_classes == 3
    assert source[0]["image"].shape == (8, 8, 3)


def test_a_sampler_a_grid_and_a_schedule():
    schedule = make_schedule(kind="steep")
    assert (np.diff(schedule.alphas_cumprod) < 0).all()
    points = make_points(schedule, 10, "squares")
    assert len(points.alpha) == 11 and (np.diff(points.sigma) < 0).all()
    assert make_sampler("plain_ddim").order == 1


def test_a_loss():
    values = LOSS_TYPES["huber"](jnp.array([0.0, 0.5, -3.0]))
    np.testing.assert_allclose(values, [0.0, 0.125, 2.5])


def test_a_metric_and_a_distance():
    images = np.zeros((2, 16, 16, 3), np.uint8)
    other = images.copy()
    other[1, 3, 4] = 255
    np.testing.assert_allclose(METRICS["largest_error"](images, other), [0, 2])
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    measured = Measurement(["color_shift"], mesh)
    against = measured.twin()
    measured.add(images, np.ones(2, bool))
    against.add(other, np.ones(2, bool))
    measured.compare_with(against.as_reference())
    (result,) = measured.results().values()
    assert result.value > 0


def test_a_kernel_of_attention():
    query = jax.random.normal(jax.random.key(0), (2, 3, 6, 4))
    mask = jnp.tril(jnp.ones((6, 6), bool))
    ours, theirs = (
        dot_product_attention(query, query, query, mask, kernel)
        for kernel in ("plain", "einsum")
    )
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_a_format(second_stage, tmp_path):
    convert(second_stage, tmp_path / "weights.npz", "npz", Options(), lambda line: None)
    with np.load(tmp_path / "weights.npz") as file:
        assert any(name.startswith("backbone/") for name in file.files)
