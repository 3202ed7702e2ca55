"""Tiny models of every kind that is exported, and what they draw from given noise."""

import dataclasses
import zlib

import jax
import numpy as np

from ldm_jax import sampling
from ldm_jax.convert import workdir
from ldm_jax.convert.compvis.conditions import examples
from ldm_jax.convert.model import (
    Model,
    autoencoder_config,
    diffusion_config,
    diffusion_shapes,
    first_stage_shapes,
)
from ldm_jax.data.inputs import apply_inputs
from ldm_jax.data.tokenizers import load_tokenizer
from ldm_jax.diffusion.latent_statistics import LatentStatistics
from ldm_jax.generate import Given, sample_images

SIDE, STEPS, SCALE = 8, 4, 3.0
PROMPT = "a red star"
# Of the image in guidance, and of the steps that run from an image.
IMAGE_SCALE, STRENGTH = 1.5, 0.75

VQ = dict(
    kind="vq",
    channels=16,
    channel_mult=(1, 2),
    num_res_blocks=1,
    z_channels=3,
    embed_dim=3,
    num_codes=32,
    norm_groups=8,
)
KL = VQ | dict(kind="kl", z_channels=4, embed_dim=4)
KL.pop("num_codes")
KL_F8 = KL | dict(channel_mult=(1, 1, 1, 1))
# The norms of the demo's own model, whose timesteps scale and shift.
PLAIN = dict(
    channels=16,
    channel_mult=(1, 2),
    num_res_blocks=1,
    attention_factors=(2,),
    head_channels=16,
    transformer_depth=0,
    scale_shift_norm=True,
    norm_groups=8,
)
CROSS = PLAIN | dict(transformer_depth=1, scale_shift_norm=False)
# One level with attention in the middle, as more only takes longer to compile.
LOW = CROSS | dict(channel_mult=(1,), attention_factors=())
NOISE = dict(kind="scaled_linear", beta_start=0.00085, beta_end=0.012)


def _caption(max_length):
    return dict(kind="caption", tokenizer="shapes", max_length=max_length)


def _text(max_length):
    return dict(
        kind="text",
        vocab_size=len(load_tokenizer("shapes", max_length)._backend),
        features=16,
        num_layers=1,
        max_length=max_length,
        # Not the 8 heads of 64 that CompVis has.
        num_heads=2,
        head_channels=8,
        null_ids=(0,),
    )


def _clip():
    text = _text(12)
    return text | dict(
        kind="clip_text", activation="quick_gelu", mlp_ratio=2, head_channels=8
    )


def _beside_caption(key, entry, made, scale=0.6):
    """A model like Stable Diffusion's with one condition more."""
    conditions = {"caption": _clip, key: entry}
    inputs = {"caption": _caption(12), key: made}
    return KL, LOW, conditions, inputs, NOISE, dict(spacing="leading"), scale


# Kind -> (first stage, U-Net, conditions, inputs, schedule, how it is sampled, scale).
KINDS = {
    "unconditional": (VQ, PLAIN, {}, {}, NOISE, {}, 0.7),
    "class": (
        VQ,
        PLAIN,
        {
            "label": dict(
                kind="class_label",
                slot="vector",
                num_classes=5,
                features=64,
                null_class=True,
            )
        },
        {},
        dict(kind="cosine", prediction_type="v"),
        {},
        0.5,
    ),
    "text": (
        KL_F8,
        CROSS,
        {"caption": lambda: _text(77)},
        {"caption": _caption(77)},
        NOISE | dict(prediction_type="v", zero_terminal_snr=True),
        dict(spacing="trailing"),
        0.9,
    ),
    "stable": (
        KL,
        CROSS,
        {"caption": _clip},
        {"caption": _caption(12)},
        NOISE,
        dict(sampler="plms"),
        0.6,
    ),
    "super_resolution": (
        VQ,
        PLAIN | dict(scale_shift_norm=False),
        {"low_res": dict(kind="raw", slot="concat")},
        {},
        NOISE,
        {},
        1.0,
    ),
    "inpainting": _beside_caption(
        "masked_image",
        dict(kind="masked_image", mask_first=True, signed_mask=False),
        dict(kind="masked_image", fill=0.0),
    ),
    "depth": _beside_caption(
        "depth",
        dict(
            kind="spatial",
            num_stages=1,
            method="bicubic",
            multiplier=0.5,
            stretch=True,
        ),
        dict(kind="depth"),
    ),
    "edit": _beside_caption(
        "source_image",
        dict(kind="encoded", slot="concat", scale=2.0),
        dict(kind="image"),
        scale=0.5,
    ),
}
GUIDANCE = {
    "text": SCALE,
    "stable": SCALE,
    "inpainting": (("caption", SCALE),),
    "depth": (("caption", SCALE),),
    "edit": (("source_image", IMAGE_SCALE), ("caption", SCALE)),
}
CLASSES = {
    "unconditional": "LDMPipeline",
    "class": "DiffusionPipeline",
    "text": "LDMTextToImagePipeline",
    "stable": "StableDiffusionPipeline",
    "super_resolution": "LDMSuperResolutionPipeline",
    "inpainting": "StableDiffusionInpaintPipeline",
    "depth": "StableDiffusionDepth2ImgPipeline",
    "edit": "StableDiffusionInstructPix2PixPipeline",
}
# CompVis's norms have 32 groups.
WIDE = dict(channels=32, norm_groups=32)
LABELS = np.array([3, 1])


