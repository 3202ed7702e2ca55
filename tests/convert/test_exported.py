"""Exports: what diffusers drew from them, and what cannot be said is refused.

`exported_*.npz` hold noise and image as diffusers' own classes made them of the export;
`test_parity.py` makes them again where PyTorch is installed.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax import sampling
from ldm_jax.config import from_json, to_json
from ldm_jax.convert import formats
from ldm_jax.convert import workdir as workdirs
from ldm_jax.convert.carried import write_files
from ldm_jax.convert.compvis import write as compvis_write
from ldm_jax.convert.compvis.conditions import conditions_yaml, with_defaults
from ldm_jax.convert.compvis.strict import strict_loading
from ldm_jax.convert.compvis.write_yaml import unet_yaml
from ldm_jax.convert.diffusers import read as diffusers_read
from ldm_jax.convert.diffusers import write as diffusers_write
from ldm_jax.convert.diffusers.fields import FIELDS, complete
from ldm_jax.convert.diffusers.pipelines import NO_CLASS, parts_of, pipeline_class
from ldm_jax.convert.diffusers.schedule_config import (
    sample_section,
    schedule_config,
    schedule_section,
    unlike,
)
from ldm_jax.convert.diffusers.text_config import text_config, text_entry
from ldm_jax.convert.diffusers.unet_config import unet_config, unet_section
from ldm_jax.convert.formats import convert
from ldm_jax.convert.hints import hints_of, take_hints
from ldm_jax.convert.model import Model, autoencoder_config
from ldm_jax.convert.verify import verify
from ldm_jax.diffusion import solve
from ldm_jax.errors import ConversionError
from ldm_jax.files import write_json
from ldm_jax.images import Pixels, pixels_of, read_image, write_png
from ldm_jax.weights.files import read_json
from tests.common import REFERENCE, assert_close
from tests.convert import exported


def silent(line):
    del line


def recorded(kind):
    """(noise, image) of diffusers, of the networks as they are described now."""
    with np.load(REFERENCE / f"exported_{kind}.npz") as case:
        noise, image, index = case["noise"], case["image"], str(case["configs"])
    configs, _ = diffusers_write.state(exported.make_model(kind))
    assert json.loads(json.dumps(configs)) == json.loads(index)
    return noise, image


@pytest.mark.parametrize("kind", [kind for kind in exported.KINDS if kind != "edit"])
def test_draws_what_diffusers_draws_from_the_export(kind, tmp_path):
    noise, image = recorded(kind)
    exported.write_model(kind, tmp_path)
    assert_close(exported.draw(tmp_path, kind, noise), image)


def test_a_converted_instruct_pix2pix_is_sampled_as_by_diffusers(tmp_path, monkeypatch):
    """Its eight channels, by what `sample.py --image --prompt` runs."""
    noise, image = recorded("edit")
    exported.write_model("edit", tmp_path / "first")
    quick = formats.Options(verify=False)
    for old, new in (("first", "theirs"), ("theirs", "ours")):
        convert(tmp_path / old, tmp_path / new, options=quick, log=silent)
    trained = sampling.load_model(tmp_path / "ours")
    assert trained.params["backbone"]["conv_in"]["kernel"].shape[2] == 8
    devices = jax.local_devices()[:1]
    monkeypatch.setattr(jax, "local_devices", lambda: devices)
    monkeypatch.setattr(solve, "normal", lambda rngs, shape: jnp.asarray(noise))
    write_png(tmp_path / "in.png", exported.example()["image"])
    given = dict(image=[str(tmp_path / "in.png")], prompt=[exported.PROMPT])
    given |= dict(negative_prompt=[""])
    chosen = dict(num_steps=exported.STEPS, guidance_scale=exported.GUIDANCE["edit"])
    options = sampling.complete(trained, chosen)
    one = sampling.RunOptions(num_samples=1)
    sampling.run(trained, tmp_path / "out", given, one, options)
    (path,) = (tmp_path / "out" / "samples").iterdir()
    np.testing.assert_allclose(read_image(path) / 255, image[0], atol=0.6 / 255)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The class model, its workdir and its export."""
    folder = tmp_path_factory.mktemp("class")
    exported.write_model("class", folder / "ours")
    lines = []
    convert(folder / "ours", folder / "theirs", log=lines.append)
    return folder, lines


