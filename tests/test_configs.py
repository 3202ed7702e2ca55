"""Every config builds, at its full size on shapes alone and as a toy for real."""

import functools

import jax
import jax.numpy as jnp
import pytest

from ldm_jax import latent_diffusion, sampling
from ldm_jax.batches import Data
from ldm_jax.build import make_first_stage, make_model
from ldm_jax.config import build
from ldm_jax.diffusion.latent_statistics import LatentStatistics
from ldm_jax.models.operations.parameters import variable_shapes
from ldm_jax.sharding import make_mesh
from ldm_jax.training.freeze import check_freeze, freeze_paths
from ldm_jax.training.loss_options import LossOptions
from ldm_jax.training.start.idle_keys import idle_notes
from tests.published import NAMES, RELEASED, line, listed, load, module, specs
from tests.runs import train

SPECS = [spec for name in NAMES for spec in specs(name)]
FIRST_STAGES = [spec for spec in SPECS if load(spec).stage == "autoencoder"]
SECOND_STAGES = [spec for spec in SPECS if load(spec).stage == "diffusion"]
CHECKED = {spec for specs in RELEASED.values() for spec in specs}

# Sizes of the released first stages; those of the second are checked where their
# checkpoints are read, in `convert/test_manifests.py`.
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
}

# How large an image a row is listed with.
SIDE = 256


