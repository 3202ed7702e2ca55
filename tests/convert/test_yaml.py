"""Our sections, written in others' terms."""

import pytest

from ldm_jax.convert.compvis.options import unet_kwargs
from ldm_jax.convert.compvis.write_yaml import (
    diffusion_yaml,
    first_stage_yaml,
    unet_yaml,
)
from ldm_jax.convert.diffusers import config as diffusers_config
from ldm_jax.convert.diffusers.schedule_config import schedule_config, schedule_section
from ldm_jax.convert.model import Model, autoencoder_config
from ldm_jax.errors import ConfigError

SECTION = dict(
    channels=32,
    channel_mult=(1, 2),
    num_res_blocks=1,
    attention_factors=(1, 2),
    transformer_depth=1,
)


def written(**heads):
    """The options that CompVis's YAML says of a U-Net with these heads."""
    return unet_yaml(SECTION | heads, (4, 4), 8, 16, None, {})["params"]


@pytest.mark.parametrize(
    "heads, expected",
    [
        (dict(num_heads=4), dict(num_heads=4)),
        (dict(head_channels=16), dict(num_head_channels=16)),
        (dict(num_heads=(1, 2)), dict(num_head_channels=32)),
        (
            dict(num_heads=(1, 2), head_channels=(24, 24)),
            dict(num_head_channels=24, legacy=False),
        ),
        (dict(num_heads=(5, 5), head_channels=(6, 12)), dict(num_heads=5)),
        (
            dict(num_heads=4, up_num_heads=(2, 2)),
            dict(num_heads=4, num_heads_upsample=2),
        ),
    ],
)
def test_heads_are_written_as_compvis_says_them(heads, expected):
    options = written(**heads)
    found = {k: v for k, v in options.items() if "head" in k or k == "legacy"}
    assert found == expected
    read = unet_kwargs(options)
    if "up_num_heads" not in heads:  # of which transformers know nothing
        shape = {k: tuple(v) if isinstance(v, list) else v for k, v in heads.items()}
        sizes = [_heads(width, **shape, level=i) for i, width in enumerate((32, 64))]
        again = {k: v for k, v in read.items() if "head" in k}
        assert sizes == [_heads(w, **again, level=i) for i, w in enumerate((32, 64))]


def _heads(width, level, num_heads=None, head_channels=None):
    """(heads, channels of one) of a level."""
    heads = num_heads[level] if isinstance(num_heads, tuple) else num_heads
    size = head_channels[level] if isinstance(head_channels, tuple) else head_channels
    return heads or width // size, size or width // heads


@pytest.mark.parametrize(
    "heads", [dict(num_heads=(1, 4)), dict(num_heads=2, up_num_heads=(1, 2))]
)
def test_heads_that_compvis_cannot_say_are_named(heads):
    with pytest.raises(ConfigError, match="cannot be said"):
        written(**heads)


@pytest.mark.parametrize("quantizer", ["cosine", "gumbel"])
def test_a_codebook_that_others_would_look_up_wrongly_is_refused(quantizer):
    model = autoencoder_config(dict(kind="vq", quantizer=quantizer), 16)
    for write in (first_stage_yaml, diffusers_config.first_stage_config):
        with pytest.raises(
            ConfigError, match=f"quantizer={quantizer} cannot be written"
        ):
            write(model)


def test_zero_terminal_snr_is_read_and_written_for_diffusers():
    section = dict(zero_terminal_snr=True, prediction_type="v", beta_end=0.012)
    written = schedule_config(section)
    assert written["rescale_betas_zero_snr"]
    assert written["timestep_spacing"] == "trailing"
    assert section.items() <= schedule_section(written).items()


@pytest.mark.parametrize(
    "schedule", [dict(kind="rectified_flow"), dict(zero_terminal_snr=True)]
)
def test_schedules_that_compvis_cannot_say_are_named(schedule):
    model = Model(config=dict(schedule=schedule), params={})
    with pytest.raises(ConfigError, match="does not know the schedule"):
        diffusion_yaml(model, (4, 4), None, None)
