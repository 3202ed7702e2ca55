"""The original's cond stages and our conditions, each from the other.

One row of COND_STAGES per kind with weights: how they are recognised, what its YAML
says, the entry of the config section `conditions` that it becomes, and the weights'
names. What has no weights follows from the U-Net: a class embedding of its own, input
channels beyond the latents', and a context that nothing makes.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ldm_jax.convert import compvis_rows, text_rows
from ldm_jax.convert.files import ConversionError
from ldm_jax.convert.state_dict import prefixed
from ldm_jax.models.text_encoder import TextEncoder

_MODULES = "ldm.modules.encoders.modules"
_UNCONDITIONAL, _FIRST_STAGE = "__is_unconditional__", "__is_first_stage__"
_NO_WEIGHTS = {"target": "torch.nn.Identity"}
# Batch keys of inputs that are taken as they are.
EMBEDDING, _MASKED, _LOW_RES, _DEPTH = "embedding", "masked_image", "low_res", "depth"


class CondStage(NamedTuple):
    """One kind of cond stage with weights.

    Attributes:
      key: Batch key of its entry.
      mark: What a key of its weights begins with, to recognise them by.
      deduce: (weights without prefix, downsampling factor of the first stage) -> what
        its YAML would say under `params`, and the structure that none says.
      to_entry: Such `params` -> entry of the config.
      fits: Entry -> whether it is written as this kind.
      to_params: Entry -> YAML's `params`.
      rows: Entry -> rows of its weights, without prefixes.
      example: (entry, image size) -> an example of the batch, [1, ...].
      yaml: What else the YAML says, its conditioning_key above all.
    """

    key: str
    mark: str
    deduce: Callable
    to_entry: Callable
    fits: Callable
    to_params: Callable
    rows: Callable
    example: Callable
    yaml: dict


def deduce_cond_stage(weights, unet):
    """Deduces from its weights what a YAML says under `cond_stage_config`.

    Args:
      weights: Dict of key, without prefix -> array with a shape; {} if there are none.
      unet: The original's UNetModel options.

    Returns:
      Dict of "target", or the name of a cond stage without weights of its own.

    Raises:
      ConversionError: If they are of no known kind.
    """
    if not weights:
        more = unet["in_channels"] > unet["out_channels"]
        return _NO_WEIGHTS if more or unet.get("context_dim") else _UNCONDITIONAL
    if "encoder.conv_in.weight" in weights:
        return _FIRST_STAGE
    for name, row in COND_STAGES.items():
        if any(key.startswith(row.mark) for key in weights):
            return {"target": f"{_MODULES}.{name}"}
    raise ConversionError(
        f"a cond stage with weights such as {next(iter(weights))} is not known"
    )


def read_conditions(config, unet, weights, factor):
    """The config section `conditions` of what a YAML says.

    Args:
      config: Its `cond_stage_config`.
      unet: Its UNetModel options.
      weights: The cond stage's weights, without prefix.
      factor: Downsampling factor of the first stage.

    Returns:
      Batch key -> entry.

    Raises:
      ConversionError: If the kind of the cond stage is not supported or its weights are
        incomplete.
    """
    conditions, name = {}, _name(config)
    if name in COND_STAGES:
        row = COND_STAGES[name]
        try:
            options = row.deduce(weights, factor) | (config.get("params") or {})
        except KeyError as error:
            raise ConversionError(
                f"missing key cond_stage_model.{error.args[0]}"
            ) from error
        entry = row.to_entry(options)
        conditions["boxes" if entry["kind"] == "layout" else row.key] = entry
    elif name == "Identity" and unet.get("context_dim"):
        conditions |= {EMBEDDING: dict(kind="raw", slot="context")}
    elif name not in ("Identity", _UNCONDITIONAL, _FIRST_STAGE):
        raise ConversionError(
            f"the cond stage {name} is not supported; known are "
            + ", ".join([*COND_STAGES, "Identity", _UNCONDITIONAL, _FIRST_STAGE])
        )
    return conditions | unet_conditions(unet, conditions)


def unet_conditions(unet, conditions):
    """The conditions without weights of their own that a U-Net implies.

    Args:
      unet: The original's UNetModel options.
      conditions: The conditions that have weights.

    Returns:
      Batch key -> entry: its class embedding, and maps for the input channels that are
      neither the latents' nor those of `conditions`.
    """
    entries = {}
    if unet.get("num_classes") is not None:
        entries["label"] = dict(
            kind="class_label",
            slot="vector",
            num_classes=unet["num_classes"],
            features=4 * unet["model_channels"],
            null_class=False,
        )
    more = unet["in_channels"] - unet["out_channels"]
    for entry in _of_kind(conditions, "spatial"):
        more -= entry["features"] or entry["num_classes"]
    if more > 0:
        key = _MASKED if more == unet["out_channels"] + 1 else _LOW_RES
        key = _DEPTH if more == 1 else key
        entries[key] = dict(kind="raw", slot="concat")
    return entries


def _name(config):
    config = config or _UNCONDITIONAL
    return config if isinstance(config, str) else config["target"].rpartition(".")[2]


def _of_kind(conditions, kind):
    return [entry for entry in conditions.values() if entry["kind"] == kind]


def cond_stage(conditions):
    """Finds the cond stage with weights that conditions need.

    Args:
      conditions: Config section.

    Returns:
      (name in COND_STAGES, batch key, entry), or None if there is none.

    Raises:
      ConversionError: If the original cannot have them.
    """
    entries = {
        key: dict(entry)
        for key, entry in conditions.items()
        if entry["kind"] != "raw" and not is_embedded(key, entry)
    }
    if not entries:
        return None
    if len(entries) == 1:
        ((key, entry),) = entries.items()
        for name, row in COND_STAGES.items():
            if row.fits(entry):
                return name, key, entry
    raise ConversionError(
        f"the original has no cond stage for the conditions {', '.join(entries)}"
    )


def is_embedded(key, entry):
    """Whether a condition is the U-Net's own class embedding in the original."""
    return entry["kind"] == "class_label" and entry.get("slot") == "vector"


