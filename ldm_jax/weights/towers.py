"""Loads weights of frozen text and image encoders (towers) from published files.

| tower | files of |
| --- | --- |
| text | transformers' CLIPModel, CLIPTextModel and CLIPTextModelWithProjection |
| text | OpenCLIP and OpenAI's CLIP |
| text | diffusers' LDMBertModel |
| image | transformers' CLIPModel and CLIPVisionModelWithProjection |
| image | OpenCLIP and OpenAI's CLIP, with vision transformers |

A text encoder with fewer layers than the file uses the first layers, as Stable
Diffusion 2 uses the penultimate layer.
"""

import os
from typing import Any

import jax
import jax.numpy as jnp

from ldm_jax.errors import ConversionError
from ldm_jax.models.image_encoder import ImageEncoder
from ldm_jax.models.operations.parameters import variable_shapes
from ldm_jax.models.text_encoder import TextEncoder
from ldm_jax.reading import answering
from ldm_jax.store import exists, is_dir, is_file, local_copy
from ldm_jax.weights.files import read_json, read_weights
from ldm_jax.weights.folders import find_weights
from ldm_jax.weights.state_dict import StateDict, select, to_params
from ldm_jax.weights.tower_names import (
    clip_image_rows,
    clip_rows,
    ldm_bert_rows,
    open_clip_image_rows,
    open_clip_rows,
)

WHERE = (
    "give a folder with model.safetensors and config.json from huggingface.co, such as "
    "that of openai/clip-vit-large-patch14 (Stable Diffusion 1, image embeddings) or "
    "laion/CLIP-ViT-H-14-laion2B-s32B-b79K (Stable Diffusion 2)"
)


def load_tower(
    path: str | os.PathLike, module: TextEncoder | ImageEncoder
) -> dict[str, Any]:
    """Reads the parameters of a text or image encoder.

    Args:
      path: Weights file, or a folder with one; a config.json beside it is checked.
      module: TextEncoder or ImageEncoder.

    Returns:
      Nested dict of NumPy arrays.

    Raises:
      ConversionError: If it is missing, unreadable or of another encoder.
      Unreachable: If the storage does not respond.
    """
    with answering(path):
        path = local_copy(path)
        if not exists(path):
            raise ConversionError(f"there is no file or folder {path}: {WHERE}")
        file = find_weights(path) if is_dir(path) else path
    tensors = read_weights(file).tensors
    part = "vision" if isinstance(module, ImageEncoder) else "text"
    _check_config(file.with_name("config.json"), module, part)
    try:
        return tower_params(tensors, module)
    except ValueError as error:
        raise ConversionError(
            f"{file} does not fit the options of the condition: {error}; {WHERE}"
        ) from error


def tower_params(
    tensors: StateDict, module: TextEncoder | ImageEncoder
) -> dict[str, Any]:
    """Reads the parameters of a text or image encoder out of a state dict.

    Args:
      tensors: Key -> array, of one tower or both.
      module: TextEncoder or ImageEncoder.

    Returns:
      Nested dict of NumPy arrays.

    Raises:
      ValueError: If there is no such tower, or it does not fit the module.
    """
    part = "vision" if isinstance(module, ImageEncoder) else "text"
    rows, tensors = (_image if part == "vision" else _text)(module, tensors)
    if not tensors:
        raise ValueError(f"it holds no {part} tower")
    return to_params(rows, tensors, _shapes(module))


def _text(encoder, tensors):
    """Rows and tensors of the text tower; empty if there is none."""
    if "model.embed_tokens.weight" in tensors:
        return ldm_bert_rows(encoder), tensors
    if "token_embedding.weight" in tensors:
        tensors = {k: v for k, v in tensors.items() if not k.startswith("visual.")}
        unused = _unused(encoder, tensors, "transformer.resblocks.")
        return open_clip_rows(encoder, unused), tensors
    # From version 5 on, transformers' CLIPTextModel has no prefix.
    tensors = select(tensors, "text_model.") or tensors
    if "embeddings.token_embedding.weight" not in tensors:
        return [], {}
    return clip_rows(encoder, _unused(encoder, tensors, "encoder.layers.")), tensors


def _image(encoder, tensors):
    """Rows and tensors of the image tower; the tensors are empty if there is none."""
    found = select(tensors, "visual.")
    if found:
        return open_clip_image_rows(encoder), found
    prefixes = "vision_model.", "visual_projection."
    found = {k: v for k, v in tensors.items() if k.startswith(prefixes)}
    return clip_image_rows(encoder), found


def _unused(encoder, tensors, prefix):
    """Number of layers in the file after our last one."""
    layers = {key.split(".", 1)[0] for key in select(tensors, prefix)}
    return max(len(layers) - encoder.num_layers, 0)


def _shapes(module):
    """Shapes of a module's parameters."""
    if isinstance(module, TextEncoder):
        example = jax.ShapeDtypeStruct((1, module.max_length), jnp.int32)
    else:
        side = module.image_size
        example = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    return variable_shapes(module, example)["params"]


def _check_config(path, module, part):
    """Checks options that shapes do not show against a config.json, if there is one."""
    if not is_file(path):
        return
    config = read_json(path)
    if isinstance(config, dict):
        config = config.get(f"{part}_config") or config
    if not isinstance(config, dict):
        raise ConversionError(
            f"{path} must hold an object of the {part} tower's options, got a "
            f"{type(config).__name__}: get the file again, or remove it"
        )
    for key, name in _UNSEEN.items():
        theirs, ours = config.get(key), getattr(module, name)
        if theirs is None or theirs == ours:
            continue
        if type(theirs) is not type(ours):
            raise ConversionError(
                f"{path}: {key} must be of type {type(ours).__name__}, got "
                f"{type(theirs).__name__}: get the file again, or remove it"
            )
        raise ConversionError(
            f"{path} says {key}={theirs!r}, but {name} is {ours!r} here: set it to "
            f"{theirs!r}"
        )
    for key, value in _ALWAYS.items():
        if config.get(key, value) != value:
            raise ConversionError(
                f"{path} says {key}={config[key]!r}, which is not supported: only "
                f"{value!r} is"
            )


# Key of a config.json -> field of our module.
_UNSEEN = {"num_attention_heads": "num_heads", "hidden_act": "activation"}
# Keys for which our modules have no field -> the only supported value.
_ALWAYS = {
    "layer_norm_eps": 1e-5,
    "activation_function": "gelu",
    "scale_embedding": False,
}
