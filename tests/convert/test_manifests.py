"""Every published checkpoint, by its keys and shapes: read whole, written whole."""

import re

import jax
import numpy as np
import pytest

from ldm_jax.build import make_backbone, make_first_stage, make_model
from ldm_jax.conditioners import CONDITIONERS
from ldm_jax.convert.compvis import read as compvis_read
from ldm_jax.convert.compvis import write as compvis_write
from ldm_jax.convert.compvis.buffers import schedule_buffers
from ldm_jax.convert.formats import Options
from ldm_jax.convert.model import full_section
from ldm_jax.diffusion.schedule import make_schedule
from ldm_jax.errors import ConfigError
from ldm_jax.weights.files import Weights
from tests import published as experiments
from tests.common import REFERENCE, load_manifest
from tests.convert.published_files import zeros

NAMES = sorted(
    path.name.removesuffix(".json.gz")
    for path in (REFERENCE / "manifests").glob("*.json.gz")
)

# Betas of the published models, and the heads that facts about them tell.
BETA_END = {"churches": 0.0155, "super": 0.0155, "rdm": 0.015, "1p4b": 0.012}
BETA_END |= {"inpainting": 0.0205, "layout": 0.0205, "semantic": 0.0205}
HEADS = {
    "ldm_celebahq_ffhq_lsun_bedrooms_vq_f4": dict(head_channels=32),
    "ldm_class_imagenet_v2_vq_f4": dict(num_heads=1),
    "ldm_class_imagenet_vq_f8": dict(num_heads=1),
    "ldm_inpainting_big_vq_f4": dict(num_heads=8),
    "ldm_layout_openimages_vq_f4": dict(num_heads=1),
    "ldm_lsun_churches_kl_f8": dict(num_heads=8),
    "ldm_semantic_synthesis_vq_f4": dict(num_heads=8),
    "ldm_super_resolution_vq_f4": dict(head_channels=32),
    "ldm_text_1p4b_kl_f8": dict(num_heads=8),
    "ldm_text_256_vq_f4": dict(num_heads=1),
    "rdm_768_vq": dict(head_channels=32),
}


# Whose YAMLs are read again, too: one per way to say heads and per kind of condition.
YAMLS = ("ldm_class_imagenet_v2_vq_f4", "ldm_lsun_churches_kl_f8", "ldm_text_256_vq_f4")


def published(name):
    """Weights of a manifest: zeros that take no memory, and its schedule's tables."""
    weights = zeros(load_manifest(name))
    if "scale_factor" in weights:
        weights["scale_factor"] = np.array(0.18215, np.float32)
    if "betas" in weights:
        ends = [end for part, end in BETA_END.items() if part in name]
        start = 0.00085 if "1p4b" in name else 0.0015
        schedule = make_schedule(beta_start=start, beta_end=(ends or [0.0195])[0])
        weights |= schedule_buffers(schedule)
    return weights


def read(weights, **options):
    lines = []
    options = Options(**options)
    model = compvis_read.read(Weights(weights), None, options, lines.append)
    return model, lines


def test_there_are_manifests():
    assert len(NAMES) == 20 and HEADS.keys() == experiments.RELEASED.keys() < set(NAMES)


# Each takes seconds: the ordinary run has the ones whose YAMLs are read again and every
# sixth of the others, `-m slow` has the rest.
ORDINARY = set(YAMLS) | set(NAMES[::6])
CHOSEN = [
    name if name in ORDINARY else pytest.param(name, marks=pytest.mark.slow)
    for name in NAMES
]


@pytest.mark.parametrize("name", CHOSEN)
def test_manifest_is_read_and_written_whole(name):
    """`read` raises on a key that is not read and a parameter that is not set."""
    weights = published(name)
    model, lines = read(weights)
    assert not [line for line in lines if line.startswith("warning")]
    tensors, yaml = compvis_write.write(model)
    assert tensors.keys() == weights.keys()
    for key, array in weights.items():
        assert tuple(tensors[key].shape) == array.shape, key
        assert tensors[key].dtype == array.dtype, key
    if name in HEADS:
        section = model.config["backbone"]
        assert {k: v for k, v in section.items() if "head" in k} == HEADS[name]
    for spec in experiments.RELEASED.get(name, ()):
        _assert_is_trained_by(model, spec)
    if name in YAMLS:
        section = model.config["backbone"]
        again = compvis_read.read(Weights(weights), yaml["params"], Options())
        assert again.config["backbone"] == section
        assert again.config["schedule"] == model.config["schedule"]


