"""Names of the weights of each network in CompVis/latent-diffusion, as data.

Every function maps the keys of one network (see `weights.state_dict`), without the
prefix that it has in a whole checkpoint; `rows` combines them. Names of text encoders
and of the spatial rescaler are in `weights.tower_names`.
"""

from typing import NamedTuple

from ldm_jax.models.autoencoder import Autoencoder
from ldm_jax.models.classifier import Classifier
from ldm_jax.models.unet import UNet
from ldm_jax.weights.state_dict import (
    CONV,
    COUNTER,
    DENSE,
    POINTWISE_1D,
    POINTWISE_2D,
    SAME,
    Row,
    Transform,
    layer_rows,
    norm_rows,
    split_qkv,
)

# Prefixes of the keys of each network in a whole checkpoint, and the counters of the
# moving average.
UNET, FIRST_STAGE = "model.diffusion_model.", "first_stage_model."
COND_STAGE = "cond_stage_model."
EMA = "model_ema."
COUNTERS = (f"{EMA}decay", f"{EMA}num_updates")

# The U-Net.


class AttentionLayout(NamedTuple):
    """How a U-Net stores its attention blocks.

    Attributes:
      head_major: Whether queries, keys and values are ordered (head, qkv, channel),
        CompVis's default, or (qkv, head, channel), as with `use_new_attention_order`.
      project: Transform of the layers before and after a transformer's blocks; None if
        there are no transformers.
    """

    head_major: bool
    project: Transform | None


def unet_rows(
    unet: UNet, head_major: bool = True, linear_projection: bool = False
) -> list[Row]:
    """Maps a UNetModel to "backbone/", and its class embedding to "label/".

    Args:
      unet: UNet module.
      head_major: See `AttentionLayout`.
      linear_projection: Whether the projections before and after transformer blocks are
        linear layers, not 1x1 convolutions; for writing, as reading accepts both.

    Returns:
      List of Rows.
    """
    levels = range(len(unet.channel_mult))
    project = DENSE if linear_projection else POINTWISE_2D
    layout = AttentionLayout(head_major, project)
    rows = [Row("label_emb.weight", ("label/embed/embedding",), SAME)]
    rows += down_rows(unet, layout)
    index = 0
    for level in reversed(levels):
        for i in range(unet.blocks_at(level) + 1):
            theirs, ours = f"output_blocks.{index}", f"up_{level}_{{}}_{i}"
            rows += _block_rows(unet, theirs, ours, level, layout, up=True)
            index += 1
        if level:
            # In the level's last block, after its attention if it has one.
            theirs = f"output_blocks.{index - 1}.{2 if unet.attends_at(level) else 1}"
            rows += _resample_rows(theirs, f"backbone/up_{level}_resample")
    rows += norm_rows("out.0", "backbone/norm_out")
    return rows + layer_rows("out.2", "backbone/conv_out", CONV)


def down_rows(unet: UNet | Classifier, layout: AttentionLayout) -> list[Row]:
    """Maps the timestep embedding, the down path and the middle, under "backbone/".

    Args:
      unet: UNet module, or the half of one that a Classifier is.
      layout: How attention blocks are stored.

    Returns:
      List of Rows.
    """
    levels = range(len(unet.channel_mult))
    rows = layer_rows("time_embed.0", "backbone/time_in", DENSE)
    rows += layer_rows("time_embed.2", "backbone/time_out", DENSE)
    rows += layer_rows("input_blocks.0.0", "backbone/conv_in", CONV)
    index = 1
    for level in levels:
        for i in range(unet.blocks_at(level)):
            theirs, ours = f"input_blocks.{index}", f"down_{level}_{{}}_{i}"
            rows += _block_rows(unet, theirs, ours, level, layout)
            index += 1
        if level != levels[-1]:
            ours = f"backbone/down_{level}_resample"
            rows += _resample_rows(f"input_blocks.{index}.0", ours)
            index += 1
    rows += _res_block_rows("middle_block.0", "backbone/middle_res_0")
    ours = "backbone/middle_attention"
    rows += _any_attention_rows(unet, "middle_block.1", ours, levels[-1], layout)
    return rows + _res_block_rows("middle_block.2", "backbone/middle_res_1")


def _block_rows(unet, theirs, ours, level, layout, up=False):
    """Maps a residual block and the attention after it, if there is any."""
    rows = _res_block_rows(f"{theirs}.0", f"backbone/{ours.format('res')}")
    ours = f"backbone/{ours.format('attention')}"
    return rows + _any_attention_rows(unet, f"{theirs}.1", ours, level, layout, up)


