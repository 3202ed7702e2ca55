"""Maps the weights in a pipeline's folders to our parameters, for all its networks.

A pipeline's networks are one state dict, with the folder names as prefixes of the keys.
Reading and writing use the same rows.
"""

from collections.abc import Mapping
from typing import Any

from ldm_jax.build import make_first_stage
from ldm_jax.convert.compvis.conditions import is_embedded
from ldm_jax.convert.diffusers.names import autoencoder_rows, unet_rows
from ldm_jax.convert.model import Model, make_unet
from ldm_jax.models.text_encoder import TextEncoder
from ldm_jax.weights import tower_names
from ldm_jax.weights.state_dict import Row, prefixed


def pipeline_rows(model: Model) -> list[Row]:
    """Maps all networks of a pipeline; their keys begin with the folder's name.

    Args:
      model: Model of a second stage; its weights are not used.

    Returns:
      List of Rows; our paths are "params/..." and "first_stage/...".
    """
    config, origin = model.config, model.origin
    unet = unet_rows(
        make_unet(config["backbone"]), origin.get("linear_projection", False)
    )
    rows = []
    embedded = any(map(is_embedded, config["conditions"].values()))
    for row in unet:
        if row.theirs == _CLASSES and not embedded:
            continue
        inside = "params/conditioner/" if row.theirs == _CLASSES else "params/backbone/"
        rows += prefixed([row], "unet/", inside)
    if model.first_stage:
        name = first_stage_folder(model)
        rows += first_stage_rows(model.first_stage.config, name, "first_stage/")
    for key, entry in config["conditions"].items():
        if entry["kind"] in ("text", "clip_text"):
            rows += _text_rows(model, key, entry)
    return rows


def _text_rows(model, key, entry):
    names = ("vocab_size", "features", "num_layers", "max_length", "num_heads")
    encoder = TextEncoder(**{name: entry[name] for name in names if name in entry})
    ours = f"params/conditioner/{key}/"
    if entry["kind"] == "text":
        return prefixed(tower_names.ldm_bert_rows(encoder), "bert/", ours)
    # All versions of transformers read these names; old ones read no others.
    prefix = f"text_encoder/{model.origin.get('text_prefix', 'text_model.')}"
    return prefixed(tower_names.clip_rows(encoder), prefix, ours)


def first_stage_rows(config: Mapping[str, Any], theirs: str, ours: str) -> list[Row]:
    """Maps a first stage.

    Args:
      config: Its config.
      theirs: Its folder.
      ours: Prefix of our paths.

    Returns:
      List of Rows.
    """
    rows = autoencoder_rows(make_first_stage(config["first_stage"]))
    return prefixed(rows, f"{theirs}/", f"{ours}params/autoencoder/")


def first_stage_folder(model: Model) -> str:
    """Returns the folder of a pipeline's first stage, as read, or else the usual one.

    Args:
      model: Model of a second stage.

    Returns:
      "vae" or "vqvae".
    """
    index = model.origin.get("model_index", {})
    found = [name for name in ("vae", "vqvae") if index.get(name, [None])[0]]
    kinds = {entry["kind"] for entry in model.config["conditions"].values()}
    return found[0] if found else ("vae" if "clip_text" in kinds else "vqvae")


# The key of the class embedding.
_CLASSES = "class_embedding.weight"
