"""Folders of diffusers: to what diffusers computed, and back to the same bytes."""

import functools
import json
import struct

import jax
import numpy as np
import pytest

from ldm_jax import checkpoint, sampling
from ldm_jax.build import make_backbone
from ldm_jax.convert.compvis import read as compvis_read
from ldm_jax.convert.compvis import write as compvis_write
from ldm_jax.convert.diffusers import read as diffusers_read
from ldm_jax.convert.diffusers import write as diffusers_write
from ldm_jax.convert.diffusers.schedule_config import schedule_section
from ldm_jax.convert.formats import Options, convert
from ldm_jax.convert.model import diffusion_config
from ldm_jax.errors import ConfigError
from ldm_jax.trained import load_first_stage
from ldm_jax.weights.files import Weights, read_json, read_weights
from ldm_jax.weights.state_dict import select
from tests.common import assert_close, load_case, load_manifest, nhwc
from tests.convert.published_files import assert_same, write_compvis, write_diffusers


def silent(line):
    del line


def weights(folder, name="diffusion_pytorch_model"):
    return read_weights(folder / f"{name}.safetensors").tensors


UNETS = {
    "diffusers_unet_sd1": {},
    "diffusers_unet_sd2_linear": {"use_linear_projection": True},
}


@pytest.mark.parametrize("name", UNETS)
def test_unet_alone(tmp_path, name):
    case = load_case(name)
    config = {"_class_name": "UNet2DConditionModel"} | case.meta["config"]
    write_diffusers(tmp_path / "unet", case.state_dict, config)
    convert(tmp_path / "unet", tmp_path / "ours", log=silent)
    found, params, _ = checkpoint.load_weights(tmp_path / "ours")
    unet = make_backbone(found.backbone, out_channels=4)
    inputs = nhwc(case.arrays["x"]), case.arrays["timesteps"], case.arrays["context"]
    output = jax.jit(unet.apply)({"params": params["backbone"]}, *inputs)
    assert_close(output, nhwc(case.arrays["output"]))
    convert(tmp_path / "ours", tmp_path / "back", log=silent)
    assert_same(weights(tmp_path / "back"), case.state_dict)
    back = read_json(tmp_path / "back" / "config.json")
    assert {key: back[key] for key in config} == config
    with pytest.raises(ConfigError, match="without a first stage"):
        sampling.load_model(tmp_path / "ours")


@pytest.mark.parametrize(
    "name, kind",
    [("diffusers_autoencoder_kl", "AutoencoderKL"), ("diffusers_vq_model", "VQModel")],
)
def test_first_stage_alone(tmp_path, name, kind):
    case = load_case(name)
    config = {"_class_name": kind} | case.meta["config"]
    write_diffusers(tmp_path / "vae", case.state_dict, config)
    convert(tmp_path / "vae", tmp_path / "ours", log=silent)
    module, params = load_first_stage(tmp_path / "ours")[:2]

    def reconstruct(params, images):
        posterior = module.apply({"params": params}, images, method="encode")
        latents = posterior.mode()
        return latents, module.apply({"params": params}, latents, method="decode")

    latents, images = jax.jit(reconstruct)(params, nhwc(case.arrays["x"]))
    first, last = (
        ("mean", "decoded_mode") if kind == "AutoencoderKL" else ("latents", "decoded")
    )
    assert_close(latents, nhwc(case.arrays[first]))
    assert_close(images, nhwc(case.arrays[last]))
    convert(tmp_path / "ours", tmp_path / "back", log=silent)
    assert_same(weights(tmp_path / "back"), case.state_dict)


def _sparse(path, manifest):
    """A safetensors file of zeros that takes no space on disk."""
    header, end = {}, 0
    for key, shape in manifest.items():
        start, end = end, end + 4 * int(np.prod(shape, dtype=np.int64))
        header[key] = dict(dtype="F32", shape=shape, data_offsets=[start, end])
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)


