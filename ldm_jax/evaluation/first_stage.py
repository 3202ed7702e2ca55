"""Measures the reconstructions of a trained first stage.

Latents are the posterior's mode, quantised if there is a codebook. Each image counts
once, also those of the last, partial batch, on any number of devices.
"""

import functools
import os
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ldm_jax import peers, sharding, tiling
from ldm_jax.annotations import Array, Shaped, UInt8
from ldm_jax.errors import ConfigError, DataError
from ldm_jax.evaluation.extremes import SHOWN, Extremes, pairs_grid
from ldm_jax.images import (
    RGB,
    Pixels,
    batch_image,
    decode_pixels,
    require_memory,
    to_float,
    write_image,
)
from ldm_jax.metrics.measurement import Measurement
from ldm_jax.metrics.reconstruction import RECONSTRUCTION_METRICS
from ldm_jax.metrics.set_metrics import Result
from ldm_jax.models.first_stages import row_of
from ldm_jax.models.lpips import LPIPS
from ldm_jax.reading import read_file
from ldm_jax.store import Place, as_path, raise_if_silent
from ldm_jax.trained import FirstStage
from ldm_jax.weights.lpips import read_lpips

_LABELS = {"psnr": "PSNR", "ssim": "SSIM", "l1": "L1", "lpips": "LPIPS"}


def make_step(
    model: nn.Module,
    mesh: Mesh,
    perceptual: Callable | None = None,
    pixels: Pixels = RGB,
) -> Callable:
    """Compiles the step that measures a batch.

    Args:
      model: Autoencoder.
      mesh: Mesh of the batches.
      perceptual: None, or a function of (its weights, images, reconstructions), both
        RGB in [-1, 1], -> distance [B].
      pixels: Channels, bits and range of the images.

    Returns:
      Function of (params, weights of `perceptual`, batch) -> (rows, sums, images,
      reconstructions): dict of metrics [B] and "mask" [B]; the measures of the kind of
      first stage, summed over the images that count; and images and reconstructions
      for display, uint8 [B, H, W, 3], split like the batch.
    """
    measures = row_of(model).measures

    def step(params, weights, batch):
        """Measures a batch of images [B, H, W, C]; see Returns above."""
        images, mask = batch["image"], batch["mask"]
        apply = functools.partial(model.apply, {"params": params})
        posterior = apply(to_float(images), method="encode")
        decoded = pixels.quantise(apply(posterior.mode(), method="decode"))
        rows = {
            name: metric(images, decoded)
            for name, metric in RECONSTRUCTION_METRICS.items()
        }
        if perceptual is not None:
            both = (pixels.to_rgb(to_float(each)) for each in (images, decoded))
            rows["lpips"] = perceptual(weights, *both)
        sums = {
            name: _sum_over(mask, values)
            for name, values in measures.rows(model, params, posterior).items()
        }
        rows["mask"] = mask
        return rows, sums, pixels.shown(images), pixels.shown(decoded)

    everywhere, split = sharding.replicated(mesh), sharding.batch_sharding(mesh)
    shardings = everywhere, everywhere, split, split
    return sharding.jit(step, mesh, out_shardings=shardings)


def _sum_over(mask, values):
    """Sums values [B, ...] over the rows that a mask [B] marks."""
    mask = mask.reshape(-1, *[1] * (values.ndim - 1))
    return jnp.sum(jnp.where(mask, values, 0), axis=0)


def make_lpips(paths: str) -> tuple[Callable, Any]:
    """Makes the perceptual distance of `evaluate`, in float32 on every device.

    Args:
      paths: File of LPIPS' weights, or two with a comma between; see `weights.lpips`.

    Returns:
      (function, its weights).

    Raises:
      ConfigError: If the weights cannot be read.
    """
    weights = read_lpips(paths, "--lpips_weights")

    def distance(weights, images, reconstructions):
        with jax.default_matmul_precision("float32"):
            return LPIPS().apply({"params": weights}, images, reconstructions)

    return distance, weights


