"""Plans of small configs, and of the published ones against the paper's networks."""

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh

from ldm_jax.chips import CHIPS, chip_named, chip_of
from ldm_jax.cli import load_config
from ldm_jax.config import check_values
from ldm_jax.data.modalities import MODALITIES, Modality
from ldm_jax.errors import ConfigError
from ldm_jax.models.attention import Attention
from ldm_jax.planning.abstract import Given, make_planned
from ldm_jax.planning.advice import ways_to_fit
from ldm_jax.planning.cost import cost_of_run
from ldm_jax.planning.examples import make_example, read_features
from ldm_jax.planning.forward import encoding_flops, networks, nominal_flops
from ldm_jax.planning.memory import Memory, MemoryOf
from ldm_jax.planning.page import page
from ldm_jax.planning.plan import Options, make_mesh, make_plan


def _config(name, **changes):
    config = load_config(name)
    for key, value in changes.items():
        section, _, name = key.rpartition("__")
        config[section][name] = value
    return check_values(config)


def _options(chip="H100", data=1, fsdp=1, **more):
    return Options(chip_named(chip), chip, make_mesh(data, fsdp), mfu=0.4, **more)


@pytest.fixture(scope="module")
def plan():
    """The plan of a tiny second stage on latents, on two chips."""
    config = _config("shapes_class:tiny", data__source="latents")
    config.train.ema_decay = 0.99
    given = Given("shapes_autoencoder:tiny", num_classes=8)
    return make_plan(config, given, _options(data=2, price=2.0))


def test_a_plan_counts_the_arrays_of_a_run(plan):
    state, memory = plan.planned.state, plan.memory
    size = (
        plan.networks["backbone"].parameters + plan.networks["conditioner"].parameters
    )
    assert memory.parameters == memory.average == memory.gradients == 4 * size
    assert memory.optimiser == pytest.approx(8 * size, rel=1e-3)
    assert state.step.shape == ()
    # Four rows of latents, mean and deviation, and their labels.
    _, height, width, channels = plan.planned.examples[0]["latent_mean"].shape
    assert memory.batch == 4 * (2 * 2 * height * width * channels + 4)
    assert memory.peak == memory.arguments + memory.temporary
    assert memory.activations > 0 and plan.fits and not plan.ways


def test_a_plan_asks_for_no_device_of_a_kernel():
    config = _config("shapes_class:tiny", data__source="latents")
    config.backbone.attention_kernel = "cudnn"
    given = Given("shapes_autoencoder:tiny", num_classes=8)
    forced = make_plan(config, given, _options(data=2))
    assert forced.memory.activations > 0
    assert config.backbone.attention_kernel == "cudnn"
    with pytest.raises(ConfigError, match="^attention_kernel=cudnn .* is a cpu"):
        make_planned(config, given)
    config.backbone.attention_kernel = "cuddn"
    with pytest.raises(ConfigError, match="unknown attention_kernel 'cuddn'"):
        make_plan(config, given, _options(data=2))


def test_a_plan_is_a_page_and_a_file(plan):
    text = page(plan)
    assert "2 x H100 as data=2, fsdp=1; batch 8, 4 per chip" in text
    assert "fits H100" in text and "encoding adds" in text
    found = json.loads(json.dumps(plan.to_json()))
    assert found["bytes_per_device"]["peak"] == plan.memory.peak
    run = found["run"]
    assert run["chip_hours"] == pytest.approx(2 * run["hours"])
    assert run["price"] == pytest.approx(2 * run["chip_hours"])
    flops = found["flops_per_image"]["training"] * 8 * 4
    assert run["hours"] * 3600 * 2 * 989e12 * 0.4 == pytest.approx(flops)


@pytest.mark.parametrize(
    "flops, steps, run",
    [
        (
            3e8,
            4,
            "1,318,667 images/s, 0.00607 ms per step; 4 steps, 32 images, 9.6 GFLOP: "
            "0.0243 ms, 6.74e-09 chip-hours, 1.69e-08 in all",
        ),
        (
            78e12,
            500_000,
            "5.07 images/s, 1,577 ms per step; 500,000 steps, 4,000,000 images, "
            "312 EFLOP: 9.13 days, 219 chip-hours, 548 in all",
        ),
        (
            2e12,
            1000,
            "198 images/s, 40.4 ms per step; 1,000 steps, 8,000 images, 16 PFLOP: "
            "40.4 s, 0.0112 chip-hours, 0.0281 in all",
        ),
    ],
)
def test_small_runs_and_large_ones_have_three_digits(plan, flops, steps, run):
    cost = cost_of_run(flops, 8, steps, CHIPS["H100"], 1, 0.4, 2.5)
    config = plan.planned.config.copy_and_resolve_references()
    config.train.num_steps = steps
    planned = plan.planned._replace(config=config)
    lines = page(dataclasses.replace(plan, planned=planned, cost=cost)).split("\n")
    assert "; ".join(lines[-2:]).endswith(f": {run}")