def test_an_export_is_read_again_and_compared(plain):
    folder, lines = plain
    assert lines[-1].startswith("verified: read again")
    assert any("no pipeline class that runs this model" in line for line in lines)
    index = read_json(folder / "theirs" / "model_index.json")
    assert index["_class_name"] == "DiffusionPipeline" and index["_diffusers_version"]
    unet = read_json(folder / "theirs" / "unet" / "config.json")
    assert unet["attn_norm_num_groups"] == unet["norm_num_groups"] == 8


def test_an_export_that_is_another_model_is_not_kept(plain, tmp_path, monkeypatch):
    folder, _ = plain
    again = workdirs.read(folder / "ours")
    again.config["backbone"] |= dict(num_heads=1, head_channels=None)
    model = workdirs.read(folder / "ours")
    with pytest.raises(ConversionError, match="backbone.heads.* became"):
        verify(model, again)
    row = formats.FORMATS["diffusers"]._replace(read=lambda *given: again)
    monkeypatch.setitem(formats.FORMATS, "diffusers", row)
    for _ in range(2):
        with pytest.raises(ConversionError, match="nothing was kept"):
            convert(folder / "ours", tmp_path / "theirs", log=silent)
        assert not list(tmp_path.iterdir())


def test_what_goes_wrong_while_writing_leaves_nothing(plain, tmp_path, monkeypatch):
    folder, _ = plain

    def stop(model, path, options, log):
        path.mkdir()
        (path / "half").write_text("x")
        raise OSError("no space")

    row = formats.FORMATS["diffusers"]._replace(write=stop)
    monkeypatch.setitem(formats.FORMATS, "diffusers", row)
    with pytest.raises(OSError, match="no space"):
        convert(folder / "ours", tmp_path / "theirs", log=silent)
    assert not list(tmp_path.iterdir())


def test_the_norm_of_the_middle_is_read_as_diffusers_makes_it():
    config = dict(_class_name="UNet2DModel", block_out_channels=[32], norm_num_groups=8)
    config |= dict(down_block_types=["DownBlock2D"], up_block_types=["UpBlock2D"])
    shift = config | dict(resnet_time_scale_shift="scale_shift")
    assert "middle_norm_groups" not in unet_section(config)
    assert unet_section(shift)["middle_norm_groups"] == 0
    assert (
        unet_section(config | dict(attn_norm_num_groups=4))["middle_norm_groups"] == 4
    )
    assert "middle_norm_groups" not in unet_section(
        shift | dict(attn_norm_num_groups=8)
    )


UNET = {"_class_name": "UNet2DConditionModel"}


@pytest.mark.parametrize(
    "config, message",
    [
        (UNET | dict(time_embedding_act_fn="silu"), "time_embedding_act_fn='silu'"),
        (UNET | dict(timestep_post_act="silu"), "timestep_post_act='silu'"),
        (UNET | dict(new_thing=3), "new_thing=3"),
        (UNET | dict(block_out_channels=[32, 48, 64, 64]), "multiple of the first, 32"),
        (UNET | dict(block_out_channels=32), "must be a list"),
        (UNET | dict(attention_head_dim=[8, 8]), "2 values for 4 levels"),
        (UNET | dict(attention_head_dim=None), "attention_head_dim=None"),
        (UNET | dict(norm_num_groups=None), "norm_num_groups=None"),
        (UNET | dict(time_embedding_dim=7), "time_embedding_dim=7"),
        (UNET | dict(transformer_layers_per_block=[[1], 1, 1, 1]), r"\[1\]"),
        (UNET | dict(mid_block_type="UNetMidBlock2D"), "mid_block_type"),
        ({"_class_name": "UNet2DModel", "add_attention": False}, "add_attention=False"),
        (
            {"_class_name": "UNet2DModel", "layers_per_block": [1, 2]},
            "layers_per_block",
        ),
        (
            {"_class_name": "UNet2DModel", "attention_head_dim": [8]},
            "attention_head_dim",
        ),
    ],
)
def test_a_field_of_a_unet_that_is_not_supported_is_named(config, message):
    with pytest.raises(ConversionError, match=message):
        unet_section(config)