def evaluate(
    first: FirstStage,
    batches: Iterable[Mapping[str, Shaped[Array, "..."]]],
    mesh: Mesh,
    perceptual: tuple[Callable, Any] | None = None,
    measurement: Measurement | None = None,
) -> tuple[dict[str, Result], dict[str, UInt8[np.ndarray, "h w c"] | None]]:
    """Averages the metrics over a data set.

    Args:
      first: A `trained.FirstStage`.
      batches: Iterable of dicts of global arrays "image" [B, H, W, C] and "mask" bool
        [B], the rows that count.
      mesh: Mesh of the batches.
      perceptual: None, or (function, its weights), see `make_step`.
      measurement: An empty Measurement of the metrics that compare the set of
        reconstructions with the set of images; None for none.

    Returns:
      (results, grids): name -> Result, with the standard error of the mean for metrics
      of single images; and grids uint8 [H, W, C] of images beside their
      reconstructions: "reconstructions", the first images of this process, "best" and
      "worst", those of all processes by the distance `perceptual`, or by PSNR if it is
      None.

    Raises:
      DataError: If no image could be read, or too few for a metric of image sets.
      ConfigError: If a metric or its weights are wrong.
    """
    distance, weights = perceptual or (None, {})
    step = make_step(first.module, mesh, distance, first.pixels)
    params, weights = (
        sharding.put_tree(tree, sharding.tree_shardings(tree, mesh))
        for tree in (first.params, weights)
    )
    results = ((b["mask"], *step(params, weights, b)) for b in batches)
    reconstructed = measurement or Measurement((), mesh)
    originals = reconstructed.twin()
    means, sums, first_pairs, extremes = {}, {}, None, Extremes()
    for mask, rows, parts, images, decoded in tiling.one_behind(results):
        rows, parts = jax.device_get((rows, parts))
        real = rows.pop("mask")
        for name, values in rows.items():
            means.setdefault(name, _Mean()).add(values[real])
        for name, total in parts.items():
            sums[name] = sums.get(name, 0.0) + np.float64(total)
        originals.add(images, mask)
        reconstructed.add(decoded, mask)
        here = _local_indices(images)
        pairs = np.stack([_local_rows(images), _local_rows(decoded)], axis=1)
        pairs = pairs[real[here]]
        # LPIPS is a distance: less is better.
        scores = -rows["lpips"] if "lpips" in rows else rows["psnr"]
        extremes.add(scores[here[real[here]]], pairs)
        if first_pairs is None:
            first_pairs = pairs[:SHOWN]
        peers.progress()
    if not means or not means["psnr"].count:
        raise DataError("none of the images could be read; see the warnings above")
    found = _summarise(first, means, sums)
    if reconstructed.metrics:
        reconstructed.compare_with(originals.as_reference())
        found |= reconstructed.results()
    grids = {"reconstructions": pairs_grid(first_pairs)} | extremes.grids()
    return found, grids


class _Mean:
    """Mean of a number per image, and its standard error."""

    def __init__(self):
        self.count, self._sum, self._squares = 0, 0.0, 0.0

    def add(self, values):
        """Adds the values of some images, [N]."""
        values = values.astype(np.float64)
        self.count += len(values)
        self._sum += values.sum()
        self._squares += np.square(values).sum()

    def result(self, name):
        """The Result: mean over all images, its standard error, and their number."""
        mean = self._sum / self.count
        # The standard error; a single image has none.
        spread = max(self._squares / self.count - mean**2, 0.0)
        error = (spread / (self.count - 1)) ** 0.5 if self.count > 1 else None
        return Result(mean, error, self.count, _LABELS.get(name, name))


def _summarise(first, means, sums):
    """Results of the metrics of single images, and of the kind of first stage."""
    # Compiled functions return dicts with sorted keys.
    count = means["psnr"].count
    found = {
        n: means[n].result(n) for n in (*RECONSTRUCTION_METRICS, "lpips") if n in means
    }
    averages = {name: total / count for name, total in sorted(sums.items())}
    summary = row_of(first.module).measures.summarize(averages)
    return found | {n: Result(float(v), None, count, n) for n, v in summary.items()}


