"""How others name the weights of text encoders and semantic-map conditioners, as data.

Every function returns the rows of `convert.state_dict` for one module of ours, without
the prefix that the module has in a whole checkpoint:

| rows | where | prefix |
| --- | --- | --- |
| `bert_rows` | the original's text and layout models | cond_stage_model.transformer. |
| `ldm_bert_rows` | diffusers' LDMBertModel | none |
| `clip_rows` | transformers' CLIPTextModel | none, or text_model. before version 5 |
| `clip_rows` | Stable Diffusion 1 | cond_stage_model.transformer.text_model. |
| `open_clip_rows` | Stable Diffusion 2 | cond_stage_model.model. |
| `spatial_rows` | the original's semantic synthesis | cond_stage_model. |

Some tensors lie in the files and are never used: the original's `to_logits`, the last
layer of Stable Diffusion 2's tower, CLIP's projection and temperature, the numbers of
positions. They are read and dropped, and not written; whoever loads what we write in
the original's code must allow for their absence, as it does (`strict=False`).
"""

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


def bert_rows(encoder):
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
        # Attention and feed-forward are layers of their own: a norm, then the function.
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


def ldm_bert_rows(encoder):
    """Maps diffusers' LDMBertModel; arguments as in `bert_rows`."""
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


def clip_rows(encoder, unused_layers=0):
    """Maps transformers' CLIPTextModel.

    Args:
      encoder: TextEncoder module.
      unused_layers: Layers of theirs behind the last of `encoder`: 1 if that is the
        last but one of a complete tower.

    Returns:
      List of Rows.
    """
    rows = [
        Row("embeddings.token_embedding.weight", ("tokens/embedding",), SAME),
        Row("embeddings.position_embedding.weight", ("positions",), SAME),
        # 0, 1, ...; older versions of transformers save it, newer ones refuse it.
        Row("embeddings.position_ids", (), UNUSED),
    ]
    layers = "encoder.layers", encoder.num_layers, unused_layers
    rows += _layers(clip_layer_rows, *layers)
    return rows + norm_rows("final_layer_norm", "norm_out")


def clip_layer_rows(theirs, ours):
    """Maps one layer of either tower of transformers' CLIPModel to an EncoderBlock."""
    rows = _projection_rows(f"{theirs}.self_attn", f"{ours}/attention")
    rows += norm_rows(f"{theirs}.layer_norm1", f"{ours}/norm_attention")
    rows += norm_rows(f"{theirs}.layer_norm2", f"{ours}/norm_feed_forward")
    rows += layer_rows(f"{theirs}.mlp.fc1", f"{ours}/proj_in", DENSE)
    return rows + layer_rows(f"{theirs}.mlp.fc2", f"{ours}/proj_out", DENSE)


def open_clip_rows(encoder, unused_layers=1):
    """Maps the text tower of OpenCLIP; arguments as in `clip_rows`."""
    split = {
        "weight": ("kernel", split_qkv(encoder.num_heads, False, DENSE)),
        "bias": ("bias", split_qkv(encoder.num_heads, False, SAME)),
    }

    def layer(theirs, ours):
        rows = norm_rows(f"{theirs}.ln_1", f"{ours}/norm_attention")
        for key, (leaf, transform) in split.items():
            names = ("query", "key", "value")
            paths = tuple(f"{ours}/attention/{name}/{leaf}" for name in names)
            rows.append(Row(f"{theirs}.attn.in_proj_{key}", paths, transform))
        rows += layer_rows(f"{theirs}.attn.out_proj", f"{ours}/attention/out", DENSE)
        rows += norm_rows(f"{theirs}.ln_2", f"{ours}/norm_feed_forward")
        rows += layer_rows(f"{theirs}.mlp.c_fc", f"{ours}/proj_in", DENSE)
        return rows + layer_rows(f"{theirs}.mlp.c_proj", f"{ours}/proj_out", DENSE)

    rows = [
        Row("token_embedding.weight", ("tokens/embedding",), SAME),
        Row("positional_embedding", ("positions",), SAME),
        Row("text_projection", (), UNUSED),
        Row("logit_scale", (), UNUSED),
    ]
    layers = "transformer.resblocks", encoder.num_layers, unused_layers
    return rows + _layers(layer, *layers) + norm_rows("ln_final", "norm_out")


def spatial_rows():
    """Maps a SpatialRescaler to Spatial; without an output width it has no keys."""
    return layer_rows("channel_mapper", "channel_map", POINTWISE_2D)


# The original makes this head, saves it and never calls it.
_LOGITS_ROWS = [Row(f"to_logits.{leaf}", (), UNUSED) for leaf in ("weight", "bias")]


def _projection_rows(theirs, ours, bias=True):
    """The projections of an attention, with names that transformers has kept."""
    rows = layer_rows(f"{theirs}.out_proj", f"{ours}/out", DENSE)
    for key, name in (("q_proj", "query"), ("k_proj", "key"), ("v_proj", "value")):
        rows += layer_rows(f"{theirs}.{key}", f"{ours}/{name}", DENSE, bias)
    return rows


def _layers(layer, theirs, num_layers, unused_layers):
    """Rows of all layers, those behind the last of ours without ours."""
    rows = []
    for i in range(num_layers + unused_layers):
        theirs_i = layer(f"{theirs}.{i}", f"block_{i}")
        if i >= num_layers:
            theirs_i = [row._replace(ours=(), transform=UNUSED) for row in theirs_i]
        rows += theirs_i
    return rows


def clip_image_rows(encoder):
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
    # Their spelling.
    rows += norm_rows("pre_layrnorm", "norm_in")
    for i in range(encoder.num_layers):
        rows += clip_layer_rows(f"encoder.layers.{i}", f"block_{i}")
    rows += norm_rows("post_layernorm", "norm_out")
    projection = layer_rows("visual_projection", "projection", DENSE, bias=False)
    return prefixed(rows, "vision_model.", "") + projection