def _sizes(model):
    return [
        sum(leaf.size for leaf in jax.tree.leaves(model.params[name]))
        for name in ("backbone", "conditioner")
    ]


def _conditions(entries):
    """What of conditions must be the same for the same weights and inputs to fit."""
    modules = {
        key: CONDITIONERS[entry["kind"]](
            **{k: v for k, v in entry.items() if k not in ("kind", "dropout")}
        )
        for key, entry in entries.items()
    }
    return {key: (type(made), full_section(made)) for key, made in modules.items()}


def _assert_is_trained_by(model, spec):
    """Checks that a config makes the model, whose weights fit its networks as read."""
    config, row = experiments.load(spec), experiments.listed(spec)
    first = make_first_stage(experiments.load(row.first_stage).first_stage)
    ours = make_model(config, first)
    assert full_section(first) == full_section(
        make_first_stage(model.first_stage.config["first_stage"])
    )
    unet = make_backbone(model.config["backbone"], out_channels=1)
    assert full_section(ours.backbone) == full_section(unet)
    assert _conditions(ours.conditioner.entries) == _conditions(
        model.config["conditions"]
    )
    assert [row.unet, row.conditions] == _sizes(model)
    assert config.data.inputs.to_dict() == model.config["data"]["inputs"]
    assert config.data.image_size == model.config["data"]["image_size"]
    schedule = dict(model.config["schedule"])
    assert schedule.pop("prediction_type") == ours.objective.prediction_type
    np.testing.assert_allclose(
        ours.schedule.betas, make_schedule(**schedule).betas, rtol=1e-6
    )


def test_heads_can_be_overridden():
    model, _ = read(published("ldm_class_imagenet_vq_f8"), head_channels=32)
    assert model.config["backbone"]["head_channels"] == 32


def test_heads_of_december_2021_win_over_a_yaml_and_say_so():
    weights = published("ldm_class_imagenet_vq_f8")
    model, _ = read(weights)
    params = compvis_write.write(model)[1]["params"]
    unet = params["unet_config"]["params"]
    del unet["num_heads"]
    unet["num_head_channels"] = 32
    lines = []
    read_again = compvis_read.read(Weights(weights), params, Options(), lines.append)
    assert read_again.config["backbone"]["num_heads"] == 1
    assert any("heads: number 1" in line and "32" in line for line in lines)


def test_unknown_tables_are_carried_along_with_a_warning():
    weights = published("ldm_celebahq_ffhq_lsun_bedrooms_vq_f4")
    weights["betas"] = np.random.default_rng(0).random(1000, np.float32)
    model, lines = read(weights)
    assert any(line.startswith("warning: the file's betas") for line in lines)
    tensors, _ = compvis_write.write(model)
    np.testing.assert_array_equal(tensors["betas"], weights["betas"])


@pytest.mark.parametrize("name", ["ldm_semantic_synthesis_vq_f4", "autoencoder_vq_f8"])
def test_a_key_too_few_or_too_many_is_named(name):
    weights = published(name)
    rng = np.random.default_rng(0)
    keys = [key for key in weights if ".perceptual_loss." not in key]
    keys = [key for key in keys if not _carried(key)]
    for key in rng.choice(keys, 3, replace=False):
        short = {k: v for k, v in weights.items() if k != key}
        with pytest.raises((ConfigError, ValueError), match=re.escape(key)):
            read(short)
    with pytest.raises(ValueError, match="nothing reads: loss.other"):
        read(weights | {"loss.other": np.zeros(3, np.float32)})


def _carried(key):
    tables = schedule_buffers(make_schedule())
    return (
        key in tables
        or key in ("model_ema.decay", "model_ema.num_updates")
        or key.endswith(("num_batches_tracked", "to_logits.weight", "to_logits.bias"))
    )


def test_a_cond_stage_that_should_be_the_first_stage_and_differs():
    weights = published("ldm_inpainting_big_vq_f4")
    key = "quantize.embedding.weight"
    weights[f"cond_stage_model.{key}"] = np.ones((8192, 3), np.float32)
    model, lines = read(weights)
    assert any("1 weights of cond_stage_model differ" in line for line in lines)
    codes = model.first_stage.params["autoencoder"]["quantizer"]["embedding"]
    assert not np.any(codes)
    tensors, _ = compvis_write.write(model)
    for prefix in ("cond_stage_model.", "first_stage_model."):
        np.testing.assert_array_equal(tensors[prefix + key], weights[prefix + key])