def _size(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@functools.cache
def _autoencoder_shapes(autoencoder):
    """Shapes of a first stage's parameters; they do not depend on the image's size."""
    side = autoencoder.downsampling_factor
    images = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    return variable_shapes(autoencoder, images)["params"]


def _first_stage(spec, variant=""):
    """The module of the first stage that a second stage is made for."""
    found = listed(spec)
    first = load(found.first_stage if found else "shapes_autoencoder", variant)
    return make_first_stage(first.first_stage)


@pytest.mark.parametrize("spec", FIRST_STAGES)
def test_first_stages_build_with_the_published_number_of_parameters(spec):
    config = load(spec)
    size = _size(_autoencoder_shapes(make_first_stage(config.first_stage)))
    if spec in PUBLISHED:
        assert size == PUBLISHED[spec]
    elif ":" in spec:
        assert 12_000_000 < size < 110_000_000
    else:
        assert 0 < size < 10_000_000
    build(LossOptions, config.loss, "loss")


@pytest.mark.parametrize("name", NAMES)
def test_toys_of_first_stages_are_small(name):
    for spec in set(specs(name)) & set(FIRST_STAGES):
        config = load(spec, "tiny")
        autoencoder = make_first_stage(config.first_stage)
        build(LossOptions, config.loss, "loss")
        # Rows of a toy differ in nothing that matters here.
        if spec == specs(name)[0]:
            assert 0 < _size(_autoencoder_shapes(autoencoder)) < 1_000_000


@pytest.mark.parametrize("spec", [spec for spec in FIRST_STAGES if ":" in spec])
def test_rows_of_first_stages_are_as_their_table_says(spec):
    config, numbers = load(spec), line(spec)
    autoencoder = make_first_stage(config.first_stage)
    if config.first_stage.kind == "vq":
        assert int(numbers.pop(0)) == config.first_stage.num_codes
    side = SIDE // autoencoder.downsampling_factor
    shape = f"{side} x {side} x {autoencoder.latent_channels}".split()
    assert numbers[:5] == shape
    row = spec.partition(":")[2]
    assert int(row[1:].split("_")[0]) == autoencoder.downsampling_factor
    size = _size(_autoencoder_shapes(autoencoder))
    found = [int(number) for number in numbers[5:8]]
    assert found == [size, config.train.batch_size, config.train.num_steps]


@functools.cache
def _model(spec):
    """A second stage at its full size."""
    return make_model(load(spec), _first_stage(spec), num_classes=8)


@pytest.mark.parametrize("spec", [spec for spec in SECOND_STAGES if ":" in spec])
def test_rows_of_second_stages_are_as_their_table_says(spec):
    config, row, model = load(spec), listed(spec), _model(spec)
    train = config.train
    assert row[3:] == (train.batch_size, train.num_steps, train.learning_rate)
    same = [other for other in CHECKED if _same_networks(_model(other), model)]
    if same:
        assert row[:3] == listed(same[0])[:3]
    else:
        params = _second_stage_shapes(model, config.data.image_size)
        assert row[1:3] == (_size(params["backbone"]), _size(params["conditioner"]))


def _same_networks(model, other):
    parts = [(m.backbone, m.conditioner, m.first_stage) for m in (model, other)]
    return parts[0] == parts[1]


def _second_stage_shapes(model, image_size):
    """Shapes of parameters, for inputs of each condition like those that data make."""
    side = image_size // 4
    examples = {
        "boxes": jnp.zeros((1, 92), jnp.int32),
        "low_res": jnp.zeros((1, side, side, 3)),
        "masked_image": jnp.zeros((1, image_size, image_size, 4)),
        "segmentation": jnp.zeros((1, image_size, image_size), jnp.int32),
    }
    batch = {key: examples[key] for key in model.conditioner.entries}
    batch["image"] = jnp.zeros((1, image_size, image_size, 3))
    return latent_diffusion.init(model, None, batch)


@pytest.mark.parametrize("spec", SPECS)
def test_configs_set_no_key_that_changes_nothing(spec):
    assert idle_notes(load(spec)) + idle_notes(load(spec, "tiny")) == []


@pytest.mark.parametrize("spec", SECOND_STAGES)
def test_data_deliver_what_conditions_take(spec):
    for variant in ("", "tiny"):
        config = load(spec, variant)
        taken = {k for k, e in config.conditions.items() if e.kind != "class_label"}
        assert taken == set(config.data.get("inputs", {}))


@pytest.mark.parametrize("name", NAMES)
def test_toys_of_second_stages_have_a_loss_on_their_data(name, shapes_dir):
    for spec in specs(name):
        if spec not in SECOND_STAGES:
            continue
        model, frozen, batch = _toy(spec, shapes_dir)
        model.conditioner.check(batch)
        # Rows of a toy differ in little: one stands for all.
        if spec == specs(name)[0]:
            params = latent_diffusion.init(model, None, batch)
            assert 0 < _size(params) < 5_000_000
            trace = functools.partial(_trace, model)
            jax.eval_shape(trace, params, jax.random.key(0), frozen, batch)


def _toy(spec, data_dir):
    """A toy's model, its first stage's weights as shapes, and a batch of its data."""
    config = load(spec, "tiny")
    config.data.data_dir = data_dir
    autoencoder = _first_stage(spec, "tiny")
    data = Data(config.data, 0, 1, make_mesh(devices=jax.devices()[:1]))
    frozen = {
        "first_stage": _autoencoder_shapes(autoencoder),
        "statistics": LatentStatistics().arrays(),
    }
    return make_model(config, autoencoder, data.num_classes), frozen, data.example


def _trace(model, params, rng, frozen, batch):
    """Everything that training and sampling call once."""
    value, _ = latent_diffusion.loss(model, params, frozen, batch, rng)
    assert value.shape == ()
    latents = latent_diffusion.encode(model, frozen, batch["image"])
    images = latent_diffusion.decode(model, frozen, latents)
    assert images.shape == batch["image"].shape


@pytest.mark.parametrize("kind", ["kl", "vq"])
def test_a_decoder_alone_is_what_is_left(kind):
    config = load(f"autoencoder_{kind}:f8", "decoder,tiny")
    params = _autoencoder_shapes(make_first_stage(config.first_stage))
    freeze = freeze_paths(config)
    check_freeze(freeze, {"autoencoder": params})
    frozen = {path.removeprefix("autoencoder/") for path in freeze}
    assert params.keys() - frozen == {"decoder", "from_latents", "to_images"}


@pytest.mark.parametrize("name", NAMES)
def test_docstring_states_command_and_result(name):
    text = module(name).__doc__
    assert f"python train.py --config=configs/{name}.py" in text
    assert "Published" in text or "README" in text


@pytest.mark.parametrize("name", NAMES)
def test_unknown_variants_are_refused(name):
    with pytest.raises(ValueError, match='variant "huge" is unknown'):
        load(name, "huge")


@pytest.mark.parametrize(
    "name, rows", [("autoencoder_kl", "f4,f8"), ("unconditional", "ffhq,bedrooms")]
)
def test_several_rows_are_refused(name, rows):
    with pytest.raises(ValueError, match="names several rows"):
        load(name, rows)


def test_a_toy_of_pixels_runs(shapes_dir, tmp_path):
    metrics = train(
        "inpainting",
        shapes_dir,
        tmp_path,
        first_stage__workdir="identity",
        # A level less takes half the time to compile.
        backbone__channel_mult=(1,),
        backbone__attention_factors=(),
        train__num_steps=1,
        train__log_every=1,
    )
    assert metrics["loss"] > 0
    assert not sampling.load_model(tmp_path).frozen["first_stage"]