CROSS, UP = "CrossAttnDownBlock2D", "CrossAttnUpBlock2D"
SD_UNET = dict(
    _class_name="UNet2DConditionModel",
    block_out_channels=[320, 640, 1280, 1280],
    layers_per_block=2,
    down_block_types=[CROSS, CROSS, CROSS, "DownBlock2D"],
    up_block_types=["UpBlock2D", UP, UP, UP],
    sample_size=64,
    in_channels=4,
    out_channels=4,
    cross_attention_dim=768,
    attention_head_dim=8,
)
SD_VAE = dict(
    _class_name="AutoencoderKL",
    block_out_channels=[128, 256, 512, 512],
    layers_per_block=2,
    down_block_types=["DownEncoderBlock2D"] * 4,
    up_block_types=["UpDecoderBlock2D"] * 4,
    latent_channels=4,
    in_channels=3,
    out_channels=3,
    sample_size=512,
)
CLIP_L = dict(
    architectures=["CLIPTextModel"],
    hidden_size=768,
    num_hidden_layers=12,
    num_attention_heads=12,
    intermediate_size=3072,
    vocab_size=49408,
    max_position_embeddings=77,
    hidden_act="quick_gelu",
)
CLIP_H = CLIP_L | dict(
    hidden_size=1024,
    num_hidden_layers=23,
    num_attention_heads=16,
    intermediate_size=4096,
    hidden_act="gelu",
)
LDM_BERT = dict(architectures=["LDMBertModel"], model_type="ldmbert", d_model=1280)
CELEBAHQ = dict(
    _class_name="UNet2DModel",
    block_out_channels=[224, 448, 672, 896],
    layers_per_block=2,
    down_block_types=["DownBlock2D"] + ["AttnDownBlock2D"] * 3,
    up_block_types=["AttnUpBlock2D"] * 3 + ["UpBlock2D"],
    sample_size=64,
    in_channels=3,
    out_channels=3,
    attention_head_dim=32,
)
VQ_F4 = dict(
    _class_name="VQModel",
    block_out_channels=[128, 256, 512],
    layers_per_block=2,
    down_block_types=["DownEncoderBlock2D"] * 3,
    up_block_types=["UpDecoderBlock2D"] * 3,
    latent_channels=3,
    in_channels=3,
    out_channels=3,
    num_vq_embeddings=8192,
    vq_embed_dim=3,
    sample_size=256,
)
SD2_UNET = SD_UNET | dict(
    cross_attention_dim=1024,
    attention_head_dim=[5, 10, 20, 20],
    use_linear_projection=True,
)
PIPELINES = {
    "StableDiffusionPipeline": {
        "unet": ("sd1_unet", SD_UNET),
        "vae": ("sd_vae_kl_f8", SD_VAE),
        "text_encoder": ("clip_vit_l14_text", CLIP_L),
    },
    "StableDiffusionPipeline (2)": {
        "unet": ("sd2_unet", SD2_UNET),
        "vae": ("sd_vae_kl_f8", SD_VAE),
        "text_encoder": ("openclip_vit_h_text_sd2", CLIP_H),
    },
    "StableDiffusionInpaintPipeline": {
        "unet": ("sd1_inpainting_unet", SD_UNET | dict(in_channels=9)),
        "vae": ("sd_vae_kl_f8", SD_VAE),
        "text_encoder": ("clip_vit_l14_text", CLIP_L),
    },
    "LDMTextToImagePipeline": {
        "unet": (
            "ldm_text2im_large_unet",
            SD_UNET | dict(cross_attention_dim=1280, sample_size=32),
        ),
        "vqvae": ("sd_vae_kl_f8", SD_VAE | dict(sample_size=256)),
        "bert": ("ldm_bert", LDM_BERT),
    },
    "LDMPipeline": {
        "unet": ("ldm_celebahq_unet2d", CELEBAHQ),
        "vqvae": ("ldm_vq_f4", VQ_F4),
    },
}
CLIP = dict(kind="caption", tokenizer="openai/clip-vit-large-patch14", max_length=77)
BERT = dict(kind="caption", tokenizer="bert-base-uncased", max_length=77)
INPUTS = {
    "StableDiffusionPipeline": {"caption": CLIP},
    "StableDiffusionPipeline (2)": {"caption": CLIP | {"pad_id": 0}},
    "StableDiffusionInpaintPipeline": {
        "caption": CLIP,
        "masked_image": dict(kind="masked_image", style="mixed", fill=0.0),
    },
    "LDMTextToImagePipeline": {"caption": BERT},
    "LDMPipeline": {},
}
GUIDANCE = {
    "StableDiffusionPipeline (2)": 9.0,
    # The mask stays where guidance leaves the caption out.
    "StableDiffusionInpaintPipeline": (("caption", 7.5),),
    "LDMTextToImagePipeline": 5.0,
    "LDMPipeline": 1.0,
}
SCHEDULER = dict(
    _class_name="PNDMScheduler",
    skip_prk_steps=True,
    set_alpha_to_one=False,
    steps_offset=1,
    clip_sample=False,
    beta_schedule="scaled_linear",
    beta_start=0.00085,
    beta_end=0.012,
    num_train_timesteps=1000,
)


