"""Every config builds, at its full size on shapes alone and as a toy for real."""

import importlib
import pathlib
import re

import jax
import jax.numpy as jnp
import pytest

from ldm_jax import latent_diffusion, sampling
from ldm_jax.config import build
from ldm_jax.training import classifier
from ldm_jax.training.autoencoder import make_first_stage
from ldm_jax.training.diffusion import make_model
from ldm_jax.training.freeze import check_freeze
from ldm_jax.training.loss_options import LossOptions
from tests.runs import ROOT, train

NAMES = sorted(
    path.stem
    for path in pathlib.Path(ROOT / "configs").glob("*.py")
    if path.stem not in ("__init__", "common")
)

# First stage that each second stage is made for.
FIRST_STAGES = {
    "shapes_class": "shapes_autoencoder",
    "shapes_classifier": "shapes_autoencoder",
    "imagenet_class_f4": "autoencoder_vq",
}

# Sizes of the released models.
PUBLISHED = {
    "autoencoder_kl:f4": 55_312_063,
    "autoencoder_kl:f8": 83_653_863,
    "autoencoder_kl:f16": 69_610_963,
    "autoencoder_kl:f32": 103_880_131,
    "autoencoder_vq:f4": 55_322_782,
    "autoencoder_vq:f4_noattn": 53_219_486,
    "autoencoder_vq:f8": 67_717_295,
    "autoencoder_vq:f8_n256": 67_652_783,
    "autoencoder_vq:f16": 69_593_371,
    "imagenet_class_f4": 400_920_579,
}

# How large a picture a row is listed with.
SIDE = 256


def _module(name):
    return importlib.import_module(f"configs.{name}")


def _load(spec, variant=""):
    name, _, row = spec.partition(":")
    return _module(name).get_config(",".join(filter(None, (row, variant))))


def _specs():
    """Each config, with its rows where it has some: "autoencoder_kl:f8"."""
    for name in NAMES:
        rows = getattr(_module(name), "ROWS", None)
        yield from (f"{name}:{row}" for row in rows) if rows else (name,)


SPECS = list(_specs())
ROWS = [spec for spec in SPECS if ":" in spec]


def _size(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def _shapes(config, first):
    """Parameters of a stage as shapes, and the first stage's module."""
    autoencoder = make_first_stage(first.first_stage)
    side = config.data.image_size
    images = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    key = jax.random.key(0)
    if config.stage == "autoencoder":
        return jax.eval_shape(autoencoder.init, key, images)["params"], autoencoder
    if config.stage == "classifier":
        model = classifier.make_model(config, autoencoder, num_classes=8)
        shape = latent_diffusion.shape_of_latents(model, (side, side))
        arrays = jnp.zeros((1, *shape)), jnp.zeros(1)
        init = model.classifier.init
        return jax.eval_shape(init, key, *arrays)["params"], autoencoder
    model = make_model(config, autoencoder, num_classes=8)
    batch = {"image": images, "label": jax.ShapeDtypeStruct((1,), jnp.int32)}
    init = lambda rng, batch: latent_diffusion.init(model, rng, batch)  # noqa: E731
    return jax.eval_shape(init, key, batch)["unet"], autoencoder


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("variant", ["", "tiny"])
def test_builds_with_the_published_number_of_parameters(spec, variant):
    config = _load(spec, variant)
    first = _load(FIRST_STAGES[spec], variant) if spec in FIRST_STAGES else config
    params, _ = _shapes(config, first)
    if spec in PUBLISHED and not variant:
        assert _size(params) == PUBLISHED[spec]
    elif ":" in spec and not variant:
        assert 12_000_000 < _size(params) < 110_000_000
    else:
        assert 0 < _size(params) < 10_000_000
    if config.stage == "autoencoder":
        build(LossOptions, config.loss, "loss")


@pytest.mark.parametrize("spec", ROWS)
def test_rows_are_as_their_table_says(spec):
    name, row = spec.split(":")
    line = re.search(rf"^{row} +(.*)$", _module(name).__doc__, re.MULTILINE)[1]
    numbers = [word.replace(",", "") for word in line.replace(" x ", "x").split()]
    config = _load(spec)
    params, module = _shapes(config, config)
    if config.first_stage.kind == "vq":
        assert int(numbers.pop(0)) == config.first_stage.num_codes
    side = SIDE // module.downsampling_factor
    assert numbers[0] == f"{side}x{side}x{module.latent_channels}"
    assert int(row[1:].split("_")[0]) == module.downsampling_factor
    listed = [int(number) for number in numbers[1:4]]
    assert listed == [_size(params), config.train.batch_size, config.train.num_steps]


@pytest.mark.parametrize("kind", ["kl", "vq"])
def test_a_decoder_alone_is_what_is_left(kind):
    config = _load(f"autoencoder_{kind}:f8", "decoder,tiny")
    params, _ = _shapes(config, config)
    check_freeze(config.train.freeze, {"autoencoder": params})
    frozen = {path.removeprefix("autoencoder/") for path in config.train.freeze}
    assert params.keys() - frozen == {"decoder", "from_latents", "to_images"}


@pytest.mark.parametrize("name", NAMES)
def test_docstring_states_command_and_result(name):
    text = _module(name).__doc__
    assert f"python train.py --config=configs/{name}.py" in text
    assert "Published" in text or "README" in text


@pytest.mark.parametrize("name", NAMES)
def test_unknown_variants_are_refused(name):
    with pytest.raises(ValueError, match='variant "huge" is unknown'):
        _load(name, "huge")


def test_several_rows_are_refused():
    with pytest.raises(ValueError, match="names several rows"):
        _load("autoencoder_kl", "f4,f8")


@pytest.mark.parametrize("first", ["autoencoder_vq", "identity"])
def test_the_imagenet_pair_runs_as_a_toy(first, shapes_dir, tmp_path):
    bare = {"train__preview_images": 0, "train__num_steps": 1}
    bare |= {"data__eval_split": "", "train__log_every": 1}
    workdir = first
    if first != "identity":
        workdir = str(tmp_path / "ae")
        train(first, shapes_dir, workdir, **bare)
    bare["first_stage__workdir"] = workdir
    metrics = train("imagenet_class_f4", shapes_dir, tmp_path / "ldm", **bare)
    assert metrics["loss"] > 0
    first_stage = sampling.load_model(tmp_path / "ldm").frozen["first_stage"]
    assert bool(first_stage) == (first != "identity")
