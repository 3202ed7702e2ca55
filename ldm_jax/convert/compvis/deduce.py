"""The original's options, deduced from the names and shapes of the weights.

Whatever a YAML of the original would say about a network's structure is in its weights,
but for the number of attention heads, dropout and the order of queries and keys.
"""

import re
from typing import NamedTuple

import numpy as np

from ldm_jax.diffusion.schedule import BETAS
from ldm_jax.errors import ConversionError

# The original's names of noise schedules; its "linear" is linear in sqrt(beta).
SCHEDULE_NAMES = {
    "linear": "scaled_linear",
    "sqrt_linear": "linear",
    "cosine": "cosine",
    "sqrt": "sqrt",
}


def unet_options(weights, prefix=""):
    """Deduces the options of a UNetModel, all but its heads.

    Args:
      weights: Dict of key -> array with a shape.
      prefix: What its keys begin with.

    Returns:
      Dict of the original's options.

    Raises:
      ConversionError: If a key is missing or the widths are not those of a UNetModel.
    """
    shape = _shape_of(weights, prefix)
    channels = shape("time_embed.0.weight")[1]
    levels, attends, depths = _levels(weights, prefix)
    middle = _depth(weights, f"{prefix}middle_block.1")
    options = dict(
        in_channels=shape("input_blocks.0.0.weight")[1],
        out_channels=shape("out.2.weight")[0],
        model_channels=channels,
        channel_mult=[_ratio(width, channels) for width, _ in levels],
        num_res_blocks=_one_or_all([blocks for _, blocks in levels]),
        attention_resolutions=[2**i for i, has in enumerate(attends) if has],
        resblock_updown=_any(
            weights, prefix, r"output_blocks\.\d+\.[12]\.in_layers\..*"
        ),
        use_scale_shift_norm=shape("middle_block.0.emb_layers.1.weight")[0]
        == 2 * shape("middle_block.0.in_layers.2.weight")[0],
    )
    if not options["resblock_updown"]:
        resampling = _any(weights, prefix, r"input_blocks\.\d+\.0\.op\.weight")
        options["conv_resample"] = len(levels) == 1 or resampling
    if f"{prefix}label_emb.weight" in weights:
        options["num_classes"] = shape("label_emb.weight")[0]
    if middle:
        block = "middle_block.1.transformer_blocks.0.attn2.to_k.weight"
        projection = shape("middle_block.1.proj_in.weight")
        options |= dict(
            use_spatial_transformer=True,
            context_dim=shape(block)[1],
            transformer_depth=_one_or_all([d or middle for d in depths]),
            use_linear_in_transformer=len(projection) == 2,
        )
    return options


def _levels(weights, prefix):
    """Per level, finest first: (width, ResBlocks going down), attention, its depth.

    Read from the way up, where an upsampling ends each level but the finest.
    """
    levels, attends, depths, index, count = [], [], [], 0, 0
    while f"{prefix}output_blocks.{index}.0.in_layers.2.weight" in weights:
        block = f"output_blocks.{index}"
        count, index = count + 1, index + 1
        upsamples = rf"{block}\.[12]\.(conv|in_layers\.2)\.weight"
        following = f"{prefix}output_blocks.{index}.0.in_layers.2.weight"
        if _any(weights, prefix, upsamples) or following not in weights:
            width = weights[f"{prefix}{block}.0.in_layers.2.weight"].shape[0]
            levels.insert(0, (width, count - 1))
            attends.insert(0, f"{prefix}{block}.1.norm.weight" in weights)
            depths.insert(0, _depth(weights, f"{prefix}{block}.1"))
            count = 0
    if not levels:
        raise ConversionError(
            f"missing key {prefix}output_blocks.0.0.in_layers.2.weight"
        )
    return levels, attends, depths


def _depth(weights, theirs):
    """Number of transformer blocks under `theirs`."""
    return _count(weights, f"{theirs}.transformer_blocks.")


def _count(weights, start):
    """How many different names follow `start` in the keys."""
    found = (key[len(start) :] for key in weights if key.startswith(start))
    return len({rest.split(".")[0] for rest in found})


def _any(weights, prefix, pattern):
    pattern = re.compile(re.escape(prefix) + pattern)
    return any(pattern.fullmatch(key) for key in weights)


