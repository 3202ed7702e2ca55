"""Names of the weights of each network in Hugging Face diffusers, as data.

Every function maps the keys of one network (see `weights.state_dict`), without the name
of its folder; `rows` combines them. Names of text encoders are in
`weights.tower_names`.
"""

from ldm_jax.convert.compvis.names import transformer_block_rows
from ldm_jax.models.autoencoder import Autoencoder
from ldm_jax.models.unet import UNet
from ldm_jax.weights.state_dict import (
    CONV,
    DENSE,
    POINTWISE_2D,
    SAME,
    Row,
    layer_rows,
    norm_rows,
)


def unet_rows(unet: UNet, linear_projection: bool = False) -> list[Row]:
    """Maps a UNet2DConditionModel, or a UNet2DModel if there are no transformers.

    Its class embedding is under "label/", beside our U-Net.

    Args:
      unet: UNet module.
      linear_projection: Whether the projections before and after transformer blocks are
        linear layers, not 1x1 convolutions; for writing, as reading accepts both.

    Returns:
      List of Rows.
    """
    levels = len(unet.channel_mult)
    project = DENSE if linear_projection else POINTWISE_2D

    def attention(theirs, ours, level):
        """Rows of an attention block or, if the level has one, of a transformer."""
        if not unet.depth_at(level):
            return _attention_rows(theirs, ours)
        rows = norm_rows(f"{theirs}.norm", f"{ours}/norm")
        rows += layer_rows(f"{theirs}.proj_in", f"{ours}/proj_in", project)
        rows += layer_rows(f"{theirs}.proj_out", f"{ours}/proj_out", project)
        for i in range(unet.depth_at(level)):
            block = f"{theirs}.transformer_blocks.{i}"
            rows += transformer_block_rows(block, f"{ours}/block_{i}")
        return rows

    def blocks(theirs, ours, level, count):
        """Rows of `count` residual blocks of a level, each with its attention."""
        rows = []
        for i in range(count):
            rows += _res_block_rows(f"{theirs}.resnets.{i}", f"{ours}_res_{i}")
            paths = f"{theirs}.attentions.{i}", f"{ours}_attention_{i}"
            rows += attention(*paths, level)
        return rows

    rows = [Row("class_embedding.weight", ("label/embed/embedding",), SAME)]
    rows += layer_rows("conv_in", "conv_in", CONV)
    rows += layer_rows("time_embedding.linear_1", "time_in", DENSE)
    rows += layer_rows("time_embedding.linear_2", "time_out", DENSE)
    for level in range(levels):
        # diffusers counts the levels of the up path from the coarsest.
        down, up = f"down_blocks.{level}", f"up_blocks.{levels - 1 - level}"
        count = unet.blocks_at(level)
        rows += blocks(down, f"down_{level}", level, count)
        rows += blocks(up, f"up_{level}", level, count + 1)
        ours = f"down_{level}_resample/conv"
        rows += layer_rows(f"{down}.downsamplers.0.conv", ours, CONV)
        rows += layer_rows(f"{up}.upsamplers.0.conv", f"up_{level}_resample", CONV)
    for i in (0, 1):
        rows += _res_block_rows(f"mid_block.resnets.{i}", f"middle_res_{i}")
    rows += attention("mid_block.attentions.0", "middle_attention", levels - 1)
    rows += norm_rows("conv_norm_out", "norm_out")
    return rows + layer_rows("conv_out", "conv_out", CONV)


def autoencoder_rows(model: Autoencoder) -> list[Row]:
    """Maps an AutoencoderKL or a VQModel.

    Args:
      model: KLAutoencoder or VQAutoencoder module.

    Returns:
      List of Rows.
    """
    levels = len(model.channel_mult)
    rows = layer_rows("quant_conv", "to_moments", POINTWISE_2D)
    rows += layer_rows("quant_conv", "to_latents", POINTWISE_2D)
    rows += [Row("quantize.embedding.weight", ("quantizer/embedding",), SAME)]
    rows += layer_rows("post_quant_conv", "from_latents", POINTWISE_2D)
    rows += layer_rows("encoder.conv_out", "encoder/conv_out", CONV)
    rows += layer_rows("decoder.conv_out", "to_images", CONV)
    for side, direction in (("encoder", "down"), ("decoder", "up")):
        rows += layer_rows(f"{side}.conv_in", f"{side}/conv_in", CONV)
        rows += norm_rows(f"{side}.conv_norm_out", f"{side}/norm_out")
        for i in (0, 1):
            paths = f"{side}.mid_block.resnets.{i}", f"{side}/middle_res_{i}"
            rows += _res_block_rows(*paths)
        attention = f"{side}.mid_block.attentions.0"
        rows += _attention_rows(attention, f"{side}/middle_attention")
        for level in range(levels):
            block = level if direction == "down" else levels - 1 - level
            theirs = f"{side}.{direction}_blocks.{block}"
            ours = f"{side}/{direction}_{level}"
            for i in range(model.num_res_blocks + 1):
                rows += _res_block_rows(f"{theirs}.resnets.{i}", f"{ours}_res_{i}")
                paths = f"{theirs}.attentions.{i}", f"{ours}_attention_{i}"
                rows += _attention_rows(*paths)
            resample = f"{theirs}.{direction}samplers.0.conv"
            inner = f"{ours}_resample" + ("/conv" if direction == "down" else "")
            rows += layer_rows(resample, inner, CONV)
    return rows


def _res_block_rows(theirs, ours):
    return (
        norm_rows(f"{theirs}.norm1", f"{ours}/norm_in")
        + layer_rows(f"{theirs}.conv1", f"{ours}/conv_in", CONV)
        + layer_rows(f"{theirs}.time_emb_proj", f"{ours}/embedding", DENSE)
        + norm_rows(f"{theirs}.norm2", f"{ours}/norm_out")
        + layer_rows(f"{theirs}.conv2", f"{ours}/conv_out", CONV)
        + layer_rows(f"{theirs}.conv_shortcut", f"{ours}/shortcut", POINTWISE_2D)
    )


def _attention_rows(theirs, ours):
    rows = norm_rows(f"{theirs}.group_norm", f"{ours}/norm")
    names = (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "out"))
    for key, name in names:
        rows += layer_rows(f"{theirs}.{key}", f"{ours}/attention/{name}", DENSE)
    return rows