def test_a_page_has_no_zeros_for_what_is_small(plan):
    text = page(plan)
    assert not re.search(r" 0(\.0*)? (ms|EFLOP|hours|GB|of)", text), text


def test_a_batch_that_does_not_split_is_refused():
    config = _config("shapes_class:tiny")
    with pytest.raises(ConfigError, match="not divisible by 3 devices"):
        make_plan(config, Given("shapes_autoencoder:tiny", 8), _options(data=3))


@pytest.mark.parametrize(
    "given, words",
    [
        (Given(num_classes=8), "--first_stage=autoencoder_kl:f8"),
        (Given("shapes_autoencoder:tiny"), "--num_classes=1000"),
        (Given("shapes_class:tiny", 8), "stage 'diffusion'"),
        (Given("autoencoderr"), "there is no config"),
    ],
)
def test_what_is_left_open_is_asked_for(given, words):
    with pytest.raises(ConfigError, match=words):
        make_planned(_config("shapes_class:tiny"), given)


def test_features_have_a_shape():
    assert read_features(["embedding=20x768"]) == {"embedding": (20, 768)}
    for text in ("embedding", "=3", "a=", "a=3x", "a=0", "a=²x4"):
        with pytest.raises(ConfigError, match="KEY=SHAPE"):
            read_features([text])


@pytest.mark.parametrize(
    "name, features, words",
    [
        ("retrieval:tiny", {}, r"made of 'boxes'.*--feature=embedding=20x768"),
        ("retrieval:tiny", {"embeding": (4, 32)}, 'did you mean "embedding"'),
        ("retrieval:tiny", {"embedding": (4, 32), "foo": (4,)}, "from embedding"),
        ("shapes_text:tiny", {"caption": (4, 4)}, "no input caption .* leave it out"),
        ("shapes_class:tiny", {"foo": (4, 4)}, "=foo=4x4: .* leave it out"),
        ("shapes_autoencoder:tiny", {"foo": (4, 4)}, "=foo=4x4: .* leave it out"),
    ],
)
def test_shapes_are_given_of_inputs_that_need_them_alone(name, features, words):
    with pytest.raises(ConfigError, match=words):
        make_planned(_config(name), Given("shapes_autoencoder:tiny", 8, features))


def test_an_example_has_features_and_maps_in_the_shape_that_is_given(monkeypatch):
    for name in ("normals", "surfaces"):
        monkeypatch.setitem(MODALITIES, name, Modality(prepared={name: (name,)}))
    config = load_config("shapes_class:tiny")
    with config.unlocked():
        config.data.inputs = dict(
            embedding=dict(kind="feature", feature="neighbours"),
            normals=dict(kind="map"),
            classes=dict(kind="map", modality="surfaces"),
        )
    shapes = dict(embedding=(4, 32), normals=(16, 16, 3))
    with pytest.raises(ConfigError, match="--feature=classes=256x256x1"):
        make_example(config, (16, 16), 3, shapes)
    found = make_example(config, (16, 16), 3, shapes | {"classes": (16, 16)})
    made = {key: (value.shape, value.dtype.name) for key, value in found.items()}
    assert made["embedding"] == ((1, 4, 32), "float32")
    assert made["normals"] == ((1, 16, 16, 3), "float32")
    assert made["classes"] == ((1, 16, 16), "int32")


def test_captions_have_a_length_where_the_config_says_none():
    config = load_config("shapes_text:tiny")
    with config.unlocked():
        config.data.inputs.caption = dict(kind="caption", tokenizer="far/away")
    found = make_example(config, (16, 16), 3, {})
    assert found["caption"].shape == (1, 77)


def test_chips_go_by_name():
    assert chip_named("h100") is CHIPS["H100"]
    with pytest.raises(ConfigError, match="A100-40, A100-80, H100"):
        chip_named("H1000")
    for kind, name in {
        "NVIDIA H100 80GB HBM3": "H100",
        "NVIDIA A100-SXM4-40GB": "A100-40",
        "NVIDIA A100-SXM4-80GB": "A100-80",
        "TPU v5 lite": "v5e",
        "TPU v5": "v5p",
    }.items():
        assert chip_of(kind) is CHIPS[name]
    assert chip_of("cpu") is None