def test_what_a_file_leaves_out_is_what_diffusers_makes_of_it():
    section = unet_section({"_class_name": "UNet2DModel"})
    assert section["channel_mult"] == (1, 2, 3, 4) and section["head_channels"] == 8
    assert complete({"_class_name": "UNet2DModel"})["in_channels"] == 3
    assert complete(UNET)["cross_attention_dim"] == 1280
    for name in ("AutoencoderKL", "VQModel"):
        assert complete({"_class_name": name})["scaling_factor"] == 0.18215
    assert all(
        fields.read.keys().isdisjoint(fields.fixed) for fields in FIELDS.values()
    )


PNDM = dict(
    _class_name="PNDMScheduler",
    beta_schedule="scaled_linear",
    skip_prk_steps=True,
    steps_offset=1,
)


@pytest.mark.parametrize(
    "config, sample, differs",
    [
        (PNDM, ("plms", "leading", "first"), []),
        (PNDM | dict(set_alpha_to_one=True), ("plms", "leading", "clean"), []),
        (
            dict(_class_name="DDIMScheduler", timestep_spacing="trailing"),
            ("ddim", "trailing", "clean"),
            ["clip_sample=True"],
        ),
        (
            dict(_class_name="DDIMScheduler", clip_sample=False),
            ("ddim", "leading", "clean"),
            ["steps_offset=0"],
        ),
        (
            dict(_class_name="UniPCMultistepScheduler", solver_order=3),
            ("unipc", "linspace_open", "clean"),
            ["solver_order=3"],
        ),
        (
            dict(_class_name="LMSDiscreteScheduler"),
            ("ddim", "linspace", "clean"),
            ["the steps of LMSDiscreteScheduler"],
        ),
    ],
)
def test_a_scheduler_says_how_to_sample(config, sample, differs):
    found = sample_section(config)
    assert (found["sampler"], found["spacing"], found["final_level"]) == sample
    assert list(unlike(config)) == differs


@pytest.mark.parametrize(
    "config, message",
    [
        (dict(_class_name="FlowMatchEulerDiscreteScheduler", shift=3.0), "FlowMatch"),
        (dict(_class_name="EDMEulerScheduler"), "EDMEulerScheduler"),
        (PNDM | dict(trained_betas=[0.1]), "trained_betas"),
        (dict(_class_name="UniPCMultistepScheduler", use_flow_sigmas=True), "use_flow"),
        (PNDM | dict(prediction_type="flow_prediction"), "flow_prediction"),
        (PNDM | dict(snr_shift_scale=3.0), "snr_shift_scale"),
    ],
)
def test_noise_levels_that_are_not_ours_are_refused(config, message):
    with pytest.raises(ConversionError, match=message):
        schedule_section(config)


@pytest.mark.parametrize(
    "section, message",
    [
        (dict(kind="sqrt"), "kind=sqrt"),
        (dict(kind="cosine", cosine_s=0.01), "cosine_s=0.01"),
        (dict(kind="rectified_flow", prediction_type="velocity"), "rectified_flow"),
    ],
)
def test_noise_levels_that_diffusers_cannot_say_are_refused(section, message):
    with pytest.raises(ConversionError, match=message):
        schedule_config(section)


def test_a_pipeline_without_a_unet_is_refused():
    part = ["diffusers", "X"]
    with pytest.raises(ConversionError, match="DiTPipeline has no unet"):
        parts_of({"_class_name": "DiTPipeline", "transformer": part, "vae": part})
    with pytest.raises(ConversionError, match="more networks .* text_encoder_2"):
        parts_of({"unet": part, "text_encoder": part, "text_encoder_2": part})


