"""CompVis's checkpoints as people have them: pruned, cast, merged, renamed."""

import ml_dtypes
import numpy as np
import pytest

from ldm_jax.build import make_first_stage
from ldm_jax.convert import formats
from ldm_jax.convert.compvis import read as compvis_read
from ldm_jax.convert.compvis import write as compvis_write
from ldm_jax.convert.compvis.buffers import schedule_buffers
from ldm_jax.convert.compvis.deduce import schedule_section
from ldm_jax.convert.diffusers import write as diffusers_write
from ldm_jax.convert.formats import Options, convert
from ldm_jax.convert.model import Model, full_section
from ldm_jax.diffusion.schedule import make_schedule
from ldm_jax.errors import ConfigError
from ldm_jax.trained import load_first_stage
from ldm_jax.weights.files import Weights, read_weights, write_weights
from tests.common import load_case
from tests.convert.published_files import assert_same, compvis_yaml

STABLE = dict(kind="scaled_linear", beta_start=0.00085, beta_end=0.012)
TYPES = (np.float32, np.float16, ml_dtypes.bfloat16)


@pytest.fixture(scope="module")
def text():
    """(weights with the schedule's tables, what the YAML says)."""
    case = load_case("checkpoint_text_kl")
    config = case.meta["config"]
    ends = dict(beta_start=config["linear_start"], beta_end=config["linear_end"])
    tables = schedule_buffers(make_schedule(**ends))
    return case.state_dict | tables, compvis_yaml(config)["model"]["params"]


def read(tensors, params=None, **options):
    lines = []
    options = Options(**({"num_heads": 8} | options))
    model = compvis_read.read(Weights(tensors), params, options, lines.append)
    return model, lines


def cast(tensors, dtype):
    return {key: np.asarray(value).astype(dtype) for key, value in tensors.items()}


KNOWN_ENDS = (
    *((0.00085, 0.012), (0.0015, 0.0195), (0.0015, 0.0155), (0.0015, 0.0205)),
    *((0.0015, 0.015), (1e-4, 0.02)),
)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("kind", ["scaled_linear", "linear", "sqrt"])
@pytest.mark.parametrize("ends", KNOWN_ENDS)
def test_schedules_are_found_in_any_precision(dtype, kind, ends):
    section = dict(kind=kind, beta_start=ends[0], beta_end=ends[1])
    betas = make_schedule(**section).betas.astype(dtype)
    found = schedule_section(betas)
    assert section.items() <= found.items()
    assert found["num_train_timesteps"] == 1000


@pytest.mark.parametrize("dtype", TYPES)
def test_a_cosine_schedule_is_found(dtype):
    betas = make_schedule(kind="cosine").betas.astype(dtype)
    assert schedule_section(betas)["kind"] == "cosine"


def test_betas_of_no_schedule_are_not_taken_for_one():
    betas = make_schedule(**STABLE).betas
    wrong = betas * np.linspace(1, 1.02, 1000)
    for table in (wrong.astype(np.float16), np.zeros(1000), betas[:1], betas[None]):
        assert schedule_section(table) is None
    assert schedule_section(np.arange(1000)) is None


@pytest.mark.parametrize(
    "dtype, described",
    [(np.float16, True), (np.float16, False), (ml_dtypes.bfloat16, False)],
)
def test_half_precision_in_every_tensor(text, dtype, described):
    tensors, params = text
    model, lines = read(cast(tensors, dtype), params if described else None)
    expected = make_schedule(**STABLE).betas
    np.testing.assert_array_equal(make_schedule(**_levels(model)).betas, expected)
    assert not [line for line in lines if line.startswith("warning")]
    back, _ = compvis_write.write(model)
    assert_same(back, cast(tensors, dtype))


def _levels(model):
    section = dict(model.config["schedule"])
    del section["prediction_type"]
    return section


def test_another_schedule_is_refused_in_half_precision_too(text):
    tensors, params = text
    other = schedule_buffers(make_schedule(beta_start=0.0015, beta_end=0.0205))
    with pytest.raises(ConfigError, match="not that of the file's betas"):
        read(cast(tensors | other, np.float16), params)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("known", [0.18215, 0.13025])
