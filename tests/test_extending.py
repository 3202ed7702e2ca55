"""The worked examples of docs/extending.md work as they stand there."""

import ast
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax import build, sharding
from ldm_jax.conditioners import CONDITIONERS, make_conditioner
from ldm_jax.convert.formats import FORMATS, Options, convert
from ldm_jax.data.degradation import DEGRADATIONS, degrade
from ldm_jax.data.inputs import INPUTS, make_inputs
from ldm_jax.data.masks import STYLES, random_mask
from ldm_jax.data.modalities import MODALITIES
from ldm_jax.data.open_source import open_source
from ldm_jax.data.sources import SOURCES
from ldm_jax.diffusion.grids import SPACINGS, make_points
from ldm_jax.diffusion.objective import LOSS_TYPES, TIMESTEP_SAMPLINGS, Objective
from ldm_jax.diffusion.samplers import SAMPLERS, make_sampler
from ldm_jax.diffusion.schedule import (
    BETAS,
    PREDICTION_TYPES,
    add_noise,
    check_prediction,
    make_schedule,
    predict_noise,
    predict_x0,
    target_for,
)
from ldm_jax.errors import ConfigError
from ldm_jax.metrics.features import FEATURES
from ldm_jax.metrics.measurement import Measurement
from ldm_jax.metrics.reconstruction import RECONSTRUCTION_METRICS
from ldm_jax.metrics.set_metrics import SET_METRICS
from ldm_jax.models.backbones import BACKBONES
from ldm_jax.models.first_stages import FIRST_STAGES
from ldm_jax.models.operations.dot_product import dot_product_attention
from ldm_jax.models.operations.kernels import KERNELS
from ldm_jax.training.first_stage_losses import (
    DISCRIMINATOR_LOSSES,
    RECONSTRUCTION_LOSSES,
)
from ldm_jax.training.optimizer import (
    DECAYS,
    OPTIMIZERS,
    make_learning_rate,
    make_optimizer,
)
from tests import test_imports

PAGE = pathlib.Path(__file__).parent.parent / "docs" / "extending.md"
PYTHON = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), flags=re.M | re.S)
# Table -> its file, from the cells of the page's lists of tables.
FILES = {
    table: file
    for names, file in re.findall(
        r"^\|(?:[^|`]*\|)? ((?:`[A-Z_]+`(?:, )?)+) \| `([^`]*\.py)`",
        PAGE.read_text(),
        re.M,
    )
    for table in re.findall("[A-Z_]+", names)
}
WITHOUT_EXAMPLE = {"QUANTIZERS", "NORMS", "TABLE"}
TABLES = [
    BACKBONES,
    BETAS,
    CONDITIONERS,
    DECAYS,
    DEGRADATIONS,
    DISCRIMINATOR_LOSSES,
    SET_METRICS,
    FEATURES,
    FIRST_STAGES,
    FORMATS,
    INPUTS,
    KERNELS,
    LOSS_TYPES,
    RECONSTRUCTION_METRICS,
    MODALITIES,
    OPTIMIZERS,
    PREDICTION_TYPES,
    RECONSTRUCTION_LOSSES,
    SAMPLERS,
    SOURCES,
    SPACINGS,
    STYLES,
    TIMESTEP_SAMPLINGS,
]


@pytest.fixture(scope="module", autouse=True)
def examples():
    """Runs all examples, each by itself, and takes their rows away again."""
    before = [dict(table) for table in TABLES]
    for block in PYTHON:
        exec(compile(block, str(PAGE), "exec"), {"__name__": "an_example"})
    yield
    for table, rows in zip(TABLES, before, strict=True):
        table.clear()
        table.update(rows)


def rows_and_rest(block):
    """(names of the tables that an example puts rows into, its other statements)."""
    tables, rest = [], []
    for node in ast.parse(block).body:
        target = node.targets[0] if isinstance(node, ast.Assign) else None
        if isinstance(target, ast.Subscript):
            tables.append(target.value.id)
        else:
            rest.append(node)
    return tables, rest


def modules_used(statements):
    """The package's modules that statements use, and what these import, themselves."""
    used = {
        node.id
        for statement in statements
        for node in ast.walk(statement)
        if isinstance(node, ast.Name)
    }
    imports = [node for node in statements if isinstance(node, ast.ImportFrom)]
    graph = test_imports._modules()
    waiting, found = [], set()
    for node in imports:
        for name in (alias.name for alias in node.names):
            if name in used:
                whole = f"{node.module}.{name}"
                waiting.append(whole if whole in graph else node.module)
    while waiting:
        name = waiting.pop()
        if name in graph and name not in found:
            found.add(name)
            waiting += graph[name]
    return found