@pytest.mark.parametrize(
    "name", ["../secrets", "/etc", "..", ".", "", "a/b", "a\\b", "C:x"]
)
def test_no_part_leads_out_of_its_folder(tmp_path, name):
    part = ["diffusers", "X"]
    with pytest.raises(ConversionError, match="the part .* outside of it"):
        parts_of({"unet": part, name: part})
    path = f"{name}/x.json" if "a" not in name else f"../{name}"
    with pytest.raises(ConversionError, match="carries the file .* outside of"):
        write_files(tmp_path / "in", {"tokenizer/x.json": b"x", path: b"x"})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "kind, change",
    [
        ("inpainting", None),
        ("depth", dict(stretch=False)),
        ("depth", dict(method="bilinear")),
        ("edit", None),
    ],
)
def test_a_class_is_claimed_where_it_draws_the_same_alone(kind, change):
    model = exported.make_model(kind)
    configs, _ = diffusers_write.state(model)
    assert pipeline_class(model, configs) == exported.CLASSES[kind]
    if change:
        (key,) = model.config["conditions"].keys() - {"caption"}
        model.config["conditions"][key] |= change
        assert pipeline_class(model, configs) == NO_CLASS
    if kind == "inpainting":
        # That of latents of 3 channels is refused by the pipeline.
        configs["unet"] |= dict(in_channels=7)
        assert pipeline_class(model, configs) == NO_CLASS


def test_a_pipeline_comes_back_with_all_that_it_had(tmp_path):
    """Its scheduler, tokenizer and null entries; a network that is not read is null."""
    exported.write_model("stable", tmp_path / "first")
    theirs = tmp_path / "theirs"
    convert(tmp_path / "first", theirs, log=silent)
    index = read_json(theirs / "model_index.json")
    assert index["_class_name"] == "StableDiffusionPipeline"
    assert index["safety_checker"] == [None, None]
    index |= dict(
        safety_checker=["stable_diffusion", "Checker"], image_encoder=[None] * 2
    )
    (theirs / "safety_checker").mkdir()
    (theirs / "safety_checker" / "model.safetensors").write_bytes(b"weights")
    (theirs / "model_index.json").write_text(json.dumps(index))
    scheduler = read_json(theirs / "scheduler" / "scheduler_config.json")
    scheduler |= dict(set_alpha_to_one=True, _diffusers_version="0.6.0")
    path = theirs / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(scheduler))
    left_out = convert(theirs, tmp_path / "ours", log=silent)
    assert left_out == {"safety_checker (Checker)": False}
    convert(tmp_path / "ours", tmp_path / "back", log=silent)
    assert read_json(tmp_path / "back" / "scheduler" / path.name) == scheduler
    back = read_json(tmp_path / "back" / "model_index.json")
    assert back["scheduler"] == ["diffusers", "PNDMScheduler"]
    assert back["safety_checker"] == back["image_encoder"] == [None, None]
    assert back["requires_safety_checker"] is False
    for file in (theirs / "tokenizer").iterdir():
        copy = tmp_path / "back" / "tokenizer" / file.name
        assert copy.read_bytes() == file.read_bytes()


def test_a_text_encoder_that_compvis_cannot_say_is_refused():
    with pytest.raises(ConversionError, match="caption.num_heads=2 .* BERTEmbedder"):
        model = exported.make_model("text")
        model.config["schedule"]["zero_terminal_snr"] = False
        compvis_write.write(model)
    with pytest.raises(ConversionError, match="caption.vocab_size"):
        compvis_write.write(exported.make_model("stable"))


TEXT = dict(kind="text", vocab_size=50, features=32, num_layers=2)
CLIP = dict(kind="clip_text", vocab_size=60, features=32, num_layers=2, num_heads=4)
CLIP |= dict(head_channels=8, activation="gelu", null_ids=(0,))


def test_a_text_encoder_is_written_with_what_its_class_leaves_out():
    assert text_config({"kind": "clip_text"})["num_attention_heads"] == 12
    layout = dict(kind="layout", vocab_size=8192, features=64, num_layers=1)
    yaml = conditions_yaml({"boxes": layout})["cond_stage_config"]
    assert yaml["params"]["max_seq_len"] == 92
    for entry in (TEXT | dict(mlp_ratio=2), CLIP):
        read = with_defaults(text_entry(text_config(entry)))
        assert read == with_defaults(entry) | dict(null_ids=(0,))


CLIP_MODEL, BERT_MODEL = (
    {"architectures": [n]} for n in ("CLIPTextModel", "LDMBertModel")
)


