"""Names of the weights of encoders of text, images and segmentations, as data.

Every function maps the keys of one module of ours (see `weights.state_dict`), without
the prefix that the module has in a whole checkpoint:

| function | model | prefix |
| --- | --- | --- |
| `bert_rows` | CompVis's text and layout models | cond_stage_model.transformer. |
| `ldm_bert_rows` | diffusers' LDMBertModel | none |
| `clip_rows` | transformers' CLIPTextModel | none, or text_model. before version 5 |
| `clip_rows` | Stable Diffusion 1 | cond_stage_model.transformer.text_model. |
| `open_clip_rows` | OpenCLIP, OpenAI's CLIP | none |
| `open_clip_rows` | Stable Diffusion 2 | cond_stage_model.model. |
| `clip_image_rows` | transformers' CLIPVisionModelWithProjection | none |
| `open_clip_image_rows` | OpenCLIP, OpenAI's CLIP | visual. |
| `spatial_rows` | CompVis's semantic synthesis | cond_stage_model. |

Some tensors in the files are never used: `to_logits` of CompVis, the last layer of
Stable Diffusion 2's text encoder, CLIP's projection and temperature, the indices of
positions. They are read and dropped, and not written; CompVis's code must load our
files without them, as it does (`strict=False`).
"""

from collections.abc import Callable

from ldm_jax.models.image_encoder import ImageEncoder
from ldm_jax.models.text_encoder import TextEncoder
from ldm_jax.weights.state_dict import (
    CONV,
    DENSE,
    POINTWISE_2D,
    SAME,
    UNUSED,
    Row,
    layer_rows,
    norm_rows,
    prefixed,
    split_qkv,
)

# Text.


def bert_rows(encoder: TextEncoder) -> list[Row]:
    """Maps the transformer of a BERTEmbedder.

    Args:
      encoder: TextEncoder module.

    Returns:
      List of Rows.
    """
    rows = [
        Row("token_emb.weight", ("tokens/embedding",), SAME),
        Row("pos_emb.emb.weight", ("positions",), SAME),
    ]
    for i in range(encoder.num_layers):
        # Attention and feed-forward are separate layers: a norm, then the function.
        attend, feed = (f"attn_layers.layers.{2 * i + j}" for j in (0, 1))
        ours = f"block_{i}"
        rows += norm_rows(f"{attend}.0", f"{ours}/norm_attention")
        names = (("to_q", "query"), ("to_k", "key"), ("to_v", "value"))
        for key, name in names:
            paths = f"{attend}.1.{key}", f"{ours}/attention/{name}"
            rows += layer_rows(*paths, DENSE, bias=False)
        rows += layer_rows(f"{attend}.1.to_out", f"{ours}/attention/out", DENSE)
        rows += norm_rows(f"{feed}.0", f"{ours}/norm_feed_forward")
        rows += layer_rows(f"{feed}.1.net.0.0", f"{ours}/proj_in", DENSE)
        rows += layer_rows(f"{feed}.1.net.2", f"{ours}/proj_out", DENSE)
    return rows + norm_rows("norm", "norm_out") + _LOGITS_ROWS


def ldm_bert_rows(encoder: TextEncoder) -> list[Row]:
    """Maps diffusers' LDMBertModel, the same network as that of `bert_rows`.

    Args:
      encoder: TextEncoder module.

    Returns:
      List of Rows.
    """
    rows = [
        Row("model.embed_tokens.weight", ("tokens/embedding",), SAME),
        Row("model.embed_positions.weight", ("positions",), SAME),
    ]
    for i in range(encoder.num_layers):
        theirs, ours = f"model.layers.{i}", f"block_{i}"
        rows += _projection_rows(f"{theirs}.self_attn", f"{ours}/attention", bias=False)
        rows += norm_rows(f"{theirs}.self_attn_layer_norm", f"{ours}/norm_attention")
        rows += norm_rows(f"{theirs}.final_layer_norm", f"{ours}/norm_feed_forward")
        rows += layer_rows(f"{theirs}.fc1", f"{ours}/proj_in", DENSE)
        rows += layer_rows(f"{theirs}.fc2", f"{ours}/proj_out", DENSE)
    rows += norm_rows("model.layer_norm", "norm_out")
    return rows + _LOGITS_ROWS


def clip_rows(encoder: TextEncoder, unused_layers: int = 0) -> list[Row]:
    """Maps transformers' CLIPTextModel.

    Args:
      encoder: TextEncoder module.
      unused_layers: Number of layers in the file after the last one of `encoder`: 1 if
        that is the penultimate layer of a complete tower.

    Returns:
      List of Rows.
    """
    rows = [
        Row("embeddings.token_embedding.weight", ("tokens/embedding",), SAME),
        Row("embeddings.position_embedding.weight", ("positions",), SAME),
        # 0, 1, ...; older versions of transformers save it, newer ones reject it.
        Row("embeddings.position_ids", (), UNUSED),
    ]
    layers = "encoder.layers", encoder.num_layers, unused_layers
    rows += _layers(clip_layer_rows, *layers)
    return rows + norm_rows("final_layer_norm", "norm_out")


def clip_layer_rows(theirs: str, ours: str) -> list[Row]:
    """Maps one layer of either tower of transformers' CLIPModel to an EncoderBlock.

    Args:
      theirs: Prefix of its keys, without the last dot.
      ours: Prefix of our paths, without the last slash.

    Returns:
      List of Rows.
    """
    rows = _projection_rows(f"{theirs}.self_attn", f"{ours}/attention")
    rows += norm_rows(f"{theirs}.layer_norm1", f"{ours}/norm_attention")
    rows += norm_rows(f"{theirs}.layer_norm2", f"{ours}/norm_feed_forward")
    rows += layer_rows(f"{theirs}.mlp.fc1", f"{ours}/proj_in", DENSE)
    return rows + layer_rows(f"{theirs}.mlp.fc2", f"{ours}/proj_out", DENSE)