def test_all_tables_have_an_example():
    tables = [table for block in PYTHON for table in rows_and_rest(block)[0]]
    assert FILES.keys() == {*tables} | WITHOUT_EXAMPLE


def test_tables_stand_in_the_files_that_are_named():
    for table, file in FILES.items():
        text = (test_imports.ROOT / "ldm_jax" / file).read_text(encoding="utf-8")
        assert re.search(rf"^{table}\b.* = ", text, flags=re.M), (table, file)


@pytest.mark.parametrize("block", [block for block in PYTHON if "] = " in block])
def test_an_example_in_a_file_of_its_own_can_be_imported_by_that_of_the_table(block):
    tables, rest = rows_and_rest(block)
    used = modules_used(rest)
    for table in tables:
        parts = pathlib.Path(FILES[table]).with_suffix("").parts
        name = ".".join(("ldm_jax", *parts)).removesuffix(".__init__")
        assert name not in used, f"{name} imports the file, which imports {name}"


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
    for field, value in (("depth", -1), ("width", "foo"), ("num_heads", -3)):
        with pytest.raises(ConfigError, match=f"backbone.{field} must be from 1 to"):
            build.make_backbone({"kind": "dit", field: value}, out_channels=4)
    with pytest.raises(ConfigError, match="width=384 does not divide into num_heads=5"):
        build.make_backbone({"kind": "dit", "num_heads": 5}, out_channels=4)


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
    assert make_sampler("damped_ddim", damping=0.9).order == 1
    with pytest.raises(ValueError, match="no option 'eta': it takes damping"):
        make_sampler("damped_ddim", eta=0.5)


def test_a_loss():
    values = LOSS_TYPES["huber"](jnp.array([0.0, 0.5, -3.0]))
    np.testing.assert_allclose(values, [0.0, 0.125, 2.5])


def test_a_prediction_type_and_a_draw_of_timesteps():
    for options in ({}, {"zero_terminal_snr": True}, {"kind": "rectified_flow"}):
        schedule = make_schedule(**options)
        check_prediction(schedule, "edm")
        point = schedule.at(jnp.array([0, 500, 999]))
        x0, noise = jax.random.normal(jax.random.key(0), (2, 3, 4, 4, 1))
        latents = add_noise(x0, noise, point)
        target = target_for("edm", x0, noise, point)
        found = predict_x0(target, latents, point, "edm")
        np.testing.assert_allclose(found, x0, atol=1e-3)
        found = predict_noise(target, latents, point, "edm")
        # Next to no noise, rounding is larger than it.
        np.testing.assert_allclose(found[1:], noise[1:], atol=1e-3)
    objective = Objective("edm", timestep_sampling="noisy", min_snr_gamma=5.0)
    timesteps = objective.draw_timesteps(jax.random.key(1), 4000, make_schedule())
    assert abs(timesteps.mean() - 2000 / 3) < 20 and timesteps.max() <= 999
    levels = objective.levels(jnp.array([1, 999]), make_schedule())
    assert np.isfinite(levels.elbo).all() and np.isfinite(levels.simple).all()


def test_losses_of_a_first_stage_an_optimiser_and_a_decay():
    errors = RECONSTRUCTION_LOSSES["charbonnier"](jnp.array([0.0, -2.0]))
    np.testing.assert_allclose(errors, [1e-3, 2.0], rtol=1e-4)
    loss = DISCRIMINATOR_LOSSES["least_squares"](jnp.ones((1, 2, 2, 1)), -1.0)
    assert loss == 0
    rate = make_learning_rate(100, 0.5, "inverse_sqrt", warmup_steps=4)
    np.testing.assert_allclose([rate(2), rate(4), rate(16)], [0.25, 0.5, 0.25])
    optimizer = make_optimizer({"kind": "lion", "weight_decay": 0.0}, rate)
    params = {"w": jnp.ones(2)}
    grads = {"w": jnp.array([3.0, -0.1])}
    _, state = optimizer.update(grads, optimizer.init(params), params)
    updates, _ = optimizer.update(grads, state, params)
    np.testing.assert_allclose(updates["w"], [-0.125, 0.125])


def test_a_degradation_and_a_style_of_masks():
    image = np.arange(192, dtype=np.uint8).reshape(8, 8, 3)
    np.testing.assert_array_equal(degrade(image, 2, "every_second"), image[::2, ::2])
    mask = random_mask(4, 6, np.random.default_rng(0), style="half")
    assert mask.shape == (4, 6) and mask.mean() == 0.5


def test_a_metric_and_a_distance():
    images = np.zeros((2, 16, 16, 3), np.uint8)
    other = images.copy()
    other[1, 3, 4] = 255
    np.testing.assert_allclose(
        RECONSTRUCTION_METRICS["largest_error"](images, other), [0, 2]
    )
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