def test_scale_factors_that_are_known(dtype, known):
    tensors = {"scale_factor": np.asarray(known, dtype)}
    found = compvis_read._scaling_factor({}, tensors)
    assert found == (np.float32(known) if dtype == np.float32 else known)
    # What the YAML says wins over what is known, if it rounds to the same.
    given = {"scale_factor": known * (1 + 1e-5)}
    if dtype != np.float32:
        assert compvis_read._scaling_factor(given, tensors) == given["scale_factor"]


@pytest.mark.parametrize("value", [0.0, -1.0, np.nan, np.inf])
def test_scale_factors_that_make_no_sense(value):
    with pytest.raises(ConfigError, match="the file's scale_factor is"):
        compvis_read._scaling_factor({}, {"scale_factor": np.float32(value)})


COUNTERS = {
    "infinite": (np.float16(np.inf), None, 1),
    "infinite, with a step": (np.float16(np.inf), 470_000, 470_000),
    "not a number": (np.float32(np.nan), None, 1),
    "negative": (np.int64(-1), None, 1),
    "a list of one": (np.array([12], np.int32), None, 12),
    "beyond 32 bits": (np.float32(1e20), 3, 3),
    "a step beyond 32 bits": (np.int32(7), 2**40, 7),
}


@pytest.mark.parametrize("name", COUNTERS)
def test_counters(name):
    value, saved, expected = COUNTERS[name]
    tensors = {"model_ema.num_updates": np.asarray(value)}
    assert compvis_read._step(Weights(tensors, saved)) == expected
    assert compvis_read._step(Weights({}, saved)) == (saved if saved == expected else 1)


def test_counters_come_back_as_they_were():
    case = load_case("checkpoint_class_vq")
    params = compvis_yaml(case.meta["config"])["model"]["params"]
    counters = {
        "model_ema.num_updates": np.array(np.inf, np.float16),
        # Rounded to 1, the average would never move again.
        "model_ema.decay": np.array(0.9999, np.float16),
    }
    tensors = case.state_dict | counters
    model, _ = read(tensors, params, num_heads=None)
    assert model.step == 1 and model.config["train"]["ema_decay"] == 0.9999
    assert_same(compvis_write.write(model)[0], _arrays(tensors))


def _arrays(tensors):
    return {key: np.asarray(value) for key, value in tensors.items()}


def test_text_encoders_without_text_model():
    """Under the cond stage alone, and not twice."""
    start = "cond_stage_model.transformer."
    keys = [
        f"{start}embeddings.position_ids",
        f"{start}encoder.layers.0.layer_norm1.weight",
        f"{start}final_layer_norm.bias",
    ]
    usual = [key.replace(start, f"{start}text_model.") for key in keys]
    others = [f"{start}token_emb.weight", "encoder.conv_in.weight"]
    for found in (keys, usual):
        tensors = dict.fromkeys([*found, *others], 0)
        assert list(compvis_read._usual_names(tensors)) == [*usual, *others]


def first_stage():
    case = load_case("autoencoder_kl_f4_attn")
    rng = np.random.default_rng(0)
    average = {
        f"model_ema.{key.replace('.', '')}": rng.standard_normal(v.shape, np.float32)
        for key, v in case.state_dict.items()
    }
    counters = {
        "model_ema.decay": np.asarray(np.float32(0.999)),
        "model_ema.num_updates": np.array(840_000, np.int32),
    }
    return case.state_dict, average, counters


def test_a_first_stage_with_counters_alone(tmp_path):
    state, _, counters = first_stage()
    write_weights(tmp_path / "vae.ckpt", state | counters)
    convert(tmp_path / "vae.ckpt", tmp_path / "ours", log=lambda line: None)
    convert(tmp_path / "ours", tmp_path / "back.ckpt", log=lambda line: None)
    found = read_weights(tmp_path / "back.ckpt")
    assert_same(found.tensors, state | counters)
    assert found.step == 840_000


