"""Tiny models of every kind that is exported, and what they draw from given noise."""

import zlib

import jax
import numpy as np

from ldm_jax import latent_diffusion, sampling
from ldm_jax.convert import workdir
from ldm_jax.convert.compvis.conditions import examples
from ldm_jax.convert.model import (
    Model,
    autoencoder_config,
    diffusion_config,
    diffusion_shapes,
    first_stage_shapes,
)
from ldm_jax.data.tokenizers import load_tokenizer
from ldm_jax.diffusion import grids, samplers, solve
from ldm_jax.diffusion.latent_statistics import LatentStatistics
from ldm_jax.generate import make_denoiser

SIDE, STEPS, SCALE = 8, 4, 3.0
PROMPT = "a red star"

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
}
CLASSES = {
    "unconditional": "LDMPipeline",
    "class": "DiffusionPipeline",
    "text": "LDMTextToImagePipeline",
    "stable": "StableDiffusionPipeline",
    "super_resolution": "LDMSuperResolutionPipeline",
}
# CompVis's norms have 32 groups.
WIDE = dict(channels=32, norm_groups=32)
LABELS = np.array([3, 1])


def make_model(kind, **widths):
    """A model of the kind, of weights that are the same everywhere."""
    section, backbone, entries, inputs, schedule, sample, scale = KINDS[kind]
    section, backbone = section | widths, backbone | widths
    entries = {key: e() if callable(e) else dict(e) for key, e in entries.items()}
    factor = 2 ** (len(section["channel_mult"]) - 1)
    size = SIDE * factor
    first = Model(autoencoder_config(dict(section), size), {})
    first.params = _weights({"autoencoder": first_stage_shapes(first.config)})
    config = diffusion_config(
        image_size=size,
        factor=factor,
        conditions=entries,
        backbone={"kind": "unet"} | backbone,
        schedule={"prediction_type": "noise"} | schedule,
        guidance_scale=SCALE if "caption" in entries else 1.0,
    )
    config["data"]["inputs"] = {key: dict(entry) for key, entry in inputs.items()}
    config["sample"] |= sample | dict(num_steps=STEPS)
    channels = section["embed_dim"]
    shape = dict(in_channels=2 * channels, out_channels=channels, context_dim=16)
    batch = examples(entries, shape, size, factor)
    params = _weights(diffusion_shapes(config, first.config, channels, batch))
    params.setdefault("conditioner", {})
    statistics = LatentStatistics(scale=scale)
    return Model(config, params, statistics=statistics, first_stage=first)


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


def draw(folder, kind, noise):
    """What a workdir draws from noise [1, h, w, c] as its config says: [1, H, W, 3]."""
    trained = sampling.load_model(folder)
    model, options = trained.model, sampling.complete(trained, {})
    batches, scales = [{}], []
    if kind == "class":
        batches = [{"label": LABELS[:1]}]
    elif kind == "super_resolution":
        batches = [{"low_res": np.moveaxis(low_res(), 1, -1)}]
    elif "caption" in trained.inputs:
        section = dict(trained.config.data.inputs.caption)
        tokenize = load_tokenizer(section["tokenizer"], section["max_length"])
        batches = [{"caption": tokenize([text])} for text in ("", PROMPT)]
        scales = [SCALE]
    points = grids.make_points(
        model.schedule, STEPS, options.spacing, options.final_level
    )

    def run(params, frozen, latents, batches):
        given = [latent_diffusion.condition(model, params, b) for b in batches]
        latents = solve.sample(
            samplers.make_sampler(options.sampler),
            make_denoiser(model, params, given, scales),
            latents,
            points,
            jax.random.split(jax.random.key(0), len(latents)),
        )
        return latent_diffusion.decode(model, frozen, latents)

    images = jax.jit(run)(trained.params, trained.frozen, noise, batches)
    return np.clip(np.asarray(images) / 2 + 0.5, 0, 1)
