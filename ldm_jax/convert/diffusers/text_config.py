"""config.json of transformers' text encoders and our text conditions, either way."""

from collections.abc import Mapping
from typing import Any

from ldm_jax.convert.compvis.cond_stages import clip_entry
from ldm_jax.errors import ConversionError


def text_entry(config: Mapping[str, Any]) -> dict[str, Any]:
    """Reads the condition that a text encoder makes.

    Args:
      config: config.json of a CLIPTextModel or an LDMBertModel.

    Returns:
      Entry of the config section `conditions`.

    Raises:
      ConversionError: If it is of another class.
    """
    kind = text_class(config)
    if kind == "LDMBertModel":
        entry = dict(
            kind="text",
            vocab_size=config.get("vocab_size", 30522),
            features=config.get("d_model", 1280),
            num_layers=config.get("encoder_layers", 32),
            max_length=config.get("max_position_embeddings", 77),
            num_heads=config.get("encoder_attention_heads", 8),
            head_channels=config.get("head_dim", 64),
        )
        known = entry["vocab_size"] == 30522
        return entry if known else entry | {"null_ids": (0,)}
    config = config.get("text_config") or config
    width = config.get("hidden_size", 512)
    heads = config.get("num_attention_heads", 8)
    return clip_entry(
        vocab_size=config.get("vocab_size", 49408),
        features=width,
        num_layers=config.get("num_hidden_layers", 12),
        max_length=config.get("max_position_embeddings", 77),
        mlp_width=config.get("intermediate_size", 2048),
        num_heads=heads,
        head_channels=width // heads,
        activation=config.get("hidden_act", "quick_gelu"),
    )


def text_class(config: Mapping[str, Any]) -> str:
    """Finds the class of a text encoder.

    Args:
      config: Its config.json.

    Returns:
      "CLIPTextModel" or "LDMBertModel".

    Raises:
      ConversionError: If it is of another class.
    """
    found = config.get("_class_name") or (config.get("architectures") or [None])[0]
    if found is None and config.get("model_type") == "ldmbert":
        found = "LDMBertModel"
    if found not in ("CLIPTextModel", "LDMBertModel"):
        raise ConversionError(
            f"the text encoder {found} is not supported: only CLIPTextModel and "
            "LDMBertModel are"
        )
    return found


def text_config(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Writes the config of a text encoder; the inverse of `text_entry`.

    Args:
      entry: Entry of the config section `conditions`, of the kind "text" or
        "clip_text".

    Returns:
      config.json.
    """
    heads, size = entry.get("num_heads", 8), entry.get("head_channels", 64)
    if entry["kind"] == "text":
        return dict(
            architectures=["LDMBertModel"],
            model_type="ldmbert",
            vocab_size=entry["vocab_size"],
            d_model=entry["features"],
            encoder_layers=entry["num_layers"],
            max_position_embeddings=entry.get("max_length", 77),
            encoder_attention_heads=heads,
            head_dim=size,
            encoder_ffn_dim=entry.get("mlp_ratio", 4) * entry["features"],
            activation_function="gelu",
        )
    return dict(
        architectures=["CLIPTextModel"],
        model_type="clip_text_model",
        vocab_size=entry["vocab_size"],
        hidden_size=entry["features"],
        num_hidden_layers=entry["num_layers"],
        num_attention_heads=heads,
        max_position_embeddings=entry.get("max_length", 77),
        intermediate_size=entry.get("mlp_ratio", 4) * entry["features"],
        hidden_act=entry["activation"],
        layer_norm_eps=1e-5,
    )


def text_limits(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Says which options of a text condition a config.json has no field for.

    Args:
      entry: See `text_config`.

    Returns:
      Option -> the value that the class computes with.
    """
    if entry["kind"] == "text":
        return dict(causal=False, use_bias=False, activation="gelu")
    size = entry["features"] / entry["num_heads"]
    return dict(causal=True, use_bias=True, head_channels=size)
