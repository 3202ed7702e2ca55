"""Compares a model with its export, read again: both must give the same images.

Equal weights in equal networks give equal outputs. If networks are described
differently, e.g. heads by number or by size, outputs on a small input are compared.
"""

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from ldm_jax import sharding
from ldm_jax.build import identity_of_config, make_first_stage
from ldm_jax.config import from_json, to_json
from ldm_jax.convert.model import Model, make_unet
from ldm_jax.errors import ConversionError

# Number of weights above which reading them all takes a while.
SMALL = 100_000_000
# Maximum difference of outputs, as a fraction of the largest absolute value.
_TOLERANCE = 1e-4
_NETWORKS = ("backbone", "conditioner", "autoencoder")


def count_weights(model: Model) -> int:
    """Counts the weights of a model and its first stage.

    Args:
      model: Model.

    Returns:
      Their number, without moving averages.
    """
    size = sum(leaf.size for leaf in jax.tree.leaves(model.params))
    return size + (count_weights(model.first_stage) if model.first_stage else 0)


def verify(model: Model, again: Model, raw: bool = False) -> None:
    """Compares a model with the one that was read from its export.

    Args:
      model: The model that was written.
      again: The model that was read.
      raw: Whether the trained weights were written, not their average.

    Raises:
      ConversionError: If they differ in anything that affects samples.
    """
    for difference in _differences(model, again, raw):
        raise ConversionError(
            f"the export is not the same model: {difference}; nothing was kept"
        )


def _differences(model, again, raw):
    """Yields differences, as text."""
    yield from _unlike_configs(model.config, again.config)
    yield from _unlike_weights(_used(model, raw), _used(again, raw))
    if model.statistics is not None:
        yield from _unlike_statistics(model.statistics, again.statistics)
    if (model.first_stage is None) != (again.first_stage is None):
        yield "the first stage is missing"
    elif model.first_stage is not None:
        # For the first stage the average is always written, as sampling uses it.
        yield from _differences(model.first_stage, again.first_stage, raw=False)
    yield from _unlike_outputs(model, again, raw)


def _used(model, raw):
    """The weights that sampling uses."""
    trees = model.params if raw or not model.ema_params else model.ema_params
    return {name: trees[name] for name in _NETWORKS if name in trees}


def _unlike_configs(ours, theirs):
    identities = [_identity(config) for config in (ours, theirs)]
    if identities[0].keys() != identities[1].keys():
        yield f"{', '.join(identities[0])} became {', '.join(identities[1])}"
        return
    for key, value in identities[0].items():
        if value != identities[1][key]:
            yield f"{key}={value} became {identities[1][key]}"


def _identity(config):
    found = identity_of_config(from_json(to_json(config)))
    flat = flatten_dict(found, sep=".", keep_empty_nodes=True)
    return {key: _plain(value) for key, value in flat.items()}


def _plain(value):
    return (
        [_plain(item) for item in value] if isinstance(value, list | tuple) else value
    )


def _unlike_weights(ours, theirs):
    ours, theirs = (flatten_dict(tree, sep="/") for tree in (ours, theirs))
    for path in sorted(ours.keys() ^ theirs.keys()):
        yield f"the weight {path} is in one of them alone"
    for path in ours.keys() & theirs.keys():
        mine, other = np.asarray(ours[path]), np.asarray(theirs[path])
        # A file of half precision is written in half precision again.
        if mine.shape != other.shape or np.any(mine.astype(other.dtype) != other):
            yield f"the weight {path} has other numbers"


def _unlike_statistics(ours, theirs):
    for name, mine, other in zip(ours._fields, ours, theirs, strict=True):
        mine, other = np.asarray(mine), np.asarray(other)
        same = mine.shape == other.shape or not (mine.ndim and other.ndim)
        if not same or not np.allclose(mine, other, rtol=1e-6, atol=0):
            yield f"the latents' {name}={mine.tolist()} became {other.tolist()}"


def _unlike_outputs(model, again, raw):
    modules = [_module(config) for config in (model.config, again.config)]
    if modules[0] == modules[1]:
        return
    name = "autoencoder" if "autoencoder" in model.params else "backbone"
    weights = _used(model, raw)[name]
    inputs = _inputs(modules[0], weights)
    first, second = (
        np.asarray(sharding.jit(_apply, static_argnums=0)(module, weights, inputs))
        for module in modules
    )
    limit = _TOLERANCE * np.max(np.abs(first))
    if not np.max(np.abs(first - second)) <= limit:
        yield f"the {name} computes something else"


def _module(config):
    if config["stage"] == "autoencoder":
        return make_first_stage(config["first_stage"])
    return make_unet(config["backbone"])


def _inputs(module, weights):
    rng = np.random.default_rng(0)
    if hasattr(module, "downsampling_factor"):
        side = 2 * module.downsampling_factor
        return (rng.standard_normal((1, side, side, module.image_channels), "f4"),)
    side = max(2 * module.size_multiple, 8)
    channels = weights["conv_in"]["kernel"].shape[2]
    block = weights["middle_attention"].get("block_0")
    context = None
    if block:
        width = block["cross_attention"]["key"]["kernel"].shape[0]
        context = rng.standard_normal((1, 3, width), "f4")
    latents = rng.standard_normal((1, side, side, channels), "f4")
    return latents, np.full(1, 500, np.int32), context


def _apply(module, weights, inputs):
    if len(inputs) > 1:
        channels = weights["conv_out"]["kernel"].shape[3]
        module = module.clone(out_channels=channels)
        return module.apply({"params": weights}, *inputs)
    variables = {"params": weights}
    posterior = module.apply(variables, *inputs, method="encode")
    return module.apply(variables, posterior.mode(), method="decode")