def test_a_first_stage_with_its_whole_average(tmp_path):
    state, average, counters = first_stage()
    average["model_emalossdiscriminatormain0weight"] = np.ones((1,), np.float32)
    average = {key.replace("emaloss", "ema.loss"): v for key, v in average.items()}
    whole = state | average | counters
    write_weights(tmp_path / "vae.ckpt", whole)
    convert(tmp_path / "vae.ckpt", tmp_path / "ours", log=lambda line: None)
    first = load_first_stage(tmp_path / "ours")
    kernel = first.params["to_moments"]["kernel"]
    expected = average["model_ema.quant_convweight"][:, :, 0, 0].T
    np.testing.assert_array_equal(kernel, expected)
    assert first.record["weights"] == "ema_params"
    assert first.config.train.ema_decay == 0.999
    raw = load_first_stage(tmp_path / "ours", average=False).params
    expected = state["quant_conv.weight"][:, :, 0, 0].T
    np.testing.assert_array_equal(raw["to_moments"]["kernel"], expected)
    convert(tmp_path / "ours", tmp_path / "back.ckpt", log=lambda line: None)
    assert_same(read_weights(tmp_path / "back.ckpt").tensors, whole)


def test_an_average_that_lacks_a_tensor_is_named():
    state, average, counters = first_stage()
    del average["model_ema.quant_convbias"]
    with pytest.raises(ValueError, match=r"missing keys: model_ema\.quant_convbias"):
        read(state | average | counters)


def test_without_the_average_of_a_first_stage():
    state, average, counters = first_stage()
    model, _ = read(state | average | counters, raw=True)
    assert not model.ema_params
    assert_same(compvis_write.write(model)[0], state)


def test_the_first_stage_inside_of_a_model_is_not_its_average(text):
    """A second stage is trained on the weights themselves."""
    tensors, params = text
    key = "first_stage_model.model_ema.quant_convweight"
    model, _ = read(tensors | {key: np.ones((3,), np.float32)}, params)
    assert not model.first_stage.ema_params
    assert key in compvis_write.write(model)[0]


def test_an_autoencoder_out_of_a_whole_model(text, tmp_path):
    tensors, _ = text
    first = {
        key.removeprefix("first_stage_model."): value
        for key, value in tensors.items()
        if key.startswith("first_stage_model.")
    }
    lines = []
    options = Options(only="first_stage")
    for prefix, others in (("first_stage_model.", True), ("vae.", False), ("", False)):
        found = {f"{prefix}{key}": value for key, value in first.items()}
        found |= {k: v for k, v in tensors.items() if k.startswith("model.") and others}
        narrowed = compvis_read.narrow(Weights(found), options, lines.append).tensors
        assert narrowed.keys() == first.keys()
        assert len(lines) == 1
    del lines[:]
    model, _ = read(narrowed)
    assert model.config["stage"] == "autoencoder"
    unet = {k: v for k, v in tensors.items() if k.startswith("model.")}
    with pytest.raises(ConfigError, match="there is no first stage in the file"):
        compvis_read.narrow(Weights(unet), options, lines.append)


def test_parts_are_asked_for_where_they_are(monkeypatch, tmp_path):
    first, bare = Model({"stage": "autoencoder"}, {}), Model({"stage": "diffusion"}, {})
    whole = Model({"stage": "diffusion"}, {}, first_stage=first)
    only = Options(only="first_stage")
    for model, expected in ((whole, first), (first, first)):
        row = formats.FORMATS["ldm_jax"]._replace(read=lambda *_, m=model: m)
        monkeypatch.setitem(formats.FORMATS, "ldm_jax", row)
        assert formats._read("ldm_jax", tmp_path, only, print) is expected
        assert formats._read("ldm_jax", tmp_path, Options(), print) is model
    row = row._replace(read=lambda *_: bare)
    monkeypatch.setitem(formats.FORMATS, "ldm_jax", row)
    with pytest.raises(ConfigError, match="holds no first stage"):
        formats._read("ldm_jax", tmp_path, only, print)
    with pytest.raises(ConfigError, match="--variant=fp16 chooses among"):
        formats._read("ldm_jax", tmp_path, Options(variant="fp16"), print)