@pytest.mark.parametrize(
    "config, message",
    [
        (CLIP_MODEL | dict(layer_norm_eps=1e-12), "layer_norm_eps=1e-12 of CLIPText"),
        (CLIP_MODEL | dict(hidden_act="silu"), "only 'gelu' or 'quick_gelu' is"),
        (CLIP_MODEL | dict(new_thing=3), "new_thing=3"),
        (CLIP_MODEL | dict(text_config=dict(new_thing=3)), "new_thing=3"),
        (CLIP_MODEL | dict(intermediate_size=100), "multiple of hidden_size=512"),
        (CLIP_MODEL | dict(num_attention_heads=7), "num_attention_heads=7"),
        (BERT_MODEL | dict(activation_function="relu"), "activation_function='relu'"),
        (BERT_MODEL | dict(scale_embedding=True), "scale_embedding=True"),
        (BERT_MODEL | dict(encoder_ffn_dim=None), "encoder_ffn_dim=None"),
    ],
)
def test_a_field_of_a_text_encoder_that_is_not_supported_is_named(config, message):
    with pytest.raises(ConversionError, match=message):
        text_entry(config)
    more = dict(dropout=0.1, pad_token_id=1, dtype="float32", transformers_version="5")
    assert text_entry(CLIP_MODEL | more) == text_entry(CLIP_MODEL)


@pytest.mark.parametrize(
    "kind, changes",
    [
        ("text", dict(causal=True, use_bias=True, activation="quick_gelu")),
        ("stable", dict(causal=False, use_bias=False, head_channels=16)),
    ],
)
def test_a_text_encoder_that_diffusers_cannot_say_is_refused(kind, changes):
    model = exported.make_model(kind)
    entry = dict(model.config["conditions"]["caption"])
    for name, value in changes.items():
        model.config["conditions"]["caption"] = entry | {name: value}
        with pytest.raises(ConversionError, match=f"caption.{name}={value}.*Model has"):
            diffusers_write.state(model)


def test_hints_do_not_hide_what_a_format_says():
    said = dict(kind="text", vocab_size=9, features=16, num_heads=2)
    hint = dict(said, num_heads=1, causal=True, activation="quick_gelu", null_ids=[3])
    config = dict(conditions=dict(caption=said), data=dict(inputs={}))
    take_hints(Model(config, {}), dict(conditions=dict(caption=hint)))
    assert config["conditions"]["caption"] == said | dict(null_ids=(3,))


@pytest.mark.parametrize(
    "name, pixels",
    [
        ("compvis", Pixels("grey", "uint16", value_range=(0.0, 4095.0))),
        ("diffusers", Pixels("5", value_range=(-200.0, 800.0), rgb_channels=(4, 0, 1))),
    ],
)
def test_channels_and_ranges_come_back(name, pixels, tmp_path):
    """Of both stages: samples are in the units of the data, wherever a model was."""
    model = exported.make_model("unconditional", pixels, **exported.WIDE)
    # A file of CompVis has the trained weights and their average.
    model.ema_params = {}
    row, options = formats.FORMATS[name], formats.Options()
    for part in (model, model.first_stage):
        path = tmp_path / part.config["stage"]
        if name == "compvis":
            path = path.with_suffix(".ckpt")
            options = options._replace(config=path.with_suffix(".yaml"))
        row.write(part, path, options, silent)
        found = row.read(path, options, silent)
        for each in (found, found.first_stage or found):
            section = from_json(to_json(each.config["data"]))
            assert pixels_of(section) == pixels
        jax.tree.map(np.testing.assert_array_equal, found.params, part.params)
        # As if they were of photos, they would be read from other files.
        assert pixels.record() == hints_of(found)["pixels"]