def _local_indices(array):
    """Indices in the global batch of the rows of `_local_rows`."""
    index = {
        shard.index[0].indices(len(array))[:2] for shard in array.addressable_shards
    }
    return np.concatenate([np.arange(*each) for each in sorted(index)])


def _local_rows(array):
    """The rows of a global batch that are on this process's devices, each once."""
    shards = {shard.index[0].start or 0: shard for shard in array.addressable_shards}
    return np.concatenate([np.asarray(shards[start].data) for start in sorted(shards)])


def name_outputs(
    paths: Iterable[str | os.PathLike],
    outdir: str | os.PathLike,
    suffix: str = ".png",
) -> dict[Place, Place]:
    """Names the file that each image's reconstruction is written to.

    Args:
      paths: Image files.
      outdir: Folder of the results.
      suffix: Suffix of the results, see `images.suffix_of`.

    Returns:
      Dict of image file -> file in `outdir`.

    Raises:
      ConfigError: If two of them would go to the same file.
    """
    sources = {}
    for path in map(as_path, paths):
        output = as_path(outdir) / f"{path.stem}_reconstructed{suffix}"
        if output in sources:
            raise ConfigError(
                f"--image: {sources[output]} and {path} would both go to {output}; "
                "give them in two calls with an --outdir each"
            )
        sources[output] = path
    return {path: output for output, path in sources.items()}


def reconstruct_file(
    codec: tuple[Callable, Callable],
    factor: int,
    path: str | os.PathLike,
    output: str | os.PathLike,
    tile: int,
    overlap: int,
    pixels: Pixels = RGB,
) -> str:
    """Encodes and decodes an image file at its own size, tile by tile.

    Args:
      codec: (encode, decode), functions of a tile in [-1, 1] and of its latents.
      factor: Downsampling factor of the first stage.
      path: Image file.
      output: File to write, with the suffix of `images.suffix_of`.
      tile: Side of a tile in pixels, see `tiling.encode_tiled`.
      overlap: Pixels by which neighbouring tiles overlap.
      pixels: Channels, bits and range of the images.

    Returns:
      A line for the log: file, size, shape of the latents, seconds.

    Raises:
      ConfigError: If the file cannot be read or the tiles do not fit.
    """
    try:
        # As training data are read, not as samples, whose floats are in [-1, 1].
        decoded = decode_pixels(read_file(path, require_memory), pixels=pixels)
        image = batch_image(decoded, pixels)
    except (OSError, ValueError) as error:
        raise_if_silent(path, error)
        raise ConfigError(f"--image: cannot read {path}: {error}") from error
    height, width = image.shape[:2]
    start = time.perf_counter()
    # Padded to whole latents with copies of the last row and column.
    margin = [(0, -size % factor) for size in (height, width)]
    images = to_float(np.pad(image, (*margin, (0, 0)), mode="edge")[None])
    options = {"tile": tile, "overlap": overlap}
    try:
        latents = tiling.encode_tiled(codec[0], images, factor, **options)
        decoded = tiling.decode_tiled(codec[1], latents, factor, **options)
    except ValueError as error:
        raise ConfigError(f"--tile, --overlap: {error}") from error
    write_image(output, pixels.quantise(decoded[0, :height, :width]), pixels)
    shape = " x ".join(map(str, latents.shape[1:]))
    seconds = time.perf_counter() - start
    return f"{output}: {height} x {width} through latents of {shape}, {seconds:.1f} s"


def compile_codec(first: FirstStage) -> tuple[Callable, Callable]:
    """Compiles a first stage for `reconstruct_file`.

    Args:
      first: A `trained.FirstStage`.

    Returns:
      (encode, decode): functions of images [B, H, W, C] in [-1, 1], and of latents.
    """
    params, module = jax.device_put(first.params), first.module

    def encode(params, images):
        return module.apply({"params": params}, images, method="encode").mode()

    def decode(params, latents):
        return module.apply({"params": params}, latents, method="decode")

    programs = map(sharding.jit, (encode, decode))
    return tuple(functools.partial(program, params) for program in programs)