@pytest.mark.parametrize(
    "key, name",
    [
        ("model.diffusion_model.joint_blocks.0.x", "Stable Diffusion 3"),
        ("model.diffusion_model.double_blocks.0.x", "Flux"),
        ("conditioner.embedders.0.x", "a model of generative-models, such as SDXL"),
        ("model.diffusion_model.label_emb.0.0.weight", "the U-Net of SDXL"),
    ],
)
def test_newer_models_are_called_by_their_names(key, name):
    tensors = {"model.diffusion_model.out.2.weight": np.zeros((4, 4, 3, 3), "f4")}
    with pytest.raises(ConfigError, match=f"this is {name}, whose .*--only=first_st"):
        read(tensors | {key: np.zeros(1, np.float32)})


ENTRANCES = (
    "model.diffusion_model.input_blocks.0.0.weight",
    "model_ema.diffusion_modelinput_blocks00weight",
)


@pytest.fixture(scope="module")
def edit(text):
    """The weights of InstructPix2Pix: an image's latents beside the noisy ones."""
    tensors, params = text
    tensors = dict(tensors)
    for key in ENTRANCES:
        tensors[key] = np.concatenate([tensors[key], tensors[key]], axis=1)
    unet = params["unet_config"]["params"]
    unet = unet | {"in_channels": 2 * unet["in_channels"]}
    tensors["scale_factor"] = np.array(0.25, np.float32)
    return tensors, params | {"unet_config": {"params": unet}}


def test_image_latents_beside_the_noisy_ones(edit):
    tensors, params = edit
    model, _ = read(tensors, params)
    expected = dict(kind="encoded", slot="concat", scale=4.0)
    assert model.config["conditions"]["source_image"] == expected
    assert model.config["data"]["inputs"]["source_image"] == dict(kind="image")
    scales = (("source_image", 1.5), ("caption", 7.5))
    assert model.config["sample"]["guidance_scale"] == scales
    back, yaml = compvis_write.write(model)
    assert_same(back, tensors)
    assert yaml["params"]["conditioning_key"] == "hybrid"
    model.config["conditions"]["source_image"]["scale"] = 1.0
    for write in (compvis_write.write, diffusers_write.state):
        with pytest.raises(ConfigError, match="this one takes them of scale=1:"):
            write(model)


@pytest.mark.parametrize("more", [2, 6])
def test_channels_of_no_known_use_are_refused(text, more):
    tensors, params = text
    unet = params["unet_config"]["params"]
    unet = unet | {"in_channels": unet["in_channels"] + more}
    with pytest.raises(ConfigError, match="which is no known use"):
        read(tensors, params | {"unet_config": {"params": unet}})


@pytest.mark.parametrize("shape", [(), (32,), (0, 3, 3, 3)])
def test_kernels_that_structure_is_read_from(shape):
    state, _, _ = first_stage()
    state["encoder.conv_in.weight"] = np.zeros(shape, np.float32)
    with pytest.raises(ConfigError, match=r"encoder\.conv_in\.weight .* is no kernel"):
        read(state)


def test_a_discriminator_that_is_numbered_otherwise():
    state, _, _ = first_stage()
    state["loss.discriminator.main.0.weight"] = np.zeros((8, 3, 4, 4), np.float32)
    state["loss.discriminator.main.3000000000.weight"] = np.zeros(1, np.float32)
    with pytest.raises(ConfigError, match="is no NLayerDiscriminator's"):
        read(state)


def test_sections_of_coders_without_quant_convolutions(text):
    state, _, _ = first_stage()
    bare = {k: v for k, v in state.items() if "quant_conv" not in k}
    model, _ = read(bare)
    section = model.config["first_stage"]
    assert not section["quant_conv"] and section["embed_dim"] == section["z_channels"]
    assert "to_moments" not in model.params["autoencoder"]
    module = make_first_stage(section)
    back, yaml = compvis_write.write(model)
    assert_same(back, bare)
    assert yaml["target"] == "sgm.models.autoencoder.AutoencodingEngine"
    again, _ = read(bare, yaml["params"])
    assert full_section(make_first_stage(again.config["first_stage"])) == full_section(
        module
    )
