"""Batches of encoded examples: reads, crops and encodes images, without writing."""

import collections
import contextlib
import dataclasses
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ldm_jax import sharding, tiling
from ldm_jax.annotations import Bool, Int, Shaped
from ldm_jax.config import build
from ldm_jax.data.crops import ALWAYS
from ldm_jax.data.encoded import MEAN, STD
from ldm_jax.data.inputs import held_out_inputs, make_inputs
from ldm_jax.data.load_batch import LOADER_OPTIONS, LoaderOptions
from ldm_jax.data.loader import Loader
from ldm_jax.data.sources import Subset
from ldm_jax.encoding.text_states import make_states
from ldm_jax.errors import ConfigError
from ldm_jax.images import to_float
from ldm_jax.trained import FirstStage, TextTower


class Options(NamedTuple):
    """Options that determine the contents of a set, besides data and first stage.

    Attributes:
      dtype: Type of the latents, "bfloat16" or "float32".
      mirrored: Whether the mirrored copy of each image is encoded, too.
      batch_size: Images per batch of a process, a multiple of its number of devices.
      shard_size: Images per shard.
      seed: Seed of random draws of the inputs.
      towers: Batch key -> TextTower whose states are stored with the token ids.
    """

    dtype: str
    mirrored: bool
    batch_size: int
    shard_size: int
    seed: int
    towers: Mapping[str, TextTower] = types.MappingProxyType({})


class Encoded(NamedTuple):
    """A batch of examples of this process, on the host.

    Attributes:
      copies: For the images, and for the mirrored ones if requested: batch key -> array
        [B, ...], the latents' moments first.
      mask: Which rows could be read, bool [B].
      skipped: Name of an example -> why it cannot be read, of all so far.
      shortened: Name of an example -> what of it was left out, of all so far.
      cut: Input -> number of examples of the batch that it truncated.
    """

    copies: list[dict[str, Shaped[np.ndarray, "..."]]]
    mask: Bool[np.ndarray, " batch"]
    skipped: Mapping[str, str]
    shortened: Mapping[str, str]
    cut: Mapping[str, int]


def make_encoder(first: FirstStage, mesh: Mesh, dtype: str) -> Callable[[Any], Any]:
    """Makes the jitted function that encodes a batch of images.

    Args:
      first: FirstStage.
      mesh: Mesh over the devices of this process.
      dtype: Type of its results.

    Returns:
      Function of images uint8 [B, H, W, C], sharded over the mesh -> dict of MEAN and,
      if the posterior has one, STD [B, h, w, c].
    """
    whole = sharding.tree_shardings(first.params, mesh)
    params, module = sharding.put_tree(first.params, whole), first.module

    def encode(params, images):
        posterior = module.apply({"params": params}, to_float(images), method="encode")
        mean, std = posterior.moments()
        moments = {MEAN: mean} if std is None else {MEAN: mean, STD: std}
        return {name: value.astype(jnp.dtype(dtype)) for name, value in moments.items()}

    encode = sharding.jit(encode, mesh, out_shardings=sharding.batch_sharding(mesh))
    return lambda images: encode(params, images)


def encoded_batches(
    source: Any,
    section: Mapping[str, Any],
    indices: Int[np.ndarray, " count"],
    first: FirstStage,
    options: Options,
) -> Iterator[Encoded]:
    """Yields encoded examples in order, while the device computes the next batch.

    Args:
      source: Opened source.
      section: Config section `data`.
      indices: Positions in the source, int64 [count], a whole number of batches.
      first: FirstStage.
      options: How to encode.

    Yields:
      Encoded.

    Raises:
      DataError: If an example cannot be read and `data.on_error` is "raise", or if none
        can.
    """
    mesh = sharding.make_mesh(devices=jax.local_devices())
    encode = make_encoder(first, mesh, options.dtype)
    text_states = make_states(options.towers, mesh, options.dtype)
    flips = [False, ALWAYS] if options.mirrored else [False]
    with contextlib.ExitStack() as stack:
        loaders = []
        for flip in flips:
            loader = _loader(source, section, indices, flip, options)
            loaders.append(stack.enter_context(contextlib.closing(loader)))

        def begun():
            """Yields batches whose moments [B, h, w, 2 c] are still being computed."""
            before = collections.Counter()
            for batches in zip(*loaders, strict=True):
                skipped = loaders[0].skipped | loaders[-1].skipped
                # Mirrored copies have the same captions.
                cut, before = loaders[0].cut - before, loaders[0].cut.copy()
                said = skipped, loaders[0].shortened, cut
                images = [{"image": batch.pop("image")} for batch in batches]
                moments = [
                    encode(sharding.put_batch(each, mesh)["image"]) | text_states(batch)
                    for each, batch in zip(images, batches, strict=True)
                ]
                masks = [batch.pop("mask") for batch in batches]
                yield moments, batches, np.logical_and.reduce(masks), said

        for moments, batches, mask, said in tiling.one_behind(begun()):
            moments = jax.device_get(moments)
            copies = [m | b for m, b in zip(moments, batches, strict=True)]
            yield Encoded(copies, mask, *said)


def _loader(source, section, indices, flip, options):
    """Makes a loader of one pass in order, of the images or of the mirrored ones."""
    # No buckets: all latents of a set have the same shape.
    given = {name: section[name] for name in LOADER_OPTIONS if name in section}
    cut = build(LoaderOptions, given, "data", places=indices)
    cut, size = dataclasses.replace(cut, flip=flip), options.batch_size
    # Without dropout, which training draws again in each epoch.
    inputs = held_out_inputs(make_inputs(section.get("inputs")))
    try:
        return Loader(
            Subset(source, indices),
            cut,
            inputs,
            batch_size=size,
            seed=options.seed,
            train=False,
        )
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"data: {error}") from error