def condition_rows(conditions):
    """Rows of the cond stage's weights, ours under the conditioner's names."""
    found = cond_stage(conditions)
    if found is None:
        return []
    name, key, entry = found
    return prefixed(COND_STAGES[name].rows(entry), "", f"{key}/")


def examples(conditions, unet, image_size, factor):
    """An example batch for shapes.

    Args:
      conditions: Config section.
      unet: The original's UNetModel options.
      image_size: Side of the images.
      factor: Downsampling factor of the first stage.

    Returns:
      Batch key -> array [1, ...].
    """
    batch, size = {}, image_size // factor
    for key, entry in conditions.items():
        if entry["kind"] != "raw":
            batch[key] = np.zeros(1, np.int32)
        elif entry["slot"] == "context":
            batch[key] = np.zeros((1, 1, unet["context_dim"]), np.float32)
        else:
            more = unet["in_channels"] - unet["out_channels"]
            batch[key] = np.zeros((1, size, size, more), np.float32)
    found = cond_stage(conditions)
    if found:
        name, key, entry = found
        batch[key] = COND_STAGES[name].example(entry, image_size)
    return batch


def conditions_yaml(conditions):
    """What the YAML's `model.params` says of conditions."""
    found = cond_stage(conditions)
    raw = {entry["slot"] for entry in _of_kind(conditions, "raw")}
    if found:
        name, _, entry = found
        row = COND_STAGES[name]
        config = {"target": f"{_MODULES}.{name}", "params": row.to_params(entry)}
        both = {"conditioning_key": "hybrid"} if raw else {}
        return {"cond_stage_config": config} | row.yaml | both
    if not raw:
        return {"conditioning_key": None, "cond_stage_config": _UNCONDITIONAL}
    return {
        "conditioning_key": "crossattn" if "context" in raw else "concat",
        "cond_stage_config": _FIRST_STAGE if _MASKED in conditions else _NO_WEIGHTS,
        "cond_stage_key": next(iter(conditions)),
    }


def _class_entry(params):
    """Of a ClassEmbedder; its last class is the null class, but for ImageNet's 1000.

    The original's guided models have a class more than the data; the one model without
    has just ImageNet's.
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


def _bert_params(weights, factor):
    tokens, width = weights["transformer.token_emb.weight"].shape
    layers = {key.split(".")[3] for key in weights if ".layers." in key}
    return dict(
        n_embed=width,
        n_layer=len(layers) // 2,
        vocab_size=tokens,
        max_seq_len=weights["transformer.pos_emb.emb.weight"].shape[0],
        # Captions are of bert-base-uncased, layouts of a vocabulary of 8192.
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
        # Another tokenizer has another empty caption, which is not known here.
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


def _bert_rows(entry):
    return prefixed(text_rows.bert_rows(_encoder(entry)), "transformer.", "")


def clip_entry(vocab_size, features, num_layers, max_length, mlp_width, **more):
    """The entry of a CLIP text tower; ViT-L is OpenAI's, wider ones are OpenCLIP's."""
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
    return prefixed(text_rows.clip_rows(_encoder(entry)), "transformer.text_model.", "")


def _open_clip_params(weights, factor):
    tokens, width = weights["model.token_embedding.weight"].shape
    layers = {key.split(".")[3] for key in weights if ".resblocks." in key}
    length = weights["model.positional_embedding"].shape[0]
    inner = weights["model.transformer.resblocks.0.mlp.c_fc.weight"].shape[0]
    # Stable Diffusion 2 takes the last but one layer.
    return dict(structure=(tokens, width, len(layers) - 1, length, inner))


def _open_clip_rows(entry):
    return prefixed(text_rows.open_clip_rows(_encoder(entry)), "model.", "")


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


def _encoder(entry):
    """The TextEncoder of an entry, as far as names of weights depend on it."""
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
        fits=lambda entry: entry["kind"] == "class_label",
        to_params=lambda entry: dict(
            embed_dim=entry["features"],
            n_classes=entry["num_classes"] + entry.get("null_class", True),
            key="class_label",
        ),
        rows=lambda entry: compvis_rows.class_embedder_rows(),
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
    ),
    "SpatialRescaler": CondStage(
        key="segmentation",
        mark="channel_mapper.",
        deduce=_spatial_params,
        to_entry=_spatial_entry,
        fits=lambda entry: entry["kind"] == "spatial",
        to_params=_spatial_yaml,
        rows=lambda entry: text_rows.spatial_rows(),
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
    ),
}