def _pipeline(folder, name):
    """Writes a pipeline of published shapes; returns folder -> manifest."""
    index, manifests = {"_class_name": name, "tokenizer": ["transformers", "X"]}, {}
    for part, (manifest, config) in PIPELINES[name].items():
        manifests[part] = load_manifest(f"diffusers/{manifest}")
        (folder / part).mkdir(parents=True)
        text = part in ("text_encoder", "bert")
        file = "model" if text else "diffusion_pytorch_model"
        _sparse(folder / part / f"{file}.safetensors", manifests[part])
        (folder / part / "config.json").write_text(json.dumps(config))
        index[part] = ["diffusers", config.get("_class_name", "")]
    (folder / "scheduler").mkdir()
    scheduler = folder / "scheduler" / "scheduler_config.json"
    scheduler.write_text(json.dumps(SCHEDULER))
    (folder / "model_index.json").write_text(json.dumps(index))
    return manifests


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """name -> (the manifests of a pipeline, the model that it is)."""

    @functools.cache
    def made(name):
        folder = tmp_path_factory.mktemp("published")
        manifests = _pipeline(folder, name)
        return manifests, diffusers_read.read(folder, Options(), silent)

    return made


@pytest.mark.parametrize("name", PIPELINES)
def test_published_pipelines_are_read_and_written_whole(published, name):
    """`read` raises on a key that is not read and a parameter that is not set."""
    manifests, model = published(name)
    assert model.left_out == {"tokenizer (X)": False}
    configs, tensors = diffusers_write.state(model)
    for part, manifest in manifests.items():
        found = select(tensors, f"{part}/")
        assert {key: list(tensor.shape) for key, tensor in found.items()} == manifest
        config = PIPELINES[name][part][1]
        assert {key: configs[part][key] for key in config} == config
    assert model.config["data"]["inputs"] == INPUTS[name]
    assert model.config["sample"]["guidance_scale"] == GUIDANCE.get(name, 7.5)
    schedule = {"beta_start": 0.00085, "beta_end": 0.012, "kind": "scaled_linear"}
    assert schedule.items() <= model.config["schedule"].items()
    sample = {"sampler": "plms", "spacing": "leading", "final_level": "first"}
    assert sample.items() <= model.config["sample"].items()


