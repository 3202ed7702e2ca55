"""Whole checkpoints of CompVis: to the decoded image, and back to the bytes."""

import copy
import functools
import pathlib

import jax
import numpy as np
import pytest

from ldm_jax import checkpoint, latent_diffusion, sampling
from ldm_jax.convert import workdir as workdirs
from ldm_jax.convert.compvis import write
from ldm_jax.convert.compvis.buffers import schedule_buffers
from ldm_jax.convert.formats import Options, _target_format, convert
from ldm_jax.diffusion import grids, samplers, solve
from ldm_jax.diffusion.schedule import make_schedule
from ldm_jax.errors import ConfigError, ConversionError
from ldm_jax.generate import make_denoiser
from ldm_jax.trained import load_first_stage
from ldm_jax.weights.files import read_weights, write_weights
from ldm_jax.weights.state_dict import select
from tests.common import Case, assert_close, load_case, nhwc
from tests.convert.published_files import (
    assert_same,
    compvis_yaml,
    first_stage_params,
    write_compvis,
)

CASES = ("checkpoint_class_vq", "checkpoint_semantic_vq", "checkpoint_text_kl")


class Converted:
    """A case as a file, as a workdir and as a file again."""

    def __init__(self, name, folder):
        self.case, self.folder = load_case(name), folder
        self.file, self.yaml = write_compvis(folder, self.case)
        self.workdir, self.back = folder / "workdir", folder / "back.ckpt"
        options = Options(config=self.yaml)
        convert(self.file, self.workdir, options=options, log=lambda line: None)
        convert(self.workdir, self.back, log=lambda line: None)


