"""Conditions of converted models, and what their inputs are made of."""

import numpy as np
import pytest

from ldm_jax import checkpoint
from ldm_jax.convert.compvis import write as compvis_write
from ldm_jax.convert.compvis.published import usual_guidance
from ldm_jax.convert.diffusers import read as diffusers_read
from ldm_jax.convert.diffusers import write as diffusers_write
from ldm_jax.convert.formats import Options, convert
from ldm_jax.data.inputs import make_inputs
from ldm_jax.errors import ConfigError
from ldm_jax.weights.files import read_weights
from tests.common import load_case
from tests.convert.published_files import assert_same, write_diffusers


def silent(line):
    del line


# By input channels of a U-Net with a text condition: the condition that fills those
# beyond the four of the latents, and what its input is made of.
MORE_CHANNELS = {
    5: (
        "depth",
        dict(
            kind="spatial",
            num_stages=1,
            method="bicubic",
            multiplier=1.0,
            stretch=True,
        ),
        dict(kind="depth"),
    ),
    8: (
        "source_image",
        dict(kind="encoded", slot="concat", scale=1.0),
        dict(kind="image"),
    ),
    7: (
        "low_res",
        dict(kind="raw", slot="concat"),
        None,  # without a first stage its size is not known
    ),
    9: (
        "masked_image",
        dict(kind="masked_image", mask_first=True, signed_mask=False),
        dict(kind="masked_image", style="mixed", fill=0.0),
    ),
}


def _with_channels(folder, channels):
    """Writes a U-Net of a case as if it took more channels; returns its weights."""
    case = load_case("diffusers_unet_sd1")
    config = {"_class_name": "UNet2DConditionModel"} | case.meta["config"]
    kernel = case.state_dict["conv_in.weight"]
    more = np.ones((len(kernel), channels - 4, 3, 3), np.float32)
    state = case.state_dict | {"conv_in.weight": np.concatenate([kernel, more], 1)}
    write_diffusers(folder, state, config | dict(in_channels=channels))
    return state


@pytest.mark.parametrize("channels", MORE_CHANNELS)
def test_channels_beyond_the_latents_are_a_condition(tmp_path, channels):
    key, condition, made = MORE_CHANNELS[channels]
    state = _with_channels(tmp_path / "unet", channels)
    convert(tmp_path / "unet", tmp_path / "ours", log=silent)
    found = checkpoint.load_weights(tmp_path / "ours")[0]
    assert found.conditions[key].to_dict() == condition
    inputs = found.data.inputs.to_dict()
    assert inputs.pop("embedding")["kind"] == "feature"
    assert inputs == ({key: made} if made else {})
    make_inputs(inputs)
    convert(tmp_path / "ours", tmp_path / "back", log=silent)
    back = tmp_path / "back" / "diffusion_pytorch_model.safetensors"
    assert_same(read_weights(back).tensors, state)
    model = diffusers_read.read(tmp_path / "unet", Options(), silent)
    _, described = compvis_write.write(model)
    assert described["params"]["conditioning_key"] == "crossattn"


def test_a_mask_that_others_would_take_otherwise_is_refused(tmp_path):
    _with_channels(tmp_path / "unet", 9)
    model = diffusers_read.read(tmp_path / "unet", Options(), silent)
    usual = model.config["conditions"]["masked_image"]
    for entry in (dict(kind="masked_image"), usual | dict(scale=2.0)):
        model.config["conditions"]["masked_image"] = entry
        for write in (compvis_write.write, diffusers_write.state):
            with pytest.raises(ConfigError, match="take mask_first=True, .* scale=1$"):
                write(model)


@pytest.mark.parametrize(
    "keys, expected",
    [
        (["caption"], 7.5),
        (["caption", "masked_image"], (("caption", 7.5),)),
        (["caption", "depth"], (("caption", 7.5),)),
        (["source_image", "caption"], (("source_image", 1.5), ("caption", 7.5))),
        (["low_res"], 7.5),
    ],
)
def test_a_mask_or_depth_stays_where_guidance_leaves_the_caption_out(keys, expected):
    unet = dict(model_channels=320, channel_mult=[1, 2, 4, 4], context_dim=768)
    assert usual_guidance(unet, keys) == expected
    unet["model_channels"] = 32
    small = expected if "source_image" in keys else 1.0
    assert usual_guidance(unet, keys) == small