@pytest.mark.parametrize(
    "name", ["StableDiffusionPipeline", "StableDiffusionPipeline (2)"]
)
def test_stable_diffusion_is_read_from_one_file_without_a_yaml(published, name):
    """Its structure is all in its weights; heads are those of the published model."""
    _, model = published(name)
    tensors, _ = compvis_write.write(model)
    if "(2)" in name:
        # What a tower that was not cut has besides: its last layer and projection.
        start = "cond_stage_model.model."
        layer = f"{start}transformer.resblocks.22."
        for key, tensor in select(tensors, layer).items():
            tensors[f"{start}transformer.resblocks.23.{key}"] = tensor
        tensors[f"{start}text_projection"] = np.zeros((1024, 1024), np.float32)
        tensors[f"{start}logit_scale"] = np.zeros((), np.float32)
    found = compvis_read.read(Weights(tensors), None, Options(), silent)
    assert found.config["conditions"].keys() == model.config["conditions"].keys()
    caption = found.config["conditions"]["caption"]
    assert caption.items() <= model.config["conditions"]["caption"].items()
    head = {"num_heads": 8} if "(2)" not in name else {"head_channels": 64}
    section = found.config["backbone"]
    assert {key: value for key, value in section.items() if "head" in key} == head
    assert found.scaling_factor == np.float32(0.18215)
    assert found.config["data"]["image_size"] == 512
    assert compvis_write.write(found)[0].keys() == tensors.keys()


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(only_cross_attention=True), "only_cross_attention=True"),
        (dict(down_block_types=[CROSS, "SkipDownBlock2D"]), "SkipDownBlock2D"),
        (dict(up_block_types=[UP, "UpBlock2D"]), "do not mirror"),
        (dict(_class_name="Transformer2DModel"), "holds a Transformer2DModel"),
        (dict(cross_attention_dim=25), "wrong shape: unet/"),
        (dict(layers_per_block=2), "wrong shape: unet/up_blocks.0.resnets.1.norm1"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, change, message):
    case = load_case("diffusers_unet_sd1")
    config = {"_class_name": "UNet2DConditionModel"} | case.meta["config"] | change
    write_diffusers(tmp_path / "unet", case.state_dict, config)
    with pytest.raises(ConfigError, match=message):
        convert(tmp_path / "unet", tmp_path / "ours", log=silent)


def test_old_names_of_attention_are_read(tmp_path):
    case = load_case("diffusers_autoencoder_kl")
    new = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    old = {}
    for key, array in case.state_dict.items():
        for name, before in new.items():
            key = key.replace(f".{name}.", f".{before}.")
        old[key] = array
    assert old.keys() != case.state_dict.keys()
    config = {"_class_name": "AutoencoderKL"} | case.meta["config"]
    write_diffusers(tmp_path / "vae", old, config)
    convert(tmp_path / "vae", tmp_path / "back", to="diffusers", log=silent)
    assert_same(weights(tmp_path / "back"), case.state_dict)


@pytest.mark.parametrize("zero, spacing", [(True, "trailing"), (False, "uniform")])
def test_a_model_that_ends_in_pure_noise_is_sampled_from_there(zero, spacing):
    scheduler = {"rescale_betas_zero_snr": zero, "prediction_type": "v_prediction"}
    schedule = schedule_section(scheduler)
    config = diffusion_config(image_size=8, factor=8, conditions={}, schedule=schedule)
    assert config["sample"]["spacing"] == spacing


def test_a_model_of_compvis_is_written_for_diffusers(tmp_path):
    """And read again: the same weights as from CompVis's file."""
    case = load_case("checkpoint_text_kl")
    file, yaml = write_compvis(tmp_path, case)
    options = Options(config=yaml)
    convert(file, tmp_path / "ours", options=options, log=silent)
    convert(tmp_path / "ours", tmp_path / "theirs", log=silent)
    index = read_json(tmp_path / "theirs" / "model_index.json")
    # LDMTextToImagePipeline has 77 tokens and an eighth of the image's side.
    assert index["_class_name"] == "DiffusionPipeline"
    convert(tmp_path / "theirs", tmp_path / "again", log=silent)
    ours, again = (sampling.load_model(tmp_path / name) for name in ("ours", "again"))
    jax.tree.map(np.testing.assert_array_equal, ours.params, again.params)
    jax.tree.map(np.testing.assert_array_equal, ours.frozen, again.frozen)


def test_a_condition_that_diffusers_has_no_place_for_is_named(tmp_path):
    case = load_case("checkpoint_class_vq")
    file, yaml = write_compvis(tmp_path, case)
    with pytest.raises(ConfigError, match="nothing writes: params/conditioner/label"):
        options = Options(config=yaml)
        convert(file, tmp_path / "theirs", to="diffusers", options=options, log=silent)
