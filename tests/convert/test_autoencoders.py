"""Autoencoders of Stable Diffusion's successors: their published shapes, in and out."""

import json

import jax
import numpy as np
import pytest

from ldm_jax.build import make_first_stage
from ldm_jax.convert.compvis import read as compvis_read
from ldm_jax.convert.compvis import write as compvis_write
from ldm_jax.convert.diffusers import read as diffusers_read
from ldm_jax.convert.diffusers import write as diffusers_write
from ldm_jax.convert.formats import Options
from ldm_jax.errors import ConversionError
from ldm_jax.models.first_stages import latent_parts_of, row_of
from ldm_jax.weights.files import Weights
from tests.common import load_manifest
from tests.convert.published_files import write_diffusers, zeros
from tests.models.test_first_stages import CODER, IMAGES

# What config.json of the published folders say beside the structure, which is that of
# Stable Diffusion's autoencoder, and how many parameters they have.
PUBLISHED = {
    "SDXL": (dict(latent_channels=4, scaling_factor=0.13025), 83_653_863),
    "Playground 2.5": (
        dict(
            latent_channels=4,
            scaling_factor=0.5,
            latents_mean=[-1.6574, 1.886, -1.383, 2.5155],
            latents_std=[8.4927, 5.9022, 6.5498, 5.2299],
        ),
        83_653_863,
    ),
    "SD 3": (
        dict(
            latent_channels=16,
            scaling_factor=1.5305,
            shift_factor=0.0609,
            use_quant_conv=False,
            use_post_quant_conv=False,
        ),
        83_819_683,
    ),
    "Flux": (
        dict(
            latent_channels=16,
            scaling_factor=0.3611,
            shift_factor=0.1159,
            use_quant_conv=False,
            use_post_quant_conv=False,
            latents_mean=None,
            latents_std=None,
        ),
        83_819_683,
    ),
}
STRUCTURE = dict(
    _class_name="AutoencoderKL",
    act_fn="silu",
    block_out_channels=[128, 256, 512, 512],
    down_block_types=["DownEncoderBlock2D"] * 4,
    up_block_types=["UpDecoderBlock2D"] * 4,
    force_upcast=True,
    in_channels=3,
    out_channels=3,
    layers_per_block=2,
    norm_num_groups=32,
    sample_size=1024,
)


def shapes(name, manifest):
    """The published tensors: those of Stable Diffusion, of other channels."""
    config = PUBLISHED[name][0]
    channels = config["latent_channels"]
    manifest = {k: v for k, v in load_manifest(manifest).items() if "loss." not in k}
    if channels != 4:
        manifest = {k: v for k, v in manifest.items() if "quant_conv" not in k}
        manifest["encoder.conv_out.weight"] = [2 * channels, 512, 3, 3]
        manifest["encoder.conv_out.bias"] = [2 * channels]
        manifest["decoder.conv_in.weight"] = [512, channels, 3, 3]
    return manifest


def folder_of(tmp_path, name, manifest=None, **config):
    manifest = manifest or shapes(name, "diffusers/sd_vae_kl_f8")
    folder = tmp_path / "vae"
    write_diffusers(folder, {}, STRUCTURE | PUBLISHED[name][0] | config)
    header, end = {}, 0
    for key, shape in manifest.items():
        start, end = end, end + 4 * int(np.prod(shape))
        header[key] = dict(dtype="F32", shape=shape, data_offsets=[start, end])
    text = json.dumps(header).encode()
    with open(folder / "diffusion_pytorch_model.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return folder


def size(model):
    leaves = jax.tree.leaves(model.params["autoencoder"])
    return sum(leaf.size for leaf in leaves)


@pytest.mark.parametrize("name", ["Playground 2.5", "SD 3"])
def test_folders_of_diffusers(tmp_path, name):
    lines = []
    folder = folder_of(tmp_path, name)
    model = diffusers_read.read(folder, Options(), lines.append)
    config, count = PUBLISHED[name]
    assert size(model) == count
    section = model.config["first_stage"]
    assert section["quant_conv"] == (config["latent_channels"] == 4)
    module = make_first_stage(section)
    assert module.latent_channels == config["latent_channels"]
    assert module.downsampling_factor == 8
    # What a second stage's config takes.
    assert len(lines) == 1 and "--config.first_stage." in lines[0]
    configs, tensors = diffusers_write.state(model)
    found = {key: list(tensor.shape) for key, tensor in tensors.items()}
    manifest = shapes(name, "diffusers/sd_vae_kl_f8")
    assert found == {f"vae/{key}": shape for key, shape in manifest.items()}
    expected = STRUCTURE | config
    assert {key: configs["vae"].get(key) for key in expected} == expected


def test_a_first_stage_out_of_a_single_file(name="SDXL", prefix="first_stage_model."):
    manifest = shapes(name, "autoencoder_kl_f8")
    tensors = {f"{prefix}{key}": value for key, value in zeros(manifest).items()}
    weights = compvis_read.narrow(Weights(tensors), Options())
    model = compvis_read.read(weights, None, Options(), lambda line: None)
    assert size(model) == PUBLISHED[name][1]
    back, _ = compvis_write.write(model)
    assert {key: list(tensor.shape) for key, tensor in back.items()} == manifest


def test_both_formats_are_one_structure(tmp_path):
    folder = folder_of(tmp_path, "Flux")
    theirs = diffusers_read.read(folder, Options(), lambda line: None)
    tensors = zeros(shapes("Flux", "autoencoder_kl_f8"))
    assert len(tensors) == 244
    ours = compvis_read.read(Weights(tensors), None, Options(), lambda line: None)
    assert size(ours) == size(theirs) == PUBLISHED["Flux"][1]
    same = [model.config["first_stage"] for model in (theirs, ours)]
    assert make_first_stage(same[0]) == make_first_stage(same[1])
    # A single file is written as a folder, and a folder as a single file.
    configs, found = diffusers_write.state(ours)
    assert not configs["vae"]["use_quant_conv"]
    assert found.keys() == {
        f"vae/{k}" for k in shapes("Flux", "diffusers/sd_vae_kl_f8")
    }
    assert compvis_write.write(theirs)[0].keys() == tensors.keys()


def test_one_quant_convolution_without_the_other_is_refused(tmp_path):
    folder = folder_of(tmp_path, "SDXL", use_quant_conv=False)
    with pytest.raises(ConversionError, match="use_quant_conv=False with use_post"):
        diffusers_read.read(folder, Options(), lambda line: None)


@pytest.mark.parametrize("kind", ["kl", "vq"])
def test_a_first_stage_without_quant_convolutions(kind):
    """Its latents are what the encoder gives; there is nothing else to freeze."""
    codes = {"num_codes": 8} if kind == "vq" else {}
    section = CODER | codes | dict(kind=kind, quant_conv=False)
    with pytest.raises(ValueError, match="embed_dim=3 must be z_channels=4"):
        make_first_stage(section)
    module = make_first_stage(section | dict(embed_dim=4))

    def reconstruct(rng, images):
        return module.init_with_output(rng, images)

    (images, _), variables = jax.eval_shape(reconstruct, jax.random.key(0), IMAGES)
    assert images.shape == IMAGES.shape
    row, parts = row_of(module), latent_parts_of(module)
    present = [part for part in row.decoder_parts if part != "from_latents"]
    assert variables["params"].keys() == {*parts, *present}
