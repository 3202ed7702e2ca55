"""CompVis's cond stages that have weights, one row of COND_STAGES each.

A row holds how the weights are recognised, the YAML's options, the entry of the config
section `conditions`, and the names of the weights. `conditions` finds the row, and adds
the conditions that have no weights.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ldm_jax.convert.compvis import names
from ldm_jax.models.text_encoder import TextEncoder
from ldm_jax.weights import tower_names
from ldm_jax.weights.state_dict import prefixed


class CondStage(NamedTuple):
    """One kind of cond stage with weights.

    Attributes:
      key: Batch key of its entry.
      mark: Prefix of a key of its weights, by which they are recognised.
      deduce: (weights without prefix, downsampling factor of the first stage) ->
        `params` of its YAML, with structure that no YAML has.
      to_entry: Such `params` -> entry of the config.
      fits: Entry -> whether it is written as this kind.
      to_params: Entry -> `params` of the YAML.
      rows: Entry -> rows of its weights, without prefixes.
      example: (entry, image size) -> an example of the batch, [1, ...].
      yaml: Other keys of the YAML, such as conditioning_key.
      limits: Entry -> values of the fields for which CompVis's class has no option;
        other values cannot be written.
    """

    key: str
    mark: str
    deduce: Callable
    to_entry: Callable
    fits: Callable
    to_params: Callable
    rows: Callable
    example: Callable
    yaml: dict[str, Any]
    limits: Callable = lambda entry: {}


# ClassEmbedder.


def _class_entry(params):
    """The entry; the last class is the null class, unless there are ImageNet's 1000.

    CompVis's models for guidance have one class more than the data; its only model
    without a null class has just ImageNet's classes.
    """
    count = params.get("n_classes", 1000)
    null_class = params.get("null_class", count != 1000)
    return dict(
        kind="class_label",
        slot="context",
        num_classes=count - null_class,
        features=params["embed_dim"],
        null_class=null_class,
    )


def _class_params(weights, factor):
    count, width = weights["embedding.weight"].shape
    return dict(n_classes=count, embed_dim=width)


# BERTEmbedder.


def _bert_params(weights, factor):
    tokens, width = weights["transformer.token_emb.weight"].shape
    layers = {key.split(".")[3] for key in weights if ".layers." in key}
    return dict(
        n_embed=width,
        n_layer=len(layers) // 2,
        vocab_size=tokens,
        max_seq_len=weights["transformer.pos_emb.emb.weight"].shape[0],
        # Captions use bert-base-uncased, layouts a vocabulary of 8192.
        use_tokenizer=tokens != 8192,
    )


def _bert_entry(params):
    entry = dict(
        kind="text" if params["use_tokenizer"] else "layout",
        vocab_size=params["vocab_size"],
        features=params["n_embed"],
        num_layers=params["n_layer"],
        max_length=params["max_seq_len"],
    )
    if params["use_tokenizer"] and params["vocab_size"] != 30522:
        # With another tokenizer the ids of the empty caption are unknown.
        entry["null_ids"] = (0,)
    return entry


def _bert_yaml(entry):
    return dict(
        n_embed=entry["features"],
        n_layer=entry["num_layers"],
        vocab_size=entry["vocab_size"],
        max_seq_len=entry.get("max_length", 77),
        use_tokenizer=entry["kind"] == "text",
    )


def _bert_limits(entry):
    """Values that BERTEmbedder always has, whatever is in its YAML."""
    return dict(
        num_heads=8,
        head_channels=64,
        mlp_ratio=4,
        use_bias=False,
        causal=False,
        activation="gelu",
    )


def _bert_rows(entry):
    return prefixed(tower_names.bert_rows(_encoder(entry)), "transformer.", "")


# FrozenCLIPEmbedder and FrozenOpenCLIPEmbedder.


def clip_entry(
    vocab_size: int,
    features: int,
    num_layers: int,
    max_length: int,
    mlp_width: int,
    **more: Any,
) -> dict[str, Any]:
    """Makes the entry of a CLIP text encoder: OpenAI's ViT-L, or OpenCLIP's if wider.

    Args:
      vocab_size: Number of tokens.
      features: Width of the embeddings.
      num_layers: Number of layers that are used.
      max_length: Tokens of a caption.
      mlp_width: Width of the hidden layer of the feed-forward blocks.
      **more: Other options of the condition, which override the ones deduced here.

    Returns:
      Entry of the config section `conditions`.
    """
    large = features <= 768
    entry = dict(
        kind="clip_text",
        vocab_size=vocab_size,
        features=features,
        num_layers=num_layers,
        max_length=max_length,
        num_heads=max(features // 64, 1),
        mlp_ratio=mlp_width // features,
        activation="quick_gelu" if large else "gelu",
    )
    if vocab_size != 49408:
        entry["null_ids"] = (0,)
    elif not large:
        entry["null_ids"] = (49406, 49407, 0)
    return entry | more


def _clip_params(weights, factor):
    start = "transformer.text_model."
    tokens, width = weights[f"{start}embeddings.token_embedding.weight"].shape
    layers = {key.split(".")[4] for key in weights if ".layers." in key}
    length = weights[f"{start}embeddings.position_embedding.weight"].shape[0]
    inner = weights[f"{start}encoder.layers.0.mlp.fc1.weight"].shape[0]
    return dict(structure=(tokens, width, len(layers), length, inner))


def _clip_rows(entry):
    return prefixed(
        tower_names.clip_rows(_encoder(entry)), "transformer.text_model.", ""
    )


def _open_clip_params(weights, factor):
    tokens, width = weights["model.token_embedding.weight"].shape
    layers = {key.split(".")[3] for key in weights if ".resblocks." in key}
    length = weights["model.positional_embedding"].shape[0]
    inner = weights["model.transformer.resblocks.0.mlp.c_fc.weight"].shape[0]
    # Stable Diffusion 2 uses the penultimate layer. An encoder that was cut there has
    # lost its projection, too.
    unused = "model.text_projection" in weights
    return dict(structure=(tokens, width, len(layers) - unused, length, inner))


def _open_clip_rows(entry):
    return prefixed(tower_names.open_clip_rows(_encoder(entry)), "model.", "")


def _clip_limits(entry):
    """Options of OpenAI's ViT-L/14 text encoder, which FrozenCLIPEmbedder loads."""
    return dict(
        vocab_size=49408,
        features=768,
        num_layers=12,
        max_length=77,
        num_heads=12,
        head_channels=64,
        mlp_ratio=4,
        use_bias=True,
        causal=True,
        activation="quick_gelu",
    )