def first_stage_options(weights, prefix="", resolution=256):
    """Deduces the options of an AutoencoderKL or a VQModel.

    Args:
      weights: Dict of key -> array with a shape.
      prefix: What its keys begin with.
      resolution: Side of the images that it was trained on.

    Returns:
      Dict of "ddconfig", "embed_dim" and, of a VQModel, "n_embed".

    Raises:
      ConversionError: If a key is missing.
    """
    shape = _shape_of(weights, prefix)
    channels, in_channels = shape("encoder.conv_in.weight")[:2]
    mult, attends, level = [], [], 0
    while f"{prefix}encoder.down.{level}.block.0.conv2.weight" in weights:
        block = f"encoder.down.{level}"
        mult.append(_ratio(shape(f"{block}.block.0.conv2.weight")[0], channels))
        attends.append(f"{prefix}{block}.attn.0.q.weight" in weights)
        level += 1
    if not mult:
        raise ConversionError(
            f"missing key {prefix}encoder.down.0.block.0.conv2.weight"
        )
    z_channels, embed_dim = shape("post_quant_conv.weight")[:2]
    mid_attention = f"{prefix}encoder.mid.attn_1.q.weight" in weights
    ddconfig = dict(
        double_z=shape("encoder.conv_out.weight")[0] == 2 * z_channels,
        z_channels=z_channels,
        resolution=resolution,
        in_channels=in_channels,
        out_ch=shape("decoder.conv_out.weight")[0],
        ch=channels,
        ch_mult=mult,
        num_res_blocks=_count(weights, f"{prefix}encoder.down.0.block."),
        attn_resolutions=[resolution // 2**i for i, has in enumerate(attends) if has],
        attn_type="vanilla" if mid_attention or any(attends) else "none",
        resamp_with_conv=len(mult) == 1
        or f"{prefix}encoder.down.0.downsample.conv.weight" in weights,
    )
    options = dict(ddconfig=ddconfig, embed_dim=embed_dim)
    if f"{prefix}quantize.embedding.weight" in weights:
        options["n_embed"] = shape("quantize.embedding.weight")[0]
    return options


def discriminator_options(weights, prefix=""):
    """Deduces {"channels", "num_layers"} of an NLayerDiscriminator."""
    shape = _shape_of(weights, prefix)
    start = f"{prefix}main."
    last = max(
        int(key[len(start) :].split(".")[0]) for key in weights if key.startswith(start)
    )
    return dict(
        channels=shape("main.0.weight")[0], num_layers=(last - 2) // 3, norm="batch"
    )


def schedule_section(betas):
    """Finds the schedule that betas were made by.

    Args:
      betas: float [T].

    Returns:
      Config section `schedule` without the prediction type; None if no row of BETAS
      fits.
    """
    betas = np.asarray(betas, np.float64)
    if not np.all((betas > 0) & (betas < 1)):
        return None
    start, end = (float(f"{beta:.6g}") for beta in betas[[0, -1]])
    for kind, table in BETAS.items():
        ends = (start**2, end**2) if kind == "sqrt" else (start, end)
        with np.errstate(all="ignore"):
            made = table(len(betas), *ends, 0.008)
        if np.allclose(made, betas, rtol=1e-4, atol=0):
            return dict(
                kind=kind,
                num_train_timesteps=len(betas),
                beta_start=ends[0],
                beta_end=ends[1],
            )
    return None


def _shape_of(weights, prefix):
    def shape(key):
        if prefix + key not in weights:
            raise ConversionError(f"missing key {prefix}{key}")
        return tuple(weights[prefix + key].shape)

    return shape


def _ratio(width, channels):
    """Keeps fractions, which widths such as 96 over 64 need."""
    ratio = width / channels
    return int(ratio) if ratio == int(ratio) else ratio


def _one_or_all(values):
    return values[0] if len(set(values)) == 1 else values


class Published(NamedTuple):
    """A published U-Net by its shape, and its heads.

    Attributes:
      channels: Width of the finest level.
      channel_mult: Width of every level over `channels`.
      context_dim: Width of the context; None without transformers.
      heads: {"num_heads": n} or {"num_head_channels": n}.
      always: Whether that holds whatever the config says.
      image_size: Side of the images that it was trained on.
      guidance_scale: What its authors sample it with; 1 is off.
    """

    channels: int
    channel_mult: tuple
    context_dim: int | None
    heads: dict
    always: bool = False
    image_size: int = 256
    guidance_scale: float = 1.0


def published_heads(options):
    """Looks up the U-Net that the original's options describe.

    Args:
      options: The original's UNetModel options.

    Returns:
      Its row of PUBLISHED, or None.
    """
    shape = (
        options["model_channels"],
        tuple(options["channel_mult"]),
        options.get("context_dim"),
    )
    return PUBLISHED_BY_SHAPE.get(shape)


def usual_guidance(options):
    """The guidance scale of a published U-Net, 1 of others; options as above."""
    known = published_heads(options)
    return known.guidance_scale if known else 1.0


PUBLISHED = {
    "celeba256, ffhq256, lsun_beds256": Published(
        224, (1, 2, 3, 4), None, {"num_head_channels": 32}
    ),
    "lsun_churches256": Published(192, (1, 2, 2, 4, 4), None, {"num_heads": 8}),
    "bsr_sr": Published(160, (1, 2, 2, 4), None, {"num_head_channels": 32}),
    "inpainting_big": Published(256, (1, 2, 3, 4), None, {"num_heads": 8}),
    "semantic_synthesis": Published(128, (1, 4, 8), None, {"num_heads": 8}),
    "cin256": Published(256, (1, 2, 4), 512, {"num_heads": 1}, always=True),
    "text2img256": Published(192, (1, 2, 3, 5), 640, {"num_heads": 1}, always=True),
    "layout2img": Published(128, (1, 2, 3, 4), 512, {"num_heads": 1}, always=True),
    "cin256-v2": Published(
        192, (1, 2, 3, 5), 512, {"num_heads": 1}, guidance_scale=3.0
    ),
    "txt2img-1p4B": Published(
        320, (1, 2, 4, 4), 1280, {"num_heads": 8}, guidance_scale=5.0
    ),
    "RDM": Published(
        448,
        (1, 2, 3, 4),
        768,
        {"num_head_channels": 32},
        image_size=768,
        guidance_scale=5.0,
    ),
    "Stable Diffusion 1": Published(
        320,
        (1, 2, 4, 4),
        768,
        {"num_heads": 8},
        image_size=512,
        guidance_scale=7.5,
    ),
    "Stable Diffusion 2": Published(
        320,
        (1, 2, 4, 4),
        1024,
        {"num_head_channels": 64},
        image_size=512,
        guidance_scale=9.0,
    ),
}


PUBLISHED_BY_SHAPE = {row[:3]: row for row in PUBLISHED.values()}