def open_clip_rows(encoder: TextEncoder, unused_layers: int = 1) -> list[Row]:
    """Maps the text tower of OpenCLIP.

    Args:
      encoder: TextEncoder module.
      unused_layers: See `clip_rows`; Stable Diffusion 2 uses all but one.

    Returns:
      List of Rows.
    """
    rows = [
        Row("token_embedding.weight", ("tokens/embedding",), SAME),
        Row("positional_embedding", ("positions",), SAME),
        *(Row(key, (), UNUSED) for key in _OPEN_CLIP_UNUSED),
    ]
    layer = _open_clip_layer(encoder.num_heads)
    layers = "transformer.resblocks", encoder.num_layers, unused_layers
    return rows + _layers(layer, *layers) + norm_rows("ln_final", "norm_out")


def _open_clip_layer(num_heads):
    """Makes a function that maps one layer of either tower to an EncoderBlock."""
    split = {
        "weight": ("kernel", split_qkv(num_heads, False, DENSE)),
        "bias": ("bias", split_qkv(num_heads, False, SAME)),
    }

    def layer(theirs, ours):
        """Rows of one layer; OpenCLIP has one matrix for query, key and value."""
        rows = norm_rows(f"{theirs}.ln_1", f"{ours}/norm_attention")
        for key, (leaf, transform) in split.items():
            names = ("query", "key", "value")
            paths = tuple(f"{ours}/attention/{name}/{leaf}" for name in names)
            rows.append(Row(f"{theirs}.attn.in_proj_{key}", paths, transform))
        rows += layer_rows(f"{theirs}.attn.out_proj", f"{ours}/attention/out", DENSE)
        rows += norm_rows(f"{theirs}.ln_2", f"{ours}/norm_feed_forward")
        rows += layer_rows(f"{theirs}.mlp.c_fc", f"{ours}/proj_in", DENSE)
        return rows + layer_rows(f"{theirs}.mlp.c_proj", f"{ours}/proj_out", DENSE)

    return layer


def _projection_rows(theirs, ours, bias=True):
    """Maps the projections of an attention with transformers' names."""
    rows = layer_rows(f"{theirs}.out_proj", f"{ours}/out", DENSE)
    for key, name in (("q_proj", "query"), ("k_proj", "key"), ("v_proj", "value")):
        rows += layer_rows(f"{theirs}.{key}", f"{ours}/{name}", DENSE, bias)
    return rows


def _layers(
    layer: Callable[[str, str], list[Row]],
    theirs: str,
    num_layers: int,
    unused_layers: int,
) -> list[Row]:
    """Maps all layers; those after our last one are unused."""
    rows = []
    for i in range(num_layers + unused_layers):
        theirs_i = layer(f"{theirs}.{i}", f"block_{i}")
        if i >= num_layers:
            theirs_i = [row._replace(ours=(), transform=UNUSED) for row in theirs_i]
        rows += theirs_i
    return rows


# Images and maps.


def clip_image_rows(encoder: ImageEncoder) -> list[Row]:
    """Maps transformers' CLIPVisionModelWithProjection.

    Args:
      encoder: ImageEncoder module.

    Returns:
      List of Rows.
    """
    rows = [
        Row("embeddings.class_embedding", ("whole",), SAME),
        Row("embeddings.position_embedding.weight", ("positions",), SAME),
        Row("embeddings.position_ids", (), UNUSED),
    ]
    rows += layer_rows("embeddings.patch_embedding", "patches", CONV, bias=False)
    # transformers' spelling.
    rows += norm_rows("pre_layrnorm", "norm_in")
    for i in range(encoder.num_layers):
        rows += clip_layer_rows(f"encoder.layers.{i}", f"block_{i}")
    rows += norm_rows("post_layernorm", "norm_out")
    projection = layer_rows("visual_projection", "projection", DENSE, bias=False)
    return prefixed(rows, "vision_model.", "") + projection


def open_clip_image_rows(encoder: ImageEncoder) -> list[Row]:
    """Maps the image tower of OpenCLIP and of OpenAI's CLIP, a vision transformer.

    Args:
      encoder: ImageEncoder module.

    Returns:
      List of Rows.
    """
    rows = [
        Row("class_embedding", ("whole",), SAME),
        Row("positional_embedding", ("positions",), SAME),
        # The only matrix that is stored in our layout.
        Row("proj", ("projection/kernel",), SAME),
        *layer_rows("conv1", "patches", CONV, bias=False),
        *norm_rows("ln_pre", "norm_in"),
        *norm_rows("ln_post", "norm_out"),
    ]
    layer = _open_clip_layer(encoder.num_heads)
    return rows + _layers(layer, "transformer.resblocks", encoder.num_layers, 0)


def spatial_rows() -> list[Row]:
    """Maps a SpatialRescaler to Spatial; without an output width it has no keys.

    Returns:
      List of Rows.
    """
    return layer_rows("channel_mapper", "channel_map", POINTWISE_2D)


# The text encoder's projection, the temperature, and sizes in OpenAI's files.
_OPEN_CLIP_UNUSED = (
    "text_projection",
    "logit_scale",
    "input_resolution",
    "context_length",
    "vocab_size",
)

# CompVis creates and saves this head, and never calls it.
_LOGITS_ROWS = [Row(f"to_logits.{leaf}", (), UNUSED) for leaf in ("weight", "bias")]
