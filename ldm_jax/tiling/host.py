"""Encodes and decodes images larger than memory, in overlapping tiles.

    encode = sharding.jit(functools.partial(latent_diffusion.encode, model))
    decode = sharding.jit(functools.partial(latent_diffusion.decode, model))
    factor = model.first_stage.downsampling_factor
    latents = encode_tiled(lambda tile: encode(frozen, tile), images, factor)
    images = decode_tiled(lambda tile: decode(frozen, tile), latents, factor)

Arrays stay on the host, only one tile at a time is on the device, and all tiles have
the same shape, so one compiled program serves all.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import numpy as np

from ldm_jax.annotations import Float, Num
from ldm_jax.tiling.cuts import check_image, check_tile, cut_axis, spans, weights

_Result = TypeVar("_Result")


def encode_tiled(
    encode: Callable[[Any], Any],
    images: Num[np.ndarray, "batch height width channels"],
    factor: int,
    *,
    tile: int = 512,
    overlap: int = 128,
) -> Float[np.ndarray, "batch latent_height latent_width latent_channels"]:
    """Encodes images tile by tile.

    Args:
      encode: Function of images [B, t, t', C] -> latents [B, t / f, t' / f, c]; it gets
        one or few shapes, so compile it.
      images: NumPy array [B, H, W, C] for `encode`; H and W multiples of f.
      factor: Downsampling factor f of the first stage.
      tile: Side of a tile in pixels, a multiple of f. An axis of the image that is no
        longer is not cut.
      overlap: Minimum number of pixels that neighbours share, a multiple of f, at most
        half a tile. The last tile ends with the image and may share more.

    Returns:
      NumPy float32 [B, H / f, W / f, c].

    Raises:
      ValueError: If a size is not a multiple of f, or the overlap is too large.
    """
    check_image(images, factor)
    size = [length // factor for length in images.shape[1:3]]
    return _apply_tiled(encode, images, size, factor, tile, overlap, (factor, 1))


def decode_tiled(
    decode: Callable[[Any], Any],
    latents: Float[np.ndarray, "batch height width latent_channels"],
    factor: int,
    *,
    tile: int = 512,
    overlap: int = 128,
) -> Float[np.ndarray, "batch image_height image_width channels"]:
    """Decodes latents tile by tile.

    Args:
      decode: Function of latents [B, t, t', c] -> images [B, f t, f t', C]; it gets one
        or few shapes, so compile it.
      latents: NumPy array [B, h, w, c].
      factor: Downsampling factor f of the first stage.
      tile: Side of a tile in pixels of the image, see `encode_tiled`.
      overlap: Overlap in pixels of the image, see `encode_tiled`.

    Returns:
      NumPy float32 [B, f h, f w, C].

    Raises:
      ValueError: See `encode_tiled`.
    """
    size = latents.shape[1:3]
    return _apply_tiled(decode, latents, size, factor, tile, overlap, (1, factor))


def _apply_tiled(function, array, size, factor, tile, overlap, zooms):
    """Applies a function to tiles and blends the results.

    Args:
      function: (part of the array) -> array of the same size times zooms[1] / zooms[0].
      array: NumPy [B, height, width, channels].
      size: Height and width in latents.
      factor: Pixels per latent.
      tile: Side of a tile in pixels.
      overlap: Overlap in pixels.
      zooms: Cells per latent of the array and of the result.
    """
    check_tile(factor, tile, overlap)
    cuts = [cut_axis(length, tile // factor, overlap // factor) for length in size]
    zoom_in, zoom_out = zooms
    axes, result = [], None
    for cut in cuts:
        there, here = spans(cut, zoom_out), spans(cut, zoom_in)
        axes.append(list(zip(here, there, weights(cut, zoom_out), strict=True)))

    def parts():
        for (top, rows, down), (left, columns, across) in itertools.product(*axes):
            weight = (down[:, None] * across)[..., None]
            yield rows, columns, weight, function(array[:, top, left])

    for rows, columns, weight, part in one_behind(parts()):
        part = np.asarray(part, np.float32)
        if result is None:
            height, width = (length * zoom_out for length in size)
            result = np.zeros((len(array), height, width, part.shape[-1]), np.float32)
        result[:, rows, columns] += weight * part
    return result


def one_behind(results: Iterable[_Result]) -> Iterator[_Result]:
    """Yields results one step late, so that the device already computes the next one.

    Args:
      results: Results that are computed asynchronously, one by one.

    Yields:
      The same results in order.
    """
    late = []
    for result in results:
        yield from late
        late = [result]
    yield from late