def _any_attention_rows(unet, theirs, ours, level, layout, up=False):
    """Maps the attention of a level: a transformer or a plain attention block."""
    if unet.depth_at(level):
        return _transformer_rows(theirs, ours, unet.depth_at(level), layout.project)
    num_heads, _ = unet.heads_at(level, up)
    return _attention_rows(theirs, ours, num_heads, layout.head_major)


def _resample_rows(theirs, ours):
    """Maps both kinds of resampling: by a residual block or by a convolution."""
    rows = _res_block_rows(theirs, ours)
    rows += layer_rows(f"{theirs}.op", f"{ours}/conv", CONV)
    return rows + layer_rows(f"{theirs}.conv", ours, CONV)


def _res_block_rows(theirs, ours):
    return (
        norm_rows(f"{theirs}.in_layers.0", f"{ours}/norm_in")
        + layer_rows(f"{theirs}.in_layers.2", f"{ours}/conv_in", CONV)
        + layer_rows(f"{theirs}.emb_layers.1", f"{ours}/embedding", DENSE)
        + norm_rows(f"{theirs}.out_layers.0", f"{ours}/norm_out")
        + layer_rows(f"{theirs}.out_layers.3", f"{ours}/conv_out", CONV)
        + layer_rows(f"{theirs}.skip_connection", f"{ours}/shortcut", POINTWISE_2D)
    )


def _attention_rows(theirs, ours, num_heads, head_major):
    return (
        norm_rows(f"{theirs}.norm", f"{ours}/norm")
        + qkv_rows(f"{theirs}.qkv", f"{ours}/attention", num_heads, head_major)
        + layer_rows(f"{theirs}.proj_out", f"{ours}/attention/out", POINTWISE_1D)
    )


def qkv_rows(theirs: str, ours: str, num_heads: int, head_major: bool) -> list[Row]:
    """Maps one layer for queries, keys and values to three layers.

    Args:
      theirs: Prefix of its keys, without the last dot.
      ours: Prefix of our paths, without the last slash.
      num_heads: Number of heads.
      head_major: See `AttentionLayout`.

    Returns:
      List of Rows.
    """
    names = [f"{ours}/{name}" for name in ("query", "key", "value")]
    kernels = tuple(f"{name}/kernel" for name in names)
    biases = tuple(f"{name}/bias" for name in names)
    return [
        Row(
            f"{theirs}.weight", kernels, split_qkv(num_heads, head_major, POINTWISE_1D)
        ),
        Row(f"{theirs}.bias", biases, split_qkv(num_heads, head_major, SAME)),
    ]


def _transformer_rows(theirs, ours, depth, project):
    rows = norm_rows(f"{theirs}.norm", f"{ours}/norm")
    rows += layer_rows(f"{theirs}.proj_in", f"{ours}/proj_in", project)
    rows += layer_rows(f"{theirs}.proj_out", f"{ours}/proj_out", project)
    for i in range(depth):
        block, inner = f"{theirs}.transformer_blocks.{i}", f"{ours}/block_{i}"
        rows += transformer_block_rows(block, inner)
    return rows


def transformer_block_rows(theirs: str, ours: str) -> list[Row]:
    """Maps a BasicTransformerBlock, which has the same names in diffusers.

    Args:
      theirs: Prefix of its keys, without the last dot.
      ours: Prefix of our paths, without the last slash.

    Returns:
      List of Rows.
    """
    rows = []
    for attn, name in (("attn1", "self_attention"), ("attn2", "cross_attention")):
        for key, part in (("to_q", "query"), ("to_k", "key"), ("to_v", "value")):
            paths = f"{theirs}.{attn}.{key}", f"{ours}/{name}/{part}"
            rows += layer_rows(*paths, DENSE, bias=False)
        rows += layer_rows(f"{theirs}.{attn}.to_out.0", f"{ours}/{name}/out", DENSE)
    for key, name in (("1", "self"), ("2", "cross"), ("3", "feed_forward")):
        rows += norm_rows(f"{theirs}.norm{key}", f"{ours}/norm_{name}")
    feed, ours_feed = f"{theirs}.ff.net", f"{ours}/feed_forward"
    rows += layer_rows(f"{feed}.0.proj", f"{ours_feed}/proj_in", DENSE)
    return rows + layer_rows(f"{feed}.2", f"{ours_feed}/proj_out", DENSE)


# The first stage.


