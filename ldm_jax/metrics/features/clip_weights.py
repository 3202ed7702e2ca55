"""The row `clip` of FEATURES: CLIP from its published files.

Sizes are inferred from the file: OpenAI's, OpenCLIP's, or transformers' with its
config.json beside it.
"""

import math
import os
from typing import Any, NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict

from ldm_jax.errors import ConfigError, ConversionError
from ldm_jax.metrics.features.clip_features import Clip
from ldm_jax.metrics.features.network import (
    FeatureNetwork,
    Loaded,
    missing_file,
)
from ldm_jax.metrics.features.weight_files import checksum, read_tensors
from ldm_jax.models.image_encoder import ImageEncoder
from ldm_jax.models.text_encoder import ACTIVATIONS, TextEncoder
from ldm_jax.store import is_file, local_copy
from ldm_jax.weights.files import read_json
from ldm_jax.weights.state_dict import StateDict, prefixed, select, to_state_dict
from ldm_jax.weights.tower_names import open_clip_image_rows, open_clip_rows
from ldm_jax.weights.towers import tower_params

WHERE = (
    "CLIP is ViT-L-14.pt, ViT-L-14-336px.pt (for CMMD) or another ViT of "
    "openaipublic.azureedge.net/clip/models (github.com/openai/CLIP), "
    "open_clip_model.safetensors of one of huggingface.co/laion, or model.safetensors "
    "with config.json beside, as of huggingface.co/openai/clip-vit-large-patch14-336"
)
EMBEDDING = "embedding"

# Widths of image encoders whose heads do not have 64 channels: ViT-H/14.
_HEAD_CHANNELS = {1280: 80}


class _Keys(NamedTuple):
    """Keys of the tensors that give the sizes, in the names of one library."""

    patches: str
    image_positions: str
    image_projection: str
    image_layers: str
    tokens: str
    text_positions: str
    text_projection: str
    text_layers: str
    transposed: bool  # Projections are [width, D], not [D, width].


_OPENAI = _Keys(
    "visual.conv1.weight",
    "visual.positional_embedding",
    "visual.proj",
    "visual.transformer.resblocks.",
    "token_embedding.weight",
    "positional_embedding",
    "text_projection",
    "transformer.resblocks.",
    transposed=True,
)
_TRANSFORMERS = _Keys(
    "vision_model.embeddings.patch_embedding.weight",
    "vision_model.embeddings.position_embedding.weight",
    "visual_projection.weight",
    "vision_model.encoder.layers.",
    "text_model.embeddings.token_embedding.weight",
    "text_model.embeddings.position_embedding.weight",
    "text_projection.weight",
    "text_model.encoder.layers.",
    transposed=False,
)
# In OpenAI's files, not in OpenCLIP's, which mostly have another activation.
_MARK = "input_resolution"


def infer_towers(tensors: StateDict, activation: str) -> Clip:
    """Makes the encoders of a model, with sizes inferred from its tensors.

    Args:
      tensors: Key -> array, with the names of OpenAI or of transformers.
      activation: Row of ACTIVATIONS.

    Returns:
      Clip.

    Raises:
      ValueError: If there is no vision transformer of CLIP.
    """
    keys = _keys_of(tensors)
    width, _, patch, _ = tensors[keys.patches].shape
    positions = tensors[keys.image_positions].shape[0]
    channels = _HEAD_CHANNELS.get(width, 64)
    image = ImageEncoder(
        image_size=patch * math.isqrt(positions - 1),
        patch_size=patch,
        width=width,
        num_layers=_count(tensors, keys.image_layers),
        num_heads=width // channels,
        head_channels=channels,
        embed_dim=tensors[keys.image_projection].shape[1 if keys.transposed else 0],
        activation=activation,
    )
    if keys.tokens not in tensors or keys.text_projection not in tensors:
        return Clip(image)
    vocab_size, width = tensors[keys.tokens].shape
    text = TextEncoder(
        vocab_size,
        width,
        _count(tensors, keys.text_layers),
        max_length=tensors[keys.text_positions].shape[0],
        num_heads=width // 64,
        use_bias=True,
        causal=True,
        activation=activation,
    )
    return Clip(image, text)