def make_model(kind, pixels=None, **widths):
    """A model of the kind, of weights that are the same everywhere."""
    section, backbone, entries, inputs, schedule, sample, scale = KINDS[kind]
    section, backbone = section | widths, backbone | widths
    entries = {key: e() if callable(e) else dict(e) for key, e in entries.items()}
    factor = 2 ** (len(section["channel_mult"]) - 1)
    size = SIDE * factor
    if pixels is not None:
        section = section | {"image_channels": pixels.count}
    first = Model(autoencoder_config(dict(section), size), {})
    first.params = _weights({"autoencoder": first_stage_shapes(first.config)})
    _without_noise(first.params["autoencoder"])
    config = diffusion_config(
        image_size=size,
        factor=factor,
        conditions=entries,
        backbone={"kind": "unet"} | backbone,
        schedule={"prediction_type": "noise"} | schedule,
        guidance_scale=GUIDANCE.get(kind, 1.0),
    )
    config["data"]["inputs"] = {key: dict(entry) for key, entry in inputs.items()}
    for data in (config["data"], first.config["data"]):
        data |= {} if pixels is None else dataclasses.asdict(pixels)
    config["sample"] |= sample | dict(num_steps=STEPS)
    channels = section["embed_dim"]
    shape = dict(in_channels=2 * channels, out_channels=channels, context_dim=16)
    batch = examples(entries, shape, size, factor)
    params = _weights(diffusion_shapes(config, first.config, channels, batch))
    params.setdefault("conditioner", {})
    statistics = LatentStatistics(scale=scale)
    return Model(config, params, statistics=statistics, first_stage=first)


def _without_noise(params):
    """Has a KL posterior be its mode, as others draw from it what they condition on."""
    if "to_moments" in params:
        kernel, bias = (params["to_moments"][name] for name in ("kernel", "bias"))
        half = len(bias) // 2
        kernel[..., half:], bias[half:] = 0, -30


def _weights(shapes):
    def draw(path, leaf):
        name = jax.tree_util.keystr(path)
        rng = np.random.RandomState(zlib.crc32(name.encode()))
        values = rng.standard_normal(leaf.shape)
        if "scale" in name:
            return (1 + 0.1 * values).astype(np.float32)
        fan_in = np.prod(leaf.shape[:-1]) if len(leaf.shape) > 1 else 100
        return (values / np.sqrt(fan_in)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def write_model(kind, folder):
    """The model's workdir."""
    workdir.write(make_model(kind), folder)
    return folder


def low_res(channels=3):
    """A small image to enlarge, float32 [1, c, SIDE, SIDE] in [-1, 1]."""
    values = np.random.RandomState(7).uniform(-1, 1, (1, channels, SIDE, SIDE))
    return values.astype(np.float32)


def example():
    """An image, a mask of its right half, and depth, with the keys of examples."""
    rng, side = np.random.RandomState(3), 2 * SIDE
    mask = np.zeros((side, side), bool)
    mask[:, side // 2 :] = True
    return dict(
        image=rng.randint(0, 256, (side, side, 3), np.uint8),
        mask=mask,
        depth=rng.uniform(2, 9, (side, side, 1)).astype(np.float32),
    )


def _inputs(trained, kind, caption):
    if kind == "class":
        return {"label": LABELS[:1]}
    if kind == "super_resolution":
        return {"low_res": np.moveaxis(low_res(), 1, -1)}
    given = example() | {"caption": caption}
    made = apply_inputs(trained.inputs, given, np.random.default_rng(0))
    return {key: np.asarray(made[key])[None] for key in trained.inputs}


def draw(folder, kind, noise):
    """What a workdir draws from noise [1, h, w, c] as its config says: [1, H, W, 3]."""
    trained = sampling.load_model(folder)
    depth = kind == "depth"
    side = trained.config.data.image_size
    chosen = {"strength": STRENGTH} if depth else {}
    options = sampling.complete(trained, chosen, size=(side, side))
    inputs = _inputs(trained, kind, PROMPT)
    negative = _inputs(trained, kind, "")
    negative = {key: negative[key] for key in negative if key == "caption"}
    # That pipeline always starts from an image.
    known = example()["image"][None] if depth else None

    @jax.jit
    def run(params, frozen, inputs, given):
        rngs = jax.random.split(jax.random.key(0), 1)
        return sample_images(
            trained.model, params, frozen, inputs, rngs, options, given
        )

    given = Given(noise=noise, negative=negative, known=known)
    images = run(trained.params, trained.frozen, inputs, given)
    return np.clip(np.asarray(images) / 2 + 0.5, 0, 1)
