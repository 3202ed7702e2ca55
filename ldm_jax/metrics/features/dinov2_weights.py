"""The row `dinov2` of FEATURES: DINOv2 ViT-L/14 from its published files.

| file of | names |
| --- | --- |
| facebookresearch/dinov2, as `torch.hub` loads it | the hub's |
| timm's vit_large_patch14_dinov2.lvd142m | the hub's |
| transformers' facebook/dinov2-large, old or new | transformers' |
"""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from ldm_jax.errors import ConversionError
from ldm_jax.metrics.features.dinov2 import (
    HEAD_CHANNELS,
    PATCH_SIZE,
    SIZE,
    DinoV2,
    prepare,
)
from ldm_jax.metrics.features.network import FeatureNetwork, Loaded
from ldm_jax.metrics.features.weight_files import checksum, read_tensors
from ldm_jax.models.operations.parameters import variable_shapes
from ldm_jax.models.resize import rescaling_matrix
from ldm_jax.weights.state_dict import (
    CONV,
    DENSE,
    SAME,
    UNUSED,
    Params,
    Row,
    StateDict,
    Transform,
    layer_rows,
    norm_rows,
    split_qkv,
    to_params,
)

WHERE = (
    "DINOv2 ViT-L/14 without registers is dinov2_vitl14_pretrain.pth of "
    "dl.fbaipublicfiles.com/dinov2/dinov2_vitl14, or model.safetensors of "
    "huggingface.co/timm/vit_large_patch14_dinov2.lvd142m or of "
    "huggingface.co/facebook/dinov2-large"
)
TAP = "class_token"

# Theirs have leading axes of length 1 that ours do not have.
_WHOLE = Transform(lambda a: (a.reshape(-1),), lambda a: a[None, None])
_POSITIONS = Transform(lambda a: (a.reshape(a.shape[-2:]),), lambda a: a[None])
# The published network adds this to the number of patches when it scales positions.
_OFFSET = 0.1


def dinov2_rows(network: DinoV2) -> list[Row]:
    """Maps the names of the hub's DINOv2, with its layer scales, to ours.

    Args:
      network: DinoV2 module.

    Returns:
      List of Rows.
    """
    rows = [
        Row("cls_token", ("whole",), _WHOLE),
        Row("pos_embed", ("positions",), _POSITIONS),
        Row("mask_token", (), UNUSED),
        *layer_rows("patch_embed.proj", "patches", CONV),
        *norm_rows("norm", "norm_out"),
    ]
    heads = network.width // HEAD_CHANNELS
    for i in range(network.num_layers):
        theirs, ours = f"blocks.{i}", f"block_{i}"
        rows += norm_rows(f"{theirs}.norm1", f"{ours}/norm_attention")
        rows += norm_rows(f"{theirs}.norm2", f"{ours}/norm_feed_forward")
        for key, leaf, change in (("weight", "kernel", DENSE), ("bias", "bias", SAME)):
            names = ("query", "key", "value")
            paths = tuple(f"{ours}/attention/{name}/{leaf}" for name in names)
            transform = split_qkv(heads, False, change)
            rows.append(Row(f"{theirs}.attn.qkv.{key}", paths, transform))
        rows += layer_rows(f"{theirs}.attn.proj", f"{ours}/attention/out", DENSE)
        rows += layer_rows(f"{theirs}.mlp.fc1", f"{ours}/proj_in", DENSE)
        rows += layer_rows(f"{theirs}.mlp.fc2", f"{ours}/proj_out", DENSE)
        for key, layer in _SCALED.items():
            rows.append(Row(f"{theirs}.{key}", (f"{ours}/{layer}/scale",), SAME))
    return rows


def read_dinov2(path: str) -> StateDict:
    """Reads a published file, with the hub's or transformers' names.

    Args:
      path: The file.

    Returns:
      Dict of the hub's keys -> array, without the mask token.

    Raises:
      ConversionError: If it is missing, unreadable, has registers or is another
        network.
    """
    tensors = _hub_names(read_tensors(path, WHERE))
    if any(key.startswith("reg") for key in tensors):
        raise ConversionError(
            f"{path} is a DINOv2 with registers, whose features are others: {WHERE}"
        )
    positions = tensors.get("pos_embed")
    if "cls_token" not in tensors or positions is None:
        raise ConversionError(f"{path} is no DINOv2: {WHERE}")
    return {k: np.asarray(v) for k, v in tensors.items() if k != "mask_token"}


