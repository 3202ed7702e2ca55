"""Converts config.json of transformers' text encoders to our conditions, and back."""

from collections.abc import Mapping
from typing import Any

from ldm_jax.convert.compvis.cond_stages import clip_entry
from ldm_jax.convert.compvis.conditions import with_defaults
from ldm_jax.convert.diffusers.fields import complete
from ldm_jax.convert.diffusers.values import require_equal, whole
from ldm_jax.errors import ConversionError
from ldm_jax.models.text_encoder import ACTIVATIONS


def text_entry(config: Mapping[str, Any]) -> dict[str, Any]:
    """Reads the condition of a text encoder.

    Args:
      config: config.json of a CLIPTextModel or an LDMBertModel.

    Returns:
      Entry of the config section `conditions`.

    Raises:
      ConversionError: If it is of another class, or a field is not supported.
    """
    kind = text_class(config)
    if kind == "CLIPTextModel":
        config = config.get("text_config") or config
    config = complete(config | {"_class_name": kind})
    if kind == "LDMBertModel":
        width = config["d_model"]
        ratio = _quotient(config, "encoder_ffn_dim", "d_model")
        entry = dict(
            kind="text",
            vocab_size=config["vocab_size"],
            features=width,
            num_layers=config["encoder_layers"],
            max_length=config["max_position_embeddings"],
            num_heads=config["encoder_attention_heads"],
            head_channels=config["head_dim"],
        )
        entry |= {} if ratio == 4 else {"mlp_ratio": ratio}
        known = entry["vocab_size"] == 30522
        return entry if known else entry | {"null_ids": (0,)}
    _quotient(config, "intermediate_size", "hidden_size")
    require_equal(config, "hidden_act", tuple(ACTIVATIONS))
    return clip_entry(
        vocab_size=config["vocab_size"],
        features=config["hidden_size"],
        num_layers=config["num_hidden_layers"],
        max_length=config["max_position_embeddings"],
        mlp_width=config["intermediate_size"],
        num_heads=config["num_attention_heads"],
        head_channels=_quotient(config, "hidden_size", "num_attention_heads"),
        activation=config["hidden_act"],
    )


def _quotient(config, field, other):
    """Quotient of two fields, whole numbers of which the first is a multiple."""
    name = config["_class_name"]
    above, below = (whole(name, each, config[each]) for each in (field, other))
    if above % below:
        raise ConversionError(
            f"{field}={above} of {name} is not supported: it must be a multiple of "
            f"{other}={below}"
        )
    return above // below


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
    entry = with_defaults(entry)
    heads, size = entry["num_heads"], entry["head_channels"]
    if entry["kind"] == "text":
        return dict(
            architectures=["LDMBertModel"],
            model_type="ldmbert",
            vocab_size=entry["vocab_size"],
            d_model=entry["features"],
            encoder_layers=entry["num_layers"],
            max_position_embeddings=entry["max_length"],
            encoder_attention_heads=heads,
            head_dim=size,
            encoder_ffn_dim=entry["mlp_ratio"] * entry["features"],
            activation_function="gelu",
        )
    return dict(
        architectures=["CLIPTextModel"],
        model_type="clip_text_model",
        vocab_size=entry["vocab_size"],
        hidden_size=entry["features"],
        num_hidden_layers=entry["num_layers"],
        num_attention_heads=heads,
        max_position_embeddings=entry["max_length"],
        intermediate_size=entry["mlp_ratio"] * entry["features"],
        hidden_act=entry["activation"],
        layer_norm_eps=1e-5,
    )


def text_limits(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the options of a text condition that have no field in config.json.

    Args:
      entry: See `text_config`.

    Returns:
      Option -> the value that the class uses.
    """
    entry = with_defaults(entry)
    if entry["kind"] == "text":
        return dict(causal=False, use_bias=False, activation="gelu")
    size = entry["features"] / entry["num_heads"]
    return dict(causal=True, use_bias=True, head_channels=size)