@pytest.mark.parametrize(
    "hint",
    [
        {"channels": "rgba"},
        {"channels": 10**9},
        {"channels": "grey", "value_range": [1, 0]},
        {"value_range": "a"},
        {"rgb_channels": 3},
        ["grey"],
    ],
    ids=str,
)
def test_hints_of_pixels_that_do_not_fit_are_passed_over(hint):
    section = dict(exported.VQ, image_channels=1)
    model = Model(autoencoder_config(section, 16), {})
    take_hints(model, {"pixels": hint})
    assert model.config["data"] == {"image_size": 16}


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(adaln_zero=True, transformer_depth=1), "adaln_zero"),
        (dict(middle_norm_groups=4), "middle_norm_groups=4"),
        (dict(channel_mult=(1, 1.5)), "channel_mult=1.5"),
    ],
)
def test_a_unet_that_other_formats_cannot_say_is_refused(change, message):
    section = exported.PLAIN | exported.WIDE | change
    context = 16 if section["transformer_depth"] else None
    with pytest.raises(ConversionError, match=message):
        unet_yaml(section, (3, 3), 8, context, None, {})
    if "adaln_zero" in change:
        config = dict(backbone=section, data=dict(image_size=8))
        with pytest.raises(ConversionError, match=message):
            unet_config(config, (3, 3), context, {})


def test_what_is_written_loads_strictly_in_compvis_or_says_what_does_not():
    model = exported.make_model("unconditional", **exported.WIDE)
    model.first_stage.params["discriminator"] = {"x": np.zeros(1)}
    tensors, yaml = compvis_write.write(model, silent)
    assert yaml["params"]["scale_by_std"] and "scale_factor" in tensors
    assert not any("loss." in key for key in tensors)
    assert list(strict_loading(tensors, yaml)) == [
        "CompVis's own classes take it with strict=True"
    ]
    (line,) = strict_loading([*tensors, "first_stage_model.loss.logvar"], yaml)
    assert "no 1 keys: first_stage_model.loss.logvar" in line
    (line,) = strict_loading(tensors.keys() - {"betas"}, yaml)
    assert "they miss 1 keys: betas" in line


def test_a_map_keeps_its_resize_on_the_way(tmp_path):
    """The format does not say it; a section of our own beside it does."""
    model = exported.make_model("unconditional", **exported.WIDE)
    depth = dict(kind="spatial", num_stages=1, method="nearest", multiplier=0.5)
    model.config["conditions"] = {"depth": depth}
    kernel = model.params["backbone"]["conv_in"]["kernel"]
    wider = np.concatenate([kernel, kernel[:, :, :1]], axis=2)
    model.params["backbone"]["conv_in"]["kernel"] = wider
    workdirs.write(model, tmp_path / "ours")
    for name in ("theirs", "theirs.safetensors"):
        convert(tmp_path / "ours", tmp_path / name, log=silent)
        options = formats.Options()
        if name.endswith("safetensors"):
            options = options._replace(config=tmp_path / "theirs.yaml")
        again = tmp_path / f"again_{name}"
        convert(tmp_path / name, again, to="ldm_jax", options=options, log=silent)
        found = workdirs.read(again).config["conditions"]["depth"]
        assert depth.items() <= dict(found).items()


def test_a_first_stage_that_says_no_factor_keeps_saying_none():
    model = exported.make_model("unconditional").first_stage
    configs, _ = diffusers_write.state(model)
    assert configs["vae"]["scaling_factor"] == 1.0
    del configs["vae"]["scaling_factor"]
    read = Model(model.config, model.params)
    read.origin = dict(format="diffusers", configs=configs)
    assert "scaling_factor" not in diffusers_write.state(read)[0]["vae"]


def test_a_first_stage_without_statistics_is_measured_by_its_second_stage(tmp_path):
    model, lines = exported.make_model("unconditional").first_stage, []
    for folder in (tmp_path / "once", tmp_path / "again"):
        diffusers_write.write(model, folder, formats.Options(), log=silent)
        model = diffusers_read.read(folder, formats.Options(), lines.append)
    measured = "vae: its scaling_factor of 1 stands for none; a second stage measures"
    assert [line.startswith(measured) for line in lines] == [True, True]
    # Another number that was written there is one that was measured.
    config = read_json(folder / "config.json")
    write_json(folder / "config.json", config | {"scaling_factor": 0.605})
    diffusers_read.read(folder, formats.Options(), lines.append)
    assert "--config.first_stage.scaling_factor=0.605 for a second" in lines[-1]