def _keys_of(tensors):
    for keys in (_OPENAI, _TRANSFORMERS):
        if all(k in tensors for k in keys[:3]):
            return keys
    raise ValueError("it holds no vision transformer of CLIP")


def _count(tensors, prefix):
    return len({key.split(".", 1)[0] for key in select(tensors, prefix)})


def _params(towers, tensors):
    """Parameters of the encoders, see Clip; ValueError if a tensor does not fit."""
    params = {"image": tower_params(tensors, towers.image)}
    if towers.text is not None:
        keys = _keys_of(tensors)
        projection = np.asarray(tensors[keys.text_projection], np.float32)
        params["text"] = tower_params(tensors, towers.text)
        params["text_projection"] = projection if keys.transposed else projection.T
    return params


def read_clip(path: str | os.PathLike) -> tuple[Clip, dict[str, Any]]:
    """Reads a published file.

    Args:
      path: The file; a config.json or open_clip_config.json beside it is read, too.

    Returns:
      (encoders, their parameters).

    Raises:
      ConversionError: If it is missing, unreadable or not a CLIP with a vision
        transformer.
    """
    path = local_copy(path)
    tensors = read_tensors(path, WHERE)
    try:
        known = _keys_of(tensors) is _OPENAI
        find = _openai_activation if known else _transformers_activation
        towers = infer_towers(tensors, find(path, tensors))
        return towers, _params(towers, tensors)
    except ConversionError:
        raise
    except ValueError as error:
        raise ConversionError(f"{path} is not known as CLIP: {error}; {WHERE}") from (
            error
        )


# The activation, which no shape shows: "quick_gelu" in OpenAI's models, "gelu" in most
# others.


def _openai_activation(path, tensors):
    beside = path.with_name("open_clip_config.json")
    config = read_json(beside) if is_file(beside) else {}
    quick = _MARK in tensors or config.get("model_cfg", {}).get("quick_gelu")
    return "quick_gelu" if quick else "gelu"


def _transformers_activation(path, tensors):
    del tensors
    beside = path.with_name("config.json")
    if not is_file(beside):
        raise ConversionError(
            f"there is no config.json beside {path}, which says the activation of its "
            f"layers: {WHERE}"
        )
    config = read_json(beside)
    found = {
        (config.get(f"{part}_config") or config).get("hidden_act", "quick_gelu")
        for part in ("vision", "text")
    }
    if len(found) != 1 or not found <= ACTIVATIONS.keys():
        raise ConversionError(
            f"{beside} says hidden_act={sorted(map(str, found))}: expected one of "
            + " or ".join(ACTIVATIONS)
        )
    return found.pop()


def convert_clip(path: str) -> StateDict:
    """Reads a published file and returns it with the names of OpenAI.

    Args:
      path: See `read_clip`.

    Returns:
      Dict of key -> array, float32.

    Raises:
      ConversionError: See `read_clip`.
    """
    towers, params = read_clip(path)
    rows = open_clip_image_rows(towers.image)
    state_dict = to_state_dict(prefixed(rows, "visual.", ""), params["image"])
    if towers.text is not None:
        state_dict |= to_state_dict(open_clip_rows(towers.text, 0), params["text"])
        state_dict["text_projection"] = params["text_projection"]
    if towers.image.activation == "quick_gelu":
        state_dict[_MARK] = np.array(towers.image.image_size, np.float32)
    return state_dict


def _load(path):
    towers, params = read_clip(path)
    # The activation is not a parameter, but belongs to the network's checksum.
    quick = np.array(towers.image.activation == "quick_gelu", np.float32)
    numbers = flatten_dict(params, sep="/") | {"quick_gelu": quick}
    changes = {
        "widths": {EMBEDDING: towers.image.embed_dim},
        "apply": towers.embed_images,
        "vocab_size": towers.text and towers.text.vocab_size,
        "embed_text": None if towers.text is None else towers.embed_text,
    }
    return Loaded(params, checksum(numbers), changes)


def _needs_file(*_):
    raise ConfigError(missing_file("clip", WHERE))


CLIP = FeatureNetwork(
    "CLIP",
    WHERE,
    {EMBEDDING: 768},
    _load,
    _needs_file,
    _needs_file,
    convert_clip,
    needs_file=True,
)