@pytest.fixture(scope="module", params=CASES)
def converted(request, tmp_path_factory):
    return Converted(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def class_model(tmp_path_factory):
    return Converted("checkpoint_class_vq", tmp_path_factory.mktemp("class"))


def conditioning(case):
    """(condition of the case, what means nothing known)."""
    arrays = case.arrays
    if "labels" in arrays:
        null = case.meta["config"]["cond_config"]["n_classes"] - 1
        return {"label": arrays["labels"]}, {"label": np.full(2, null)}
    if "tokens" in arrays:
        return {"caption": arrays["tokens"]}, {"caption": arrays["uncond_tokens"]}
    return {"segmentation": arrays["segmentation"]}, None


def draw(trained, case):
    """The case's guided DDIM run from its x_T: (latents, images)."""
    model, config = trained.model, case.meta["config"]
    inputs, null = conditioning(case)
    scale = config["guidance_scale"]

    def run(params, frozen, latents):
        given = [null, inputs] if null else [inputs]
        conditionings = [
            latent_diffusion.condition(model, params, batch) for batch in given
        ]
        latents = solve.sample(
            samplers.make_sampler("ddim", eta=config["eta"]),
            make_denoiser(model, params, conditionings, [scale] * bool(null)),
            latents,
            grids.make_points(model.schedule, config["ddim_steps"]),
            jax.random.split(jax.random.key(0), len(latents)),
        )
        return latents, latent_diffusion.decode(model, frozen, latents)

    return jax.jit(run)(trained.params, trained.frozen, nhwc(case.arrays["x_T"]))


def test_sampling_from_the_converted_weights_matches_compvis(converted):
    case = converted.case
    trained = sampling.load_model(converted.workdir)
    latents, images = draw(trained, case)
    assert_close(latents, nhwc(case.arrays["latents"]), 2e-4)
    assert_close(images, nhwc(case.arrays["image"]), 2e-4)
    encode = functools.partial(latent_diffusion.encode, trained.model)
    encoded = jax.jit(encode)(trained.frozen, nhwc(case.arrays["encode_input"]))
    assert_close(encoded, nhwc(case.arrays["encoded_latents"]))


def test_there_and_back_gives_the_same_bytes(converted):
    found = read_weights(converted.back).tensors
    assert_same(found, converted.case.state_dict)


def test_the_yaml_that_is_written_reads_the_file_that_is_written(converted, tmp_path):
    options = Options(config=converted.back.with_suffix(".yaml"))
    convert(converted.back, tmp_path / "again", options=options, log=lambda line: None)
    ours = checkpoint.load_weights(converted.workdir)[0].to_dict()
    again = checkpoint.load_weights(tmp_path / "again")[0].to_dict()
    # A null class is not said in CompVis's YAML, nor are ids of an empty caption.
    assert ours == again


def test_the_folder_can_be_moved(class_model, tmp_path):
    moved = tmp_path / "elsewhere"
    class_model.workdir.rename(moved)
    try:
        assert sampling.load_model(moved).model.first_stage.downsampling_factor == 2
        first = load_first_stage(moved / "first_stage")
        assert "quantizer" in first.params and first.record["image_size"] == 16
    finally:
        moved.rename(class_model.workdir)


def test_structure_is_deduced_without_a_yaml(class_model, tmp_path):
    """All but the heads, and the noise schedule where its tables are missing."""
    tables = schedule_buffers(make_schedule())
    path = tmp_path / "model.safetensors"
    write_weights(path, class_model.case.state_dict | tables)
    with pytest.raises(ConfigError, match="--num_heads"):
        convert(path, tmp_path / "none", log=lambda line: None)
    options = Options(head_channels=32, image_size=16)
    convert(path, tmp_path / "ours", options=options, log=lambda line: None)
    expected = checkpoint.load_weights(class_model.workdir)[0].to_dict()
    found = checkpoint.load_weights(tmp_path / "ours")[0].to_dict()
    assert found == expected
    convert(tmp_path / "ours", tmp_path / "back.safetensors", log=lambda line: None)
    back = read_weights(tmp_path / "back.safetensors").tensors
    assert_same(back, class_model.case.state_dict | tables)


def test_raw_weights_by_choice(class_model, tmp_path):
    options = Options(config=class_model.yaml, raw=True)
    convert(class_model.file, tmp_path / "raw", options=options, log=lambda line: None)
    key = "model.diffusion_model.out.2.bias"
    for workdir, name in ((tmp_path / "raw", key), (class_model.workdir, None)):
        _, params, meta = checkpoint.load_weights(workdir)
        name = name or "model_ema.diffusion_modelout2bias"
        bias = params["backbone"]["conv_out"]["bias"]
        np.testing.assert_array_equal(bias, class_model.case.state_dict[name])
        assert meta["item"] == ("params" if name == key else "ema_params")


def test_counters_and_half_precision_come_back(class_model, tmp_path):
    state = {k: v.astype(np.float16) for k, v in class_model.case.state_dict.items()}
    state |= {
        "model_ema.decay": np.float32(0.9999),
        "model_ema.num_updates": np.array(1234, np.int32),
    }
    write_weights(tmp_path / "model.ckpt", state)
    options = Options(config=class_model.yaml)
    convert(tmp_path / "model.ckpt", tmp_path / "ours", options=options)
    config, _, meta = checkpoint.load_weights(tmp_path / "ours")
    assert meta["step"] == 1234 and config.train.ema_decay == 0.9999
    convert(tmp_path / "ours", tmp_path / "back.ckpt")
    back = read_weights(tmp_path / "back.ckpt").tensors
    assert_same(back, {key: np.asarray(array) for key, array in state.items()})


BROKEN = {
    "missing key": (
        lambda s: s.pop("model.diffusion_model.middle_block.1.norm.bias"),
        r"missing keys: model\.diffusion_model\.middle_block\.1\.norm\.bias",
    ),
    "missing key of the first stage": (
        lambda s: s.pop("first_stage_model.quant_conv.bias"),
        r"missing keys: first_stage_model\.quant_conv\.bias",
    ),
    "missing key that structure is read from": (
        lambda s: s.pop("cond_stage_model.embedding.weight"),
        r"missing key cond_stage_model\.embedding\.weight",
    ),
    "unknown key": (
        lambda s: s.update({"model.diffusion_model.extra": np.zeros(3, np.float32)}),
        r"nothing reads: model\.diffusion_model\.extra",
    ),
    "wrong shape": (
        lambda s: s.update({"model.diffusion_model.out.2.bias": np.zeros(4, "f4")}),
        r"wrong shape: model\.diffusion_model\.out\.2\.bias \(4,\)",
    ),
    "another schedule": (
        lambda s: s.update(schedule_buffers(make_schedule(beta_end=0.0205))),
        "noise schedule is not that of the file's betas",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_wrong_is_named(class_model, tmp_path, name):
    damage, message = BROKEN[name]
    state = dict(class_model.case.state_dict)
    damage(state)
    write_weights(tmp_path / "model.ckpt", state)
    options = Options(config=class_model.yaml)
    with pytest.raises(ConfigError, match=message):
        convert(tmp_path / "model.ckpt", tmp_path / "ours", options=options)
    assert not (tmp_path / "ours").exists()


def _first_stage_alone(model):
    part = model["model"]["params"]["first_stage_config"]
    model["model"]["params"] = part["params"]


WRONG_YAMLS = {
    "of a first stage": (_first_stage_alone, "holds a whole model but the YAML des"),
    "section missing": (
        lambda model: model["model"]["params"]["unet_config"].pop("params"),
        "the YAML lacks params",
    ),
    "no section": (
        lambda model: model["model"]["params"].update(unet_config=None),
        "a value of the wrong kind",
    ),
}


@pytest.mark.parametrize("name", WRONG_YAMLS)
def test_what_a_yaml_lacks_is_named(class_model, tmp_path, name):
    change, message = WRONG_YAMLS[name]
    model = compvis_yaml(copy.deepcopy(class_model.case.meta["config"]))
    change(model)
    file, yaml = write_compvis(tmp_path, class_model.case, model=model)
    with pytest.raises(ConfigError, match=message):
        convert(file, tmp_path / "ours", options=Options(config=yaml))


def test_a_yaml_of_a_whole_model_for_a_first_stage(class_model, tmp_path):
    first = select(class_model.case.state_dict, "first_stage_model.")
    write_weights(tmp_path / "first.ckpt", first)
    with pytest.raises(ConfigError, match="holds a first stage but the YAML desc"):
        options = Options(config=class_model.yaml)
        convert(tmp_path / "first.ckpt", tmp_path / "ours", options=options)


def test_the_average_of_a_cond_stage_is_written(class_model):
    """A model that was trained here has one; CompVis has no other place for it."""
    model, key = workdirs.read(class_model.workdir), "cond_stage_model.embedding.weight"
    average = jax.tree.map(lambda leaf: leaf + 1, model.ema_params["conditioner"])
    model.ema_params = model.ema_params | {"conditioner": average}
    model.origin, lines = {}, []
    tensors, _ = write.write(model, lines.append)
    expected = average["label"]["embed"]["embedding"]
    np.testing.assert_array_equal(tensors[key], expected)
    assert any("conditioner: of label the moving average" in line for line in lines)
    model.ema_params, lines = {}, []
    tensors, _ = write.write(model, lines.append)
    expected = model.params["conditioner"]["label"]["embed"]["embedding"]
    np.testing.assert_array_equal(tensors[key], expected)
    assert not lines


def test_what_a_killed_conversion_left_is_in_nobodys_way(class_model, tmp_path):
    left = tmp_path / ".ours.partial" / "ours"
    (left / "checkpoints" / "7.orbax-checkpoint-tmp").mkdir(parents=True)
    (left / "in_use.json").write_text("{")
    convert(class_model.file, tmp_path / "ours", options=Options(class_model.yaml))
    assert [path.name for path in tmp_path.iterdir()] == ["ours"]
    assert not (tmp_path / "ours" / "in_use.json").exists()
    steps = [path.name for path in (tmp_path / "ours" / "checkpoints").iterdir()]
    assert "7.orbax-checkpoint-tmp" not in steps


def test_names_that_cannot_be_are_named(class_model, tmp_path):
    with pytest.raises(ConfigError, match="there is nothing at"):
        convert(tmp_path / "none.ckpt", tmp_path / "x")
    with pytest.raises(ConfigError, match="exists"):
        convert(class_model.file, class_model.workdir)
    (tmp_path / "back.yaml").write_text("x")
    with pytest.raises(ConfigError, match="back.yaml exists"):
        convert(class_model.workdir, tmp_path / "back.safetensors")
    (tmp_path / "text.txt").write_text("x")
    with pytest.raises(ConfigError, match="is not known"):
        convert(tmp_path / "text.txt", tmp_path / "x")
    with pytest.raises(ConfigError, match="end its name in"):
        convert(class_model.workdir, tmp_path / "x", to="compvis")


@pytest.mark.parametrize(
    "name, words",
    [
        ("out.safetensor", 'did you mean ".safetensors".*--to=diffusers'),
        ("out.SAFETENSORS", 'did you mean ".safetensors"'),
        ("out.ckp", 'did you mean ".ckpt"'),
        ("out.txt", "choose from .bin, .ckpt.*--to=diffusers"),
        ("out.v1.npz", "out.v1.npz is named like a file, but .npz is no suffix"),
    ],
)
def test_a_folder_is_not_written_under_the_name_of_a_file(
    class_model, tmp_path, name, words
):
    with pytest.raises(ConversionError, match=words):
        convert(class_model.workdir, tmp_path / name)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ConversionError, match="--to=ldm_jax"):
        convert(class_model.file, tmp_path / name)


@pytest.mark.parametrize(
    "name", "sd-1.5 my.model.v1 m.fp16 x.best m.final exp.main m.int8 a.part1".split()
)
def test_a_folder_may_have_a_point_in_its_name(name):
    assert _target_format("ldm_jax", pathlib.Path("/nowhere") / name) == "diffusers"


def test_a_folder_that_is_there_may_have_any_name(tmp_path):
    (tmp_path / "out.txt").mkdir()
    assert _target_format("ldm_jax", tmp_path / "out.txt") == "diffusers"


@pytest.mark.parametrize(
    "name",
    ["autoencoder_kl_f4_attn", "autoencoder_vq_f2", "autoencoder_vq_f4_noattn"],
)
def test_first_stages_with_their_discriminator(tmp_path, name):
    case = load_case(name)
    critic = load_case("patch_discriminator").state_dict
    state = case.state_dict | {f"loss.discriminator.{k}": v for k, v in critic.items()}
    state["loss.logvar"] = np.zeros((), np.float32)
    state["loss.perceptual_loss.lin0.model.1.weight"] = np.ones((1, 4, 1, 1), "f4")
    for key in state:
        if key.endswith("num_batches_tracked"):
            state[key] = np.array(7, np.int64)
    model = {
        "model": {"target": "X", "params": first_stage_params(case.meta["config"])}
    }
    file, yaml = write_compvis(tmp_path, Case({}, {}, state), model=model)
    lines = []
    options = Options(config=yaml)
    convert(file, tmp_path / "ours", options=options, log=lines.append)
    assert any("perceptual loss: 1 tensors are carried along" in line for line in lines)
    module, params = load_first_stage(tmp_path / "ours")[:2]

    @jax.jit
    def reconstruct(params, images):
        posterior = module.apply({"params": params}, images, method="encode")
        return module.apply({"params": params}, posterior.mode(), method="decode")

    images = reconstruct(params, nhwc(case.arrays["x"]))
    key = "decoded" if "vq" in name else "decoded_mode"
    assert_close(images, nhwc(case.arrays[key]))
    convert(tmp_path / "ours", tmp_path / "back.ckpt")
    assert_same(read_weights(tmp_path / "back.ckpt").tensors, state)


def test_a_model_of_pixels(tmp_path):
    """Its first stage does nothing and has no weights."""
    case = load_case("unet_uncond_head_channels")
    state = {f"model.diffusion_model.{k}": v for k, v in case.state_dict.items()}
    for key, cut in (
        ("input_blocks.0.0.weight", (slice(None), slice(3))),
        ("out.2.weight", slice(3)),
        ("out.2.bias", slice(3)),
    ):
        state[f"model.diffusion_model.{key}"] = case.state_dict[key][cut]
    channels = dict(in_channels=3, out_channels=3)
    params = dict(
        linear_start=0.0015,
        linear_end=0.0195,
        unet_config={"params": case.meta["config"] | channels},
        first_stage_config={"target": "ldm.models.autoencoder.IdentityFirstStage"},
        cond_stage_config="__is_unconditional__",
    )
    model = {"model": {"params": params}}
    file, yaml = write_compvis(tmp_path, Case({}, {}, state), model=model)
    convert(file, tmp_path / "ours", options=Options(config=yaml))
    trained = sampling.load_model(tmp_path / "ours")
    assert trained.model.first_stage.downsampling_factor == 1
    assert trained.config.data.image_size == 8
    convert(tmp_path / "ours", tmp_path / "back.ckpt")
    assert_same(read_weights(tmp_path / "back.ckpt").tensors, state)