def _open_clip_limits(entry):
    """Options of OpenCLIP's ViT-H/14 without its last layer (Stable Diffusion 2)."""
    tower = dict(features=1024, num_layers=23, num_heads=16, activation="gelu")
    return _clip_limits(entry) | tower


# SpatialRescaler.


def _spatial_params(weights, factor):
    channels = weights["channel_mapper.weight"].shape if weights else (None, None)
    return dict(
        n_stages=factor.bit_length() - 1,
        in_channels=channels[1],
        out_channels=channels[0],
        bias="channel_mapper.bias" in weights,
    )


def _spatial_entry(params):
    return dict(
        kind="spatial",
        num_stages=params["n_stages"],
        method=params.get("method", "bilinear"),
        multiplier=params.get("multiplier", 0.5),
        features=params["out_channels"],
        use_bias=params["bias"],
        num_classes=params["in_channels"],
    )


def _spatial_yaml(entry):
    return dict(
        n_stages=entry["num_stages"],
        method=entry.get("method", "bilinear"),
        multiplier=entry.get("multiplier", 0.5),
        in_channels=entry["num_classes"],
        out_channels=entry.get("features"),
        bias=entry.get("use_bias", False),
    )


# Shared by several rows.


def _encoder(entry):
    """The TextEncoder of an entry, with the fields that names of weights depend on."""
    names = ("vocab_size", "features", "num_layers", "max_length", "num_heads")
    return TextEncoder(**{name: entry[name] for name in names if name in entry})


def _tokens(entry, image_size):
    return np.zeros((1, entry.get("max_length", 77)), np.int32)


def _trained(slot, key):
    return dict(conditioning_key=slot, cond_stage_key=key, cond_stage_trainable=True)


COND_STAGES = {
    "ClassEmbedder": CondStage(
        key="label",
        mark="embedding.weight",
        deduce=_class_params,
        to_entry=_class_entry,
        fits=lambda entry: (
            entry["kind"] == "class_label" and entry.get("slot", "context") == "context"
        ),
        to_params=lambda entry: dict(
            embed_dim=entry["features"],
            n_classes=entry["num_classes"] + entry.get("null_class", True),
            key="class_label",
        ),
        rows=lambda entry: names.class_embedder_rows(),
        example=lambda entry, size: np.zeros(1, np.int32),
        yaml=_trained("crossattn", "class_label"),
    ),
    "BERTEmbedder": CondStage(
        key="caption",
        mark="transformer.token_emb.",
        deduce=_bert_params,
        to_entry=_bert_entry,
        fits=lambda entry: entry["kind"] in ("text", "layout"),
        to_params=_bert_yaml,
        rows=_bert_rows,
        example=_tokens,
        yaml=_trained("crossattn", "caption"),
        limits=_bert_limits,
    ),
    "SpatialRescaler": CondStage(
        key="segmentation",
        mark="channel_mapper.",
        deduce=_spatial_params,
        to_entry=_spatial_entry,
        fits=lambda entry: entry["kind"] == "spatial",
        to_params=_spatial_yaml,
        rows=lambda entry: tower_names.spatial_rows(),
        example=lambda entry, size: np.zeros((1, size, size), np.int32),
        yaml=_trained("concat", "segmentation"),
    ),
    "FrozenCLIPEmbedder": CondStage(
        key="caption",
        mark="transformer.text_model.",
        deduce=_clip_params,
        to_entry=lambda params: clip_entry(*params["structure"]),
        fits=lambda e: e["kind"] == "clip_text" and e["activation"] == "quick_gelu",
        to_params=lambda entry: {},
        rows=_clip_rows,
        example=_tokens,
        yaml=dict(conditioning_key="crossattn", cond_stage_key="txt"),
        limits=_clip_limits,
    ),
    "FrozenOpenCLIPEmbedder": CondStage(
        key="caption",
        mark="model.transformer.",
        deduce=_open_clip_params,
        to_entry=lambda params: clip_entry(*params["structure"], activation="gelu"),
        fits=lambda entry: entry["kind"] == "clip_text",
        to_params=lambda entry: dict(freeze=True, layer="penultimate"),
        rows=_open_clip_rows,
        example=_tokens,
        yaml=dict(conditioning_key="crossattn", cond_stage_key="txt"),
        limits=_open_clip_limits,
    ),
}