def _hub_names(tensors):
    """Converts the names of transformers to those of the hub."""
    tensors = {key.removeprefix("dinov2."): a for key, a in tensors.items()}
    if "embeddings.cls_token" not in tensors:
        return dict(tensors)
    named = {}
    for key, array in tensors.items():
        for pattern, name in _NAMES:
            key = re.sub(pattern, name, key)
        named[key] = array
    for key in [key for key in named if ".attn.query." in key]:
        keys = [key.replace("query", part) for part in ("query", "key", "value")]
        if all(part in named for part in keys):
            parts = [np.asarray(named.pop(part)) for part in keys]
            named[key.replace("query", "qkv")] = np.concatenate(parts)
    return named


def make_params(tensors: StateDict, network: DinoV2) -> Params:
    """Makes parameters from the hub's tensors, for images of 224 pixels.

    Args:
      tensors: Dict of the hub's keys -> array.
      network: DinoV2 module.

    Returns:
      Parameters of `network`, float32.

    Raises:
      ValueError: If a tensor is missing, superfluous or of another shape.
    """
    target = flatten_dict(_shapes(network), sep="/")
    width = jax.ShapeDtypeStruct((network.width,), jnp.float32)
    for i in range(network.num_layers):
        target |= {f"block_{i}/{layer}/scale": width for layer in _SCALED.values()}
    positions = tensors["pos_embed"].shape[-2:]
    target["positions"] = jax.ShapeDtypeStruct(positions, jnp.float32)
    target = unflatten_dict(target, sep="/")
    params = to_params(dinov2_rows(network), tensors, target)
    params["positions"] = _rescale(params["positions"])
    for i in range(network.num_layers):
        for layer in _SCALED.values():
            scaled = params[f"block_{i}"]
            for name in layer.split("/"):
                scaled = scaled[name]
            scale = scaled.pop("scale")
            scaled |= {leaf: scaled[leaf] * scale for leaf in ("kernel", "bias")}
    return params


def _shapes(network):
    image = jax.ShapeDtypeStruct((1, SIZE, SIZE, 3), jnp.float32)
    return variable_shapes(network, image)["params"]


def _rescale(positions):
    """Positions [1 + n², d] of larger images -> those of SIZE, as in the hub's code."""
    old, new = math.isqrt(len(positions) - 1), SIZE // PATCH_SIZE
    if old == new:
        return positions
    matrix = rescaling_matrix(old, (new + _OFFSET) / old, "bicubic", 1)
    grid = positions[1:].reshape(old, old, -1)
    grid = np.einsum("hH,wW,HWd->hwd", matrix, matrix, grid, optimize=True)
    grid = grid.reshape(new * new, -1).astype(np.float32)
    return np.concatenate([positions[:1], grid])


def _load(path):
    tensors = read_dinov2(path)
    blocks = len({k.split(".")[1] for k in tensors if k.startswith("blocks.")})
    found, expected = (
        (tensors["cls_token"].size, blocks),
        (DinoV2.width, DinoV2.num_layers),
    )
    if found != expected:
        raise ConversionError(
            f"{path} is a DINOv2 of (width, blocks) = {found} instead of {expected}: "
            f"{WHERE}"
        )
    try:
        params = make_params(tensors, DinoV2())
    except ValueError as error:
        raise ConversionError(f"{path} is not DINOv2 ViT-L/14: {error}; {WHERE}") from (
            error
        )
    return Loaded(params, checksum(tensors))


def _apply(params, images, taps):
    with jax.default_matmul_precision("float32"):
        features = DinoV2().apply({"params": params}, prepare(images))
    return dict.fromkeys(taps, features)


# The hub's layer scales -> our layers that have them.
_SCALED = {"ls1.gamma": "attention/out", "ls2.gamma": "proj_out"}

# Names of transformers -> those of the hub, replaced in this order.
_NAMES = (
    (r"^embeddings\.(cls_token|mask_token|register_tokens)$", r"\1"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^encoder\.layer\.", "blocks."),
    (r"\.attention\.(?:attention\.)?(query|key|value)\.", r".attn.\1."),
    (r"\.attention\.q_proj\.", ".attn.query."),
    (r"\.attention\.k_proj\.", ".attn.key."),
    (r"\.attention\.v_proj\.", ".attn.value."),
    (r"\.attention\.(?:output\.dense|o_proj)\.", ".attn.proj."),
    (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
    (r"^layernorm\.", "norm."),
)

DINOV2 = FeatureNetwork(
    "DINOv2 ViT-L/14",
    WHERE,
    {TAP: DinoV2.width},
    _load,
    _apply,
    convert=read_dinov2,
    needs_file=True,
)