class _MemoryOf(MemoryOf):
    """Memory in round numbers: what `fsdp` splits, and what grows with the batch."""

    def __init__(self, per_row):
        self._per_row = per_row

    def on(self, mesh, batch_size, parts):
        empty = dict.fromkeys((field.name for field in dataclasses.fields(Memory)), 0)
        rows = batch_size // mesh.size // parts
        return Memory(
            **empty
            | {
                "parameters": 100 // mesh.shape["fsdp"],
                "activations": rows * self._per_row,
            }
        )


@pytest.mark.parametrize(
    "limit, flags",
    [
        (
            150,
            [
                ("accumulate_steps=2", 140, True),
                ("remat=True", 108, True),
                ("mesh.fsdp=2", 130, True),
            ],
        ),
        (
            60,
            [
                ("accumulate_steps=8", 110, False),
                ("remat=True", 108, False),
                ("mesh.fsdp=2", 130, False),
                ("remat=True --config.train.accumulate_steps=8", 101, False),
                ("remat=True --config.train.mesh.fsdp=2", 58, True),
            ],
        ),
        (
            53,
            [
                ("accumulate_steps=8", 110, False),
                ("remat=True", 108, False),
                ("mesh.fsdp=2", 130, False),
                ("remat=True --config.train.accumulate_steps=8", 101, False),
                ("remat=True --config.train.mesh.fsdp=2", 58, False),
                ("mesh.fsdp=2 --config.train.accumulate_steps=4", 52, True),
            ],
        ),
    ],
)
def test_what_does_not_fit_is_changed_until_it_does(limit, flags):
    config = load_config("shapes_class:tiny")
    config.train.batch_size = 16
    mesh = AbstractMesh((2, 1), ("data", "fsdp"))
    ways = ways_to_fit(config, mesh, limit, _MemoryOf(10), lambda _: _MemoryOf(1))
    found = [(way.flags, way.memory.peak, way.fits) for way in ways]
    assert len(found) == len(flags) and not config.backbone.get("remat")
    for (given, *rest), (end, *expected) in zip(found, flags, strict=True):
        assert given.endswith(end) and rest == expected


def test_attention_to_one_token_counts_as_it_is_published():
    module = Attention(2, 4, out_channels=6)
    x, context = jnp.zeros((3, 5, 10)), jnp.zeros((3, 1, 7))
    variables = jax.eval_shape(module.init, jax.random.key(0), x, context)
    # Queries, keys and values, scores and their products with values, projection.
    terms = 5 * 10 * 8 + 2 * 7 * 8 + 2 * 5 * 8 + 5 * 8 * 6
    assert nominal_flops(module.apply, variables, x, context) == 2 * 3 * terms


# GMAC of a pass, as facts of the networks' papers and releases have them.
PASSES = {
    "imagenet_class:f4 autoencoder_vq:f4": 104.2,
    "unconditional:celebahq autoencoder_vq:f4": 101.2,
    "unconditional:churches autoencoder_kl:f8": 20.9,
    "text_to_image:laion autoencoder_kl:f8": 91.0,
    "super_resolution:bsr autoencoder_vq:f4": 40.2,
}


@pytest.mark.slow
@pytest.mark.parametrize("case", PASSES)
def test_published_networks_cost_what_is_published(case):
    name, first = case.split()
    planned = make_planned(_config(name), Given(first))
    passes = networks(planned)["backbone"].forward
    assert passes / 2e9 == pytest.approx(PASSES[case], rel=0.02)


# GMAC of encoding and decoding, TFLOP of a training step, at 256 px.
AUTOENCODERS = {
    "autoencoder_kl:f8": (136 + 311, 2.86),
    "autoencoder_kl:f4": (173 + 335, 3.22),
    "autoencoder_kl:f16": (69 + 126, 1.34),
    "autoencoder_kl:f32": (None, 1.33),
    "autoencoder_vq:f4": (173 + 335, 3.22),
    "autoencoder_vq:f8": (113 + 236, 2.27),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", AUTOENCODERS)
def test_published_first_stages_cost_what_is_published(name):
    found = networks(make_planned(_config(name), Given()))
    gmac, training = AUTOENCODERS[name]
    if gmac is not None:
        assert found["autoencoder"].forward / 2e9 == pytest.approx(gmac, rel=0.02)
    total = sum(network.training for network in found.values())
    assert total / 1e12 == pytest.approx(training, rel=0.02)


@pytest.mark.slow
def test_encoding_costs_what_is_published():
    planned = make_planned(_config("imagenet_class:f4"), Given("autoencoder_vq:f4"))
    assert encoding_flops(planned) / 2e9 == pytest.approx(173, rel=0.02)