def autoencoder_rows(model: Autoencoder) -> list[Row]:
    """Maps an AutoencoderKL or a VQModel.

    Args:
      model: KLAutoencoder or VQAutoencoder module.

    Returns:
      List of Rows.
    """
    rows = layer_rows("quant_conv", "to_moments", POINTWISE_2D)
    rows += layer_rows("quant_conv", "to_latents", POINTWISE_2D)
    rows += [Row("quantize.embedding.weight", ("quantizer/embedding",), SAME)]
    rows += layer_rows("post_quant_conv", "from_latents", POINTWISE_2D)
    rows += _coder_rows(model, "encoder", "down", "downsample")
    rows += _coder_rows(model, "decoder", "up", "upsample")
    rows += layer_rows("encoder.conv_out", "encoder/conv_out", CONV)
    return rows + layer_rows("decoder.conv_out", "to_images", CONV)


def _coder_rows(model, side, direction, resample):
    rows = layer_rows(f"{side}.conv_in", f"{side}/conv_in", CONV)
    rows += _coder_res_block_rows(f"{side}.mid.block_1", f"{side}/middle_res_0")
    rows += _coder_attention_rows(f"{side}.mid.attn_1", f"{side}/middle_attention")
    rows += _coder_res_block_rows(f"{side}.mid.block_2", f"{side}/middle_res_1")
    for level in range(len(model.channel_mult)):
        # CompVis, too, counts levels from the finest in both halves.
        theirs, ours = f"{side}.{direction}.{level}", f"{side}/{direction}_{level}"
        for i in range(model.num_res_blocks + (side == "decoder")):
            rows += _coder_res_block_rows(f"{theirs}.block.{i}", f"{ours}_res_{i}")
            paths = f"{theirs}.attn.{i}", f"{ours}_attention_{i}"
            rows += _coder_attention_rows(*paths)
        inner = f"{ours}_resample" + ("/conv" if side == "encoder" else "")
        rows += layer_rows(f"{theirs}.{resample}.conv", inner, CONV)
    return rows + norm_rows(f"{side}.norm_out", f"{side}/norm_out")


def _coder_res_block_rows(theirs, ours):
    return (
        norm_rows(f"{theirs}.norm1", f"{ours}/norm_in")
        + layer_rows(f"{theirs}.conv1", f"{ours}/conv_in", CONV)
        + norm_rows(f"{theirs}.norm2", f"{ours}/norm_out")
        + layer_rows(f"{theirs}.conv2", f"{ours}/conv_out", CONV)
        + layer_rows(f"{theirs}.nin_shortcut", f"{ours}/shortcut", POINTWISE_2D)
    )


def _coder_attention_rows(theirs, ours):
    rows = norm_rows(f"{theirs}.norm", f"{ours}/norm")
    names = (("q", "query"), ("k", "key"), ("v", "value"), ("proj_out", "out"))
    for key, name in names:
        paths = f"{theirs}.{key}", f"{ours}/attention/{name}"
        rows += layer_rows(*paths, POINTWISE_2D)
    return rows


def discriminator_rows(num_layers: int = 3) -> list[Row]:
    """Maps an NLayerDiscriminator; ours is under "params/" and "batch_stats/".

    Args:
      num_layers: Number of convolutions of stride 2.

    Returns:
      List of Rows.
    """
    rows = layer_rows("main.0", "params/conv_0", CONV)
    for i in range(1, num_layers + 1):
        rows += layer_rows(f"main.{3 * i - 1}", f"params/conv_{i}", CONV)
        norm, stats = f"main.{3 * i}", f"batch_stats/norm_{i}"
        rows += norm_rows(norm, f"params/norm_{i}")
        rows += [
            Row(f"{norm}.running_mean", (f"{stats}/mean",), SAME),
            Row(f"{norm}.running_var", (f"{stats}/var",), SAME),
            Row(f"{norm}.num_batches_tracked", (), COUNTER),
        ]
    return rows + layer_rows(f"main.{3 * num_layers + 2}", "params/conv_out", CONV)


# The class embedding that is a cond stage.


def class_embedder_rows() -> list[Row]:
    """Maps a ClassEmbedder to ClassLabel.

    Returns:
      List of Rows.
    """
    return [Row("embedding.weight", ("embed/embedding",), SAME)]


# Kind of first stage -> (module -> Rows).
FIRST_STAGE_ROWS = {
    "kl": autoencoder_rows,
    "vq": autoencoder_rows,
    "identity": lambda module: [],
}
